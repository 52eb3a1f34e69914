"""A graph, a schedule, an objective and a sampler of the user's own, by their dotted paths."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.characters import Bytes
from sedd_jax.data.column_statistics import Label
from sedd_jax.data.conditions import Conditions
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.importance import Proposal
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import mean_dwdse_loss
from sedd_jax.diffusion.sampler import GridSampler
from sedd_jax.diffusion.score import StepWeights
from sedd_jax.diffusion.time_sampling import Times
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.dashboard import dashboard
from sedd_jax.evaluation.runs import read_runs
from sedd_jax.experiment.config import from_saved
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family, check_names
from sedd_jax.inference.export import save_published, save_run
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import build_score_based, objective_named
from sedd_jax.training.step import build_train_step, init_state
from tests.skewed import skewed

NUMBER = 3


@dataclasses.dataclass(frozen=True)
class OwnMask(Graph):
    """The absorbing graph, written again."""

    @property
    def mask_id(self):
        return self.num_states - 1

    @property
    def limit(self):
        return jnp.zeros(self.num_states).at[self.mask_id].set(1.0)


class Neighbours(OwnMask):
    """Tokens move to the next one: no rate of the form pi 1 - I."""

    def rate(self, x):
        return jax.nn.one_hot(x + 1, self.num_states) - jax.nn.one_hot(x, self.num_states)


class FirstMask(OwnMask):
    """A mask in the wrong place."""

    mask_id = 0


class NoDistribution(OwnMask):
    """Probabilities of sum 2."""

    @property
    def limit(self):
        return jnp.full(self.num_states, 2 / self.num_states)


def own_mask(vocab_size):
    return OwnMask(vocab_size + 1)


def zipf(vocab_size, power=1.0):
    """Moves go to frequent tokens, and those to the last half never."""
    frequency = np.arange(1, vocab_size + 1) ** -power * (np.arange(vocab_size) < vocab_size / 2)
    return skewed(*(frequency / frequency.sum()).tolist())


def linear(config):
    return Noise(lambda t: 8 * t, lambda t: jnp.full_like(t, 8 + 0 * config.eps))


def doubled(graph, noise, score_fn, batch, x0):
    return 2 * mean_dwdse_loss(graph, noise, score_fn, batch, x0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """An objective with an option."""

    value: float = 1.0

    def __call__(self, graph, noise, score_fn, batch, x0):
        return self.value + 0 * x0.sum()


class OnlyAtTheEnd(GridSampler):
    """Nothing changes before the final step: a rule of its own."""

    def weights(self, graph, noise, xt, total, t, t_next):
        return StepWeights(scale=0 * total, cut=None, stay=1 + 0 * total)


def number():
    return 3


def told(config, vocab_size, placement, conditions=()):
    return build_score_based(config, vocab_size, placement, conditions)


def untold(config, vocab_size, placement):
    return build_score_based(config, vocab_size, placement)


class Early(Times):
    """Times of the cleaner half only."""

    def proposal(self, noise, t_min, state=()):
        return Proposal(np.array([t_min, 0.5]), *(np.ones(1),) * 3)


def lacking(vocab_size):
    return object()


def failing(vocab_size):
    raise RuntimeError("out of luck")


def two(one, other):
    return OwnMask(one)


@pytest.fixture
def own(monkeypatch, smoke_config):
    """Settings that name this file's objects."""
    monkeypatch.setitem(sys.modules, "own_code", sys.modules[__name__])
    return dataclasses.replace(
        smoke_config,
        graph="own_code:own_mask",
        noise=dataclasses.replace(smoke_config.noise, schedule="own_code:linear"),
        model=dataclasses.replace(smoke_config.model, scale_by_sigma=False, num_blocks=1),
        train=dataclasses.replace(smoke_config.train, objective="own_code:doubled"),
    )


@pytest.mark.slow
def test_a_step_a_bound_and_samples_by_dotted_paths(own):
    config = from_saved(dataclasses.asdict(own))  # as it is saved with a checkpoint
    assert config == own
    check_names(config)
    tokens = np.random.default_rng(0).integers(0, 257, (4, config.model.length))

    def first_loss(config):
        family = build_family(config, 257)
        state = init_state(run_keys(0).init, family, config.optim)
        step = build_train_step(family, config.train, config.optim, run_keys(0).train)
        return family, *jax.jit(step)(state, jnp.asarray(tokens, jnp.int32))

    family, state, metrics = first_loss(config)
    assert isinstance(family.graph, OwnMask) and state.step == 1 and state.skipped.total == 0
    usual = dataclasses.replace(config.train, objective="score_entropy")
    *_, plain = first_loss(dataclasses.replace(config, train=usual))
    assert float(metrics["loss"]) == pytest.approx(2 * float(plain["loss"]), rel=1e-5)
    model = TrainedModel(family, state.params, config, Bytes(), None)
    bound = sedd.nll_bound(jax.random.key(0), model, tokens, draws=2)
    assert np.isfinite(bound.nats).all() and bound.nats_per_token > 0
    own = {"steps": 4, "sampler": "own_code:OnlyAtTheEnd"}
    drawn, diagnostics = sedd.generate(jax.random.key(0), model, 2, **own)
    assert drawn.max() < 257
    assert not diagnostics.changed[:-1].any() and (diagnostics.changed[-1] == drawn.shape[1]).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absrob", "config.graph must be one of absorb, uniform, hybrid, or package.module:funct"),
        ("hybrid(mask=2.0)", "mask must be at least 1e-12 and below 1, got 2.0"),
        ("hybrid(share=0.5)", "hybrid has the options mask, got share"),
        ("no_such_module:graph", "no_such_module cannot be imported"),
        ("own_code:absent", "own_code has no absent"),
        ("own_code:NUMBER", "must be a function or a class"),
        ("own_code:lacking", "must be derived from sedd_jax.diffusion.graph.Graph"),
        ("own_code:Graph", "calling it fails .TypeError: .* abstract"),
        ("own_code:Neighbours", "its rate is not that of Q = pi 1 - I"),
        ("own_code:FirstMask", "its mask_id must be the last state, 256, or None, got 0"),
        ("own_code:NoDistribution", "its limit must be a distribution over its 257 states"),
        ("own_code:failing", "calling it fails .RuntimeError: out of luck"),
        ("own_code:two", "it must take 1 positional arguments"),
    ],
)
def test_names_that_stand_for_nothing_are_one_sentence(own, name, message):
    with pytest.raises(BadInput, match=message):
        check_names(dataclasses.replace(own, graph=name))


def test_a_family_that_takes_conditions_is_given_their_sizes(own):
    data = dataclasses.replace(own.data, condition="class", wrap=False, crop="blocks")
    config = dataclasses.replace(own, data=data, family="own_code:told")
    check_names(config)
    classes = Conditions((Label("class", {"a": 1, "b": 2}),))
    assert build_family(config, 257, conditions=classes).model.conditions == classes.sizes
    assert not build_family(dataclasses.replace(config, data=own.data), 257).model.conditions
    with pytest.raises(BadInput, match="diffusion has no options, got conditions"):
        build_family(dataclasses.replace(own, family="diffusion(conditions=3)"), 257)
    for family in ("own_code:untold", "gaussian"):
        with pytest.raises(BadInput, match=f"config.family={family} takes none: leave it empty"):
            check_names(dataclasses.replace(config, family=family))


def test_times_of_one_s_own(own):
    train = dataclasses.replace(own.train, times="own_code:Early")
    check_names(dataclasses.replace(own, train=train))
    family = build_family(own, 257)
    x0 = jnp.zeros((64, own.model.length), jnp.int32)
    batch = family.objective(train).draw(*jax.random.split(jax.random.key(0)), x0)
    assert batch.t.max() <= 0.5
    for name, message in (("own_code:doubled", "must take 0"), ("own_code:number", "lacks init")):
        train = dataclasses.replace(own.train, times=name)
        with pytest.raises(BadInput, match=f"config.train.times={name}: .*{message}"):
            check_names(dataclasses.replace(own, train=train))


def test_a_class_of_objectives_is_made_with_its_options(own):
    def loss_of(text):
        objective = objective_named(text)
        return objective(None, None, None, None, jnp.zeros(()))

    assert loss_of("own_code:Constant") == 1 and loss_of("own_code:Constant(value=3)") == 3
    with pytest.raises(BadInput, match=r"Constant has the options value, got size"):
        objective_named("own_code:Constant(size=3)")
    with pytest.raises(BadInput, match="own_code:doubled is a function, which has no options"):
        objective_named("own_code:doubled(by=3)")


@pytest.mark.parametrize("objective", ["cross_entropy", "d3pm(steps=10)"])
def test_what_trains_a_softmax_refuses_log_ratios(own, objective):
    config = dataclasses.replace(own, train=dataclasses.replace(own.train, objective=objective))
    with pytest.raises(BadInput, match=r"set config.model.output to denoiser or leave_one_out"):
        check_names(config)
    check_names(
        dataclasses.replace(config, model=dataclasses.replace(own.model, output="denoiser"))
    )


def test_an_objective_and_a_family_are_checked_before_a_run(own):
    train = dataclasses.replace(own.train, objective="own_code:two")
    with pytest.raises(BadInput, match=r"objective=own_code:two: it must take 5 positional"):
        check_names(dataclasses.replace(own, train=train))
    with pytest.raises(
        BadInput, match=r"config.family=own_code:own_mask: it must take 3 positional"
    ):
        check_names(dataclasses.replace(own, family="own_code:own_mask"))


def test_a_loaded_model_runs_no_code_unless_it_is_trusted(smoke_run, tmp_path, monkeypatch, binary):
    module, marker = tmp_path / "graph_of_another.py", tmp_path / "imported"
    module.write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        "from sedd_jax.diffusion.graph import absorbing as graph\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = sedd.load(smoke_run)
    config = dataclasses.replace(model.config, graph="graph_of_another:graph")
    folder = tmp_path / "model"
    folder.mkdir()
    save_run(dataclasses.replace(model, config=config), folder)
    with pytest.raises(BadInput, match=r"names code of its own \(graph_of_another:graph\)"):
        sedd.load(folder)
    said = binary.refuse("sample", f"--checkpoint={folder}")
    assert "graph_of_another:graph" in said and "--trust_code" in said
    (folder / "data").mkdir(exist_ok=True)
    dashboard(read_runs([folder]))  # a report imports nothing either
    published = tmp_path / "published"
    published.mkdir()
    save_published(model, published)
    settings = json.loads((published / "config.json").read_text())
    settings["graph"]["type"] = "graph_of_another:graph"
    (published / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match=r"names code of its own \(graph_of_another:graph\)"):
        sedd.load(published)
    assert not marker.exists()
    assert sedd.load(folder, trust_code=True).graph == model.graph
    assert marker.exists()
