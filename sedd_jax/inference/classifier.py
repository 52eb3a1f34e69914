"""Classifiers of noised tokens, p(c | x_t): trained like any model, to guide the samples of others.

The loss is the cross-entropy at a time t, uniform on [t_min, 1], of tokens noised by the graph and
the schedule of the config. Its minimum is p(c | x_t) of the data, whose ratios between neighbours
guide a sampler (`diffusion.guidance`).

A classifier says nothing of how likely tokens are, so what a `Family` has for likelihoods and
samples is refused in one sentence, wherever it is asked for.

References:
  Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021 (arXiv 2105.05233): a
    classifier that is trained on noised inputs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sedd_jax.data.column_statistics import ColumnSize
from sedd_jax.data.columns import parse_columns
from sedd_jax.data.conditions import Conditions
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.times import sample_times
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import build_graph, build_noise, network_config
from sedd_jax.experiment.config import Config, TrainConfig
from sedd_jax.inference.family import BatchLoss
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.classifier import ClassifierModel, classifier_model
from sedd_jax.model.config import ModelConfig
from sedd_jax.model.context import NOTHING
from sedd_jax.model.score_model import ScoreModel, network_flops
from sedd_jax.model.sharding import ANYWHERE, Placement


class NoisedRows(NamedTuple):
    """The random inputs of the loss.

    Attributes:
      xt: noised tokens.
      sigma: their total noise.
    """

    xt: Int[Array, "B L"]
    sigma: Float[Array, "B"]


def _refused(*_args: Any, **_settings: Any) -> NoReturn:
    raise BadInput(
        "A classifier (config.family=classifier) draws no samples and gives tokens no likelihood: "
        "it guides the samples of a diffusion model, sample --checkpoint=MODEL --classifier=RUN."
    )


class Classifier(NamedTuple):
    """A classifier of noised tokens, as a `Family` without likelihood and samples."""

    graph: Graph
    noise: Noise
    model: ClassifierModel

    exact_likelihood = False
    complete_bound = False
    infills = False
    row_loss = control = reconstruction_loss = draw_times = prior_nll = _refused
    sampling = generator = check_prompt = max_nfe = _refused

    num_tokens, num_states = ScoreBased.num_tokens, ScoreBased.num_states  # those of the graph
    max_length = ScoreBased.max_length

    @property
    def summary(self) -> str:
        name, classes, _ = self.model.column
        kind = type(self.graph).__name__.lower()
        return f"{classes} classes of {name!r} from {self.num_states} states ({kind} graph)"

    def objective(self, config: TrainConfig) -> BatchLoss:
        def draw(time_key, noise_key, x0, condition):
            del condition  # the noise does not depend on it
            t = sample_times(time_key, x0.shape[0], config.t_min, config.low_discrepancy)
            sigma = self.noise.sigma(t)
            return NoisedRows(self.graph.sample_transition(noise_key, x0, sigma), sigma)

        def loss(params, noised, x0, key, condition):
            log_probs = self.model.log_probs(params, *noised, key)
            return cross_entropy(log_probs, condition[self.model.column.name]).mean()

        return BatchLoss(draw, loss, per_token=False)

    def training_share(self, config: TrainConfig) -> float:
        return 1.0

    def forward_flops(self, config: ModelConfig, share: float = 1.0) -> float:
        once_a_row = share / config.length
        return network_flops(config, self.model.column.classes, once_a_row)


def cross_entropy(log_probs: Float[Array, "B K"], classes: Int[Array, "B"]) -> Float[Array, "B"]:
    """Returns -log p(c | x_t), nats."""
    return -jnp.take_along_axis(log_probs, classes[:, None], axis=1)[:, 0]


def judged(family: Classifier, right: bool) -> Callable[..., Array]:
    """Returns f(params, keys, t, x0, lengths, context) of rows, for `RowPasses`.

    Args:
      family: the classifier.
      right: whether the likeliest class is that of the row; else the cross-entropy.
    """

    def of_rows(params, keys, t, x0, lengths=None, context=NOTHING):
        sigma, classes = family.noise.sigma(t), context.condition[family.model.column.name]
        xt = jax.vmap(family.graph.sample_transition)(keys, x0, sigma)
        log_probs = family.model.log_probs(params, xt, sigma)
        return log_probs.argmax(-1) == classes if right else cross_entropy(log_probs, classes)

    return of_rows


def check_classifier(config: Config) -> None:
    """Raises BadInput for settings with which a classifier cannot be trained."""
    columns = parse_columns(config.data.condition)
    if [column.kind for column in columns] != ["label"]:
        raise BadInput(
            "config.family=classifier learns the classes of one column: set config.data.condition "
            f"to its name, got {config.data.condition!r}."
        )
    if config.eval.num_samples:
        raise BadInput(
            "config.family=classifier draws no samples: set config.eval.num_samples=0, got "
            f"{config.eval.num_samples}."
        )


def build_classifier(
    config: Config,
    vocab_size: int,
    placement: Placement = ANYWHERE,
    conditions: tuple[ColumnSize, ...] = (),
) -> Classifier:
    """Builds a classifier.

    Args:
      config: the settings.
      vocab_size: tokens of the tokenizer.
      placement: how activations are sharded over the devices.
      conditions: the column of its classes.

    Raises:
      BadInput: it is not one column of two classes or more.
    """
    check_classifier(config)
    (column,) = conditions
    if column.classes < 2:
        raise BadInput(f"All documents have the same {column.name!r}: there is nothing to learn.")
    graph = build_graph(config.graph, vocab_size)
    network = network_config(config.model, graph.num_states, placement)
    noise = build_noise(config.noise)
    return Classifier(graph, noise, classifier_model(network, column, placement))


def with_classifier(model: TrainedModel, classifier: TrainedModel) -> TrainedModel:
    """Returns a model whose samples a classifier guides, told the classes that it knows.

    It has the weights of both. If the network is told the same column, it is not told now: else the
    class would count twice.

    Args:
      model: the model.
      classifier: that was trained on the same tokens, graph and schedule.

    Raises:
      BadInput: they do not fit.
    """
    if misfit := next(_misfits(model, classifier), None):
        raise BadInput(f"classifier={classifier.name or 'the given one'} {misfit}.")
    (label,) = classifier.conditions.columns
    columns = model.conditions.columns if model.conditions else ()
    known = label.name in [column.name for column in columns]
    return dataclasses.replace(
        model,
        family=model.family._replace(model=_guided(model.model, classifier.model)),
        params={"network": model.params, "classifier": classifier.params},
        conditions=Conditions(columns if known else (*columns, label)),
    )


def split_classifier(
    model: TrainedModel, settings: dict[str, Any]
) -> tuple[TrainedModel, dict[str, Any]]:
    """Returns the model, with a classifier that settings of sampling hold, and settings of names.

    Args:
      model: the model.
      settings: how to draw; `classifier` may be a trained one.
    """
    classifier = settings.get("classifier")
    if not isinstance(classifier, TrainedModel):
        return model, settings
    name = classifier.name or "classifier"
    return with_classifier(model, classifier), settings | {"classifier": name}


@functools.lru_cache(maxsize=16)  # the same functions, so that programs are compiled once
def _guided(network: ScoreModel, classifier: ClassifierModel) -> ScoreModel:
    def of_network(function):
        def applied(params, *args, context=NOTHING, **known):
            context = classifier.without_class(context)
            known |= {} if context.empty else {"context": context}
            return function(params["network"], *args, **known)

        return applied

    def init(key):
        keys = jax.random.split(key)
        return {"network": network.init(keys[0]), "classifier": classifier.init(keys[1])}

    apply, score = map(of_network, (network.apply, network.score))
    return network._replace(init=init, apply=apply, score=score, classifier=classifier)


def _misfits(model: TrainedModel, classifier: TrainedModel) -> Iterator[str]:
    """Yields why a classifier cannot guide a model."""
    if not isinstance(classifier.family, Classifier):
        yield f"is a {classifier.config.family} model: train one with config.family=classifier"
    if not isinstance(model.family, ScoreBased):
        yield f"means nothing to {model.config.family} models: leave it out"
    ours, theirs = (each.tokenizer and each.tokenizer.fingerprint() for each in (model, classifier))
    tokens = classifier.family.num_tokens
    if tokens != model.family.num_tokens or (ours and theirs and ours != theirs):
        yield (
            f"was trained on other tokens ({tokens} there, {model.family.num_tokens} here): train "
            "it with the tokenizer of the model"
        )
    if classifier.family.graph != model.graph:
        yield (
            f"was trained with config.graph={classifier.config.graph}, and this model with "
            f"{model.config.graph}: train it with that"
        )
    t = jnp.linspace(0.01, 1, 9)
    if not np.allclose(classifier.family.noise.sigma(t), model.noise.sigma(t), rtol=1e-4):
        yield "was trained with another config.noise than this model: train it with that"
    trained, learned = model.config.model.length, classifier.family.max_length
    if learned is not None and learned < trained:
        yield f"has learned {learned} positions, and rows have {trained}: train it on such rows"
    if classifier.mesh != model.mesh:
        yield "is on other devices: load it with the mesh of the model"
    (label,) = classifier.conditions.columns
    for column in model.conditions.columns if model.conditions else ():
        if column.name != label.name:
            continue
        if column.meaning != label.meaning:
            yield (
                f"has other classes of {label.name!r} than this model: train it on the same data"
            )
        if not model.config.train.condition_dropout:
            yield (
                f"tells the class of {label.name!r} in place of this model, which was always told "
                "it: train the model with config.train.condition_dropout above 0"
            )
