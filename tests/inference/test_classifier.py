"""Classifiers of noised tokens: their loss, what they guide, and what is refused."""

import dataclasses
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import sedd_jax as sedd
from sedd_jax.data.column_statistics import ColumnSize, Label, Numbers
from sedd_jax.data.conditions import Conditions
from sedd_jax.data.tokenizer import Bytes
from sedd_jax.demo.request import RequestHandler
from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import parse
from sedd_jax.inference.build import build_family, check_names
from sedd_jax.inference.classifier import Classifier, with_classifier
from sedd_jax.inference.conditions import check_guided, told_prompt
from sedd_jax.inference.guidance import build_guided
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.classifier import ClassifierModel
from sedd_jax.model.context import Context
from sedd_jax.model.score_model import dense_model
from sedd_jax.model.sharding import AXES
from sedd_jax.train import train

TOKENS, CLASSES = 4, {"EI": 3, "IE": 5, "N": 2}
GRAPH, NOISE = graphs.uniform(TOKENS), noises.loglinear()
CONDITIONS = Conditions((Label("class", CLASSES),))
XT, SIGMA = jnp.array([[0, 3, 1], [2, 2, 3]]), jnp.array([0.5, 2.0])


def log_probs(params, tokens, sigma, key=None):
    """No linear function of the tokens, so that first-order factors are not those of neighbours."""
    one_hot = tokens if tokens.ndim == 3 else jax.nn.one_hot(tokens, TOKENS)
    weights = jnp.sin(jnp.arange(TOKENS)[:, None] * jnp.arange(1, 4)[None] + params["shift"])
    logits = jnp.square(one_hot @ weights).sum(1) / (1 + sigma[:, None])
    return jax.nn.log_softmax(logits)


JUDGE = ClassifierModel(
    lambda key: {"shift": jnp.zeros(())}, log_probs, ColumnSize("class", len(CLASSES), 1)
)
PARAMS = {"shift": jnp.array(0.3)}


def evidence_of(graph, number=0):
    """The same of one class, as a function of the user's own."""
    return lambda tokens, sigma: log_probs(PARAMS, tokens, sigma)[:, number]


def test_the_loss_is_the_cross_entropy_of_noised_tokens(smoke_config):
    settings = dataclasses.replace(smoke_config.train, t_min=0.1)
    rows, classes = 512, jnp.arange(512) % 3
    x0 = jax.random.randint(jax.random.key(0), (rows, 3), 0, TOKENS)
    objective = Classifier(GRAPH, NOISE, JUDGE).objective(settings)
    told, keys = {"condition": {"class": classes}}, jax.random.split(jax.random.key(1))
    noised = objective.draw(*keys, x0, **told)
    moved = -np.expm1(-np.asarray(noised.sigma, np.float64))  # (1 - eps) t, uniform
    np.testing.assert_allclose(np.sort(moved), np.linspace(0.1, 1, rows), atol=4 / rows)
    share = np.asarray(noised.xt != x0).mean(1)
    assert share[moved < 0.2].mean() < 0.2 < 0.6 < share[moved > 0.9].mean() < 0.85
    found = np.asarray(log_probs(PARAMS, noised.xt, noised.sigma))
    by_hand = -np.mean([found[i, i % 3] for i in range(rows)])
    loss = objective.loss(PARAMS, noised, x0, jax.random.key(2), **told)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
    assert not objective.per_token


@pytest.fixture(scope="module")
def config(tiny):
    """The settings of `tiny`, of a classifier."""
    values = dataclasses.asdict(tiny.config) | {"family": "classifier"}
    values["data"] |= {"condition": "class", "wrap": False, "crop": "blocks"}
    values["eval"] |= {"num_samples": 0, "sample_steps": 128}
    return parse(values)


@pytest.fixture(scope="module")
def judge(config, tiny):
    """An untrained classifier with random weights that fits `tiny`."""
    family = build_family(config, Bytes.vocab_size, conditions=CONDITIONS)
    shapes = jax.eval_shape(family.model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.float32(0.3 * rng.standard_normal(x.shape)), shapes)
    return TrainedModel(family, params, config, Bytes(), None, conditions=CONDITIONS, name="judge")


@pytest.mark.slow
def test_the_network_takes_ids_and_one_hot_tokens(judge):
    network, rows = judge.family.model, 3
    xt = np.random.default_rng(0).integers(0, 257, (rows, 8))
    sigma = jnp.array([0.1, 1.0, 1.0])
    applied = jax.jit(network.log_probs)
    found = applied(judge.params, xt, sigma)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
    assert found.dtype == jnp.float32 and np.ptp(found, axis=0).min() > 0.01
    one_hot = jax.nn.one_hot(xt, 257)
    np.testing.assert_allclose(applied(judge.params, one_hot, sigma), found, rtol=1e-4)
    # zero at first: all classes are equally likely
    fresh = judge.params | {"head": jax.tree.map(jnp.zeros_like, judge.params["head"])}
    np.testing.assert_allclose(applied(fresh, xt, sigma), -np.log(3), rtol=1e-6)


def apply(params, xt, sigma, key=None):
    return jnp.sin(params["scale"] * xt[..., None] + jnp.arange(TOKENS)[None, None])


SCALES = {"scale": jnp.array(2.0)}
PLAIN = dense_model(lambda key: SCALES, apply)


@pytest.mark.parametrize("kind", ["exact", "first_order"])
def test_a_trained_classifier_guides_as_the_same_function_by_its_path(kind):
    """Every row towards its own class."""
    guiding = {"guidance": 1.7, "classifier_ratios": kind}
    both = {"network": SCALES, "classifier": PARAMS}
    known = {"context": Context(condition={"class": jnp.array([2, 0])})}
    network = PLAIN._replace(
        score=lambda params, *args, **known: PLAIN.score(params["network"], *args),
        classifier=JUDGE,
    )
    guided = build_guided(GRAPH, network, Sampling(classifier="judge", **guiding))
    found, plain = guided(both, known)(XT, SIGMA).log_score, apply(SCALES, XT, SIGMA)
    for row, number in enumerate([2, 0]):
        path = f"{__name__}:evidence_of(number={number})"
        own = build_guided(GRAPH, PLAIN, Sampling(classifier=path, **guiding))(SCALES, {})
        wanted = own(XT, SIGMA).log_score[row]
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-6)
        assert np.abs(wanted - plain[row]).max() > 0.1


def test_a_class_is_told_the_classifier_in_place_of_the_network(tiny, judge):
    """Of a network that is told the same column, and another one."""
    seen = []

    def score(params, xt, sigma, key=None, lengths=None, context=None):
        seen.append((params, context))

    columns = (Numbers("activity", "number", 1, 10, 5.0, 4.0), CONDITIONS.columns[0])
    network = tiny.model._replace(score=score, conditions=tuple(it.size for it in columns))
    told = dataclasses.replace(
        tiny, family=tiny.family._replace(model=network), conditions=Conditions(columns)
    )
    guided = with_classifier(told, judge)
    assert guided.conditions == told.conditions
    assert with_classifier(told, judge).family == guided.family  # compiled once
    tree = told_prompt(guided, empty_prompt(2, 8), {"class": "N", "activity": 7.0}).condition
    guided.model.score(guided.params, XT, SIGMA, context=Context(condition=tree))
    ((params, context),) = seen
    assert params is tiny.params and set(context.condition) == {"activity"}
    assert with_classifier(tiny, judge).conditions == CONDITIONS
    assert with_classifier(tiny, judge).identity.weights != tiny.identity.weights


def altered(model, **settings):
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **settings))


def test_a_classifier_that_does_not_fit_is_refused(tiny, judge):
    def of(**parts):
        return dataclasses.replace(judge, family=judge.family._replace(**parts))

    label = Label("class", {"EI": 1, "X": 1})
    told = dataclasses.replace(tiny, conditions=Conditions((label,)))
    same = dataclasses.replace(tiny, conditions=CONDITIONS)
    always = dataclasses.replace(tiny.config.train, condition_dropout=0.0)
    few = judge.model._replace(max_length=3)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)
    cases = [
        (tiny, tiny, "is a diffusion model: train one with config.family=classifier"),
        (dataclasses.replace(tiny, family=judge.family), judge, "means nothing to diffusion"),
        (tiny, of(graph=graphs.absorbing(4)), r"other tokens \(4 there, 257 here\)"),
        (tiny, of(graph=graphs.uniform(257)), "config.graph=absorb, and this model with absorb"),
        (tiny, of(noise=noises.loglinear(0.1)), "another config.noise than this model"),
        (tiny, of(model=few), "has learned 3 positions, and rows have"),
        (tiny, dataclasses.replace(judge, mesh=mesh), "is on other devices"),
        (told, judge, "other classes of 'class' than this model"),
        (altered(same, train=always), judge, "which was always told it"),
    ]
    for model, classifier, message in cases:
        with pytest.raises(BadInput, match=message):
            with_classifier(model, classifier)
    sampling = {"num_samples": 2, "length": 8, "classifier": judge}
    for condition, message in [
        (None, "of 'class', and a row has none: give its condition"),
        ([{"class": "EI"}, {}], "every row towards a class"),
        ({"class": "X"}, "no class 'X' of 'class'; there are EI, IE, N"),
        ({"colour": "red"}, "no condition 'colour'; it has class"),
    ]:
        with pytest.raises(BadInput, match=message):
            sedd.generate(jax.random.key(0), tiny, condition=condition, **sampling)
    with pytest.raises(BadInput, match="package.module:function, or a trained classifier"):
        sedd.generate(jax.random.key(0), tiny, 2, classifier="runs/judge")
    never = with_classifier(altered(tiny, train=always), judge)  # it has no conditions of its own
    check_guided(never, never.family.sampling(guidance=2.0, classifier="judge"))


def test_a_classifier_draws_nothing_and_scores_nothing(judge):
    tokens, key = np.zeros((1, 8), int), jax.random.key(0)
    for asked in (
        functools.partial(sedd.generate, key, judge, 1),
        functools.partial(sedd.nll_bound, key, judge, tokens),
    ):
        with pytest.raises(BadInput, match="A classifier .* draws no samples and gives tokens no"):
            asked()
    with pytest.raises(BadInput, match="This model is classifier: it cannot fill holes"):
        RequestHandler(judge)


def test_settings_that_train_no_classifier_are_refused(config):
    check_names(config)
    data, evaluation = config.data, config.eval
    for changes, message in [
        ({"data": dataclasses.replace(data, condition="")}, "classes of one column.*got ''"),
        ({"data": dataclasses.replace(data, condition="a,b")}, "of one column.*got 'a,b'"),
        ({"data": dataclasses.replace(data, condition="a:number")}, "of one column"),
        ({"eval": dataclasses.replace(evaluation, num_samples=2)}, "num_samples=0, got 2"),
    ]:
        with pytest.raises(BadInput, match=message):
            check_names(dataclasses.replace(config, **changes))
    values = dataclasses.asdict(config)
    values["train"]["hold"] = "prefix"
    with pytest.raises(BadInput, match="classifier has no such setting.*config.train.hold"):
        parse(values)
    single = Conditions((Label("class", {"EI": 3}),))
    with pytest.raises(BadInput, match="have the same 'class'"):
        build_family(config, Bytes.vocab_size, conditions=single)


LETTERS = {"purine": "AG", "pyrimidine": "CT"}


@pytest.fixture(scope="module")
def runs(smoke_config, tmp_path_factory):
    """A model without conditions and a classifier of the same sequences, of 8 bases."""
    folder, draw = tmp_path_factory.mktemp("runs"), random.Random(0)
    with (folder / "x.fa").open("w") as file:
        for number in range(200):
            name = list(LETTERS)[number % 2]
            file.write(f">{number} class={name}\n{''.join(draw.choices(LETTERS[name], k=8))}\n")
    values = dataclasses.asdict(smoke_config)
    values["model"] |= {"length": 8, "num_blocks": 1, "dropout": 0.0}
    values["data"] |= {
        "corpus": str(folder / "x.fa"), "tokenizer": "dna", "vocab_size": 4, "wrap": False,
        "crop": "blocks",
    }  # fmt: skip
    values["train"] |= {"steps": 60, "batch_size": 32}
    values["optim"] |= {"learning_rate": 1e-2, "ema_decay": 0.9}
    values["eval"] |= {"batch_size": 8, "max_blocks": 16, "num_samples": 0, "sample_steps": 128}
    train(parse(values), folder / "model")
    values["family"], values["data"]["condition"] = "classifier", "class"
    for steps in (20, 40):  # resumed
        values["train"]["steps"] = steps
        train(parse(values), folder / "judge")
    train(parse(values), folder / "at_once")
    return folder


@pytest.mark.slow
def test_a_run_of_a_classifier_is_like_any_other(runs):
    resumed, at_once = (sedd.load(runs / name) for name in ("judge", "at_once"))
    assert resumed.identity.weights == at_once.identity.weights
    rows = [*map(json.loads, (runs / "judge" / "metrics.jsonl").read_text().splitlines())]
    held_out = [row for row in rows if "cross_entropy" in row]
    assert [row["step"] for row in held_out] == [10, 20, 30, 40]
    last = held_out[-1]
    assert last["cross_entropy"] < 0.6 < 0.75 < last["accuracy"]
    assert 0 < last["cross_entropy_stderr"] < 0.3
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] > 0.5 and losses[-1] < 0.5  # per sequence: log 2 at first
    card = (runs / "judge" / "README.md").read_text()
    assert "classifier of noised tokens" in card and "| step | cross entropy" in card
    assert f"--classifier={runs / 'judge'}" in card or "--classifier=judge" in card


@pytest.mark.slow
@pytest.mark.parametrize(("ratios", "least"), [("exact", 0.9), ("first_order", 0.6)])
def test_samples_are_guided_by_a_run(runs, binary, tmp_path, ratios, least):
    flags = [f"--checkpoint={runs / 'model'}", f"--classifier={runs / 'judge'}", "--steps=8"]
    flags += ["--guidance=2", f"--classifier_ratios={ratios}"]
    shares = {}
    for name in LETTERS:
        path = tmp_path / f"{name}.txt"
        told = [f"--condition=class={name}", "--num_samples=32", f"--output={path}"]
        binary.run("sample", *flags, *told)
        letters = [letter for letter in path.read_text() if letter in "ACGT"]
        shares[name] = np.isin(letters, ["A", "G"]).mean()
        assert len(letters) == 32 * 8
    assert shares["purine"] > least and shares["pyrimidine"] < 1 - least


@pytest.mark.slow
def test_a_line_of_a_job_is_guided_towards_its_own_class(runs, binary, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"template": "[MASK:8]", "condition": {"class": name}} for name in LETTERS] * 8
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [f"--checkpoint={runs / 'model'}", f"--classifier={runs / 'judge'}", "--steps=8"]
    flags += ["--guidance=2", f"--input={source}", f"--output={output}"]
    binary.run("sample", *flags)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    for name, letters in LETTERS.items():
        texts = [it["text"] for it in records if it["condition"] == {"class": name}]
        assert len(texts) == 8 and np.isin([*"".join(texts)], [*letters]).mean() > 0.8
    assert "16 drawn before" in binary.run("sample", *flags)


@pytest.mark.slow
def test_binaries_refuse_what_a_classifier_cannot(runs, binary):
    judge, model = f"--checkpoint={runs / 'judge'}", f"--checkpoint={runs / 'model'}"
    assert "draws no samples" in binary.refuse("sample", judge)
    assert "draws no samples" in binary.refuse("evaluate", judge, "--suite=heldout")
    message = binary.refuse("sample", model, f"--classifier={runs / 'judge'}")
    assert "guides every row towards a class of 'class'" in message
    message = binary.refuse("sample", model, f"--classifier={runs / 'model'}")
    assert "is a diffusion model: train one with config.family=classifier" in message
    assert "There is no folder" in binary.refuse("sample", model, "--classifier=./nowhere")
