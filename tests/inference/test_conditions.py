"""Networks that are told conditions, and how users give them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import sedd_jax as sedd
from sedd_jax.data.column_statistics import Label, Numbers
from sedd_jax.data.conditions import Conditions
from sedd_jax.data.tokenizer import Bytes
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import parse
from sedd_jax.experiment.state import TrainState
from sedd_jax.inference.build import build_family
from sedd_jax.inference.conditions import check_guided, told_prompt
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.stream import generate_stream
from sedd_jax.jobs.input import read_rows
from sedd_jax.model.conditions import condition_shapes, dropped
from sedd_jax.model.context import Context
from sedd_jax.model.sharding import AXES, param_layouts
from sedd_jax.training.initial_weights import with_weights_of

CONDITIONS = Conditions(
    (Label("class", {"EI": 3, "IE": 5, "N": 2}), Numbers("activity", "number", 1, 10, 5.0, 4.0))
)
ROWS = 3
SIGMA = np.full(ROWS, 0.7, np.float32)


@pytest.fixture(scope="module")
def told(tiny):
    """A model like `tiny` that is told a class and a number."""
    data = dataclasses.replace(
        tiny.config.data, condition="class,activity:number", wrap=False, crop="blocks"
    )
    config = parse(dataclasses.asdict(dataclasses.replace(tiny.config, data=data)))
    family = build_family(config, Bytes.vocab_size, conditions=CONDITIONS)
    initial = family.model.init(jax.random.key(0))["condition"]
    rng = np.random.default_rng(1)
    condition = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), initial)
    params = tiny.params | {"condition": condition}
    return dataclasses.replace(
        tiny, family=family, params=params, config=config, conditions=CONDITIONS
    )


@pytest.fixture(scope="module")
def log_score(told):
    """(params, values of rows or None) to log-scores of the same noised tokens."""
    xt = np.random.default_rng(0).integers(0, 257, (ROWS, 8))
    apply = jax.jit(told.model.apply)

    def scores(params, values):
        condition = None if values is None else CONDITIONS.encode(values)
        return np.asarray(apply(params, xt, SIGMA, context=Context(condition=condition)))

    return scores


TOLD = [{"class": "EI", "activity": 6.0}, {"class": "N"}, {}]


def test_a_conditional_network_starts_as_the_unconditional_one(told, tiny, log_score):
    """The weights of a key are the same, but for embeddings, whose last layer is zero."""
    ours, theirs = (model.init(jax.random.key(3)) for model in (told.model, tiny.model))
    embeddings = ours.pop("condition")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    fresh = told.params | {"condition": embeddings}
    np.testing.assert_array_equal(log_score(fresh, TOLD), log_score(fresh, [{}] * ROWS))


def test_what_is_told_of_a_row_changes_its_scores_alone(told, log_score):
    nothing, some = log_score(told.params, [{}] * ROWS), log_score(told.params, TOLD)
    differs = np.abs(some - nothing).max((1, 2)) > 1e-3
    assert differs.tolist() == [True, True, False]
    np.testing.assert_allclose(log_score(told.params, None), nothing, rtol=1e-6, atol=1e-6)


def test_conditions_are_dropped_together_and_one_by_one():
    rows, rate = 20_000, 0.2
    tree = {"class": jnp.ones(rows, jnp.int32), "activity": jnp.zeros((rows, 2))}
    found = dropped(jax.random.key(0), tree, rate)
    gone = np.array([found["class"] < 0, jnp.isnan(found["activity"]).all(1)])
    assert (jnp.isnan(found["activity"]).any(1) == gone[1]).all()
    error = 3 / np.sqrt(rows)
    np.testing.assert_allclose(gone.mean(1), 1 - (1 - rate) ** 2, atol=error)
    np.testing.assert_allclose(gone.all(0).mean(), rate + (1 - rate) * rate**2, atol=error)
    (single,) = dropped(jax.random.key(1), {"class": tree["class"]}, rate).values()
    np.testing.assert_allclose((single < 0).mean(), rate, atol=error)


def test_every_parameter_has_a_layout_and_every_leaf_a_shape(told):
    shapes = jax.eval_shape(told.model.init, jax.random.key(0))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)
    assert any("condition" in path for path in param_layouts(shapes, mesh))
    tree = CONDITIONS.encode(TOLD)
    wanted = condition_shapes(CONDITIONS.sizes, ROWS)
    assert {name: (x.shape, x.dtype) for name, x in tree.items()} == {
        name: (x.shape, x.dtype) for name, x in wanted.items()
    }


@pytest.mark.slow
def test_a_bound_is_of_what_is_told(told):
    tokens = np.random.default_rng(2).integers(0, 257, (4, 8))
    options = {"draws": 2, "batch_size": 4}
    rows = [{"class": "EI"}, {"class": "N"}, {"class": "EI"}, {}]
    found = sedd.nll_bound(jax.random.key(0), told, tokens, condition=rows, **options).nats
    ei = sedd.nll_bound(jax.random.key(0), told, tokens, condition={"class": "EI"}, **options).nats
    same = np.isclose(found, ei, rtol=1e-6).all(0)
    assert same.tolist() == [True, False, True, False]


@pytest.mark.slow
def test_a_sample_is_told_the_condition_of_its_row(told):
    options = {"steps": 4, "length": 8}
    rows = [{"class": "EI"}, {"class": "N"}]
    mixed, _ = sedd.generate(jax.random.key(0), told, 2, condition=rows, **options)
    same, _ = sedd.generate(jax.random.key(0), told, 2, condition={"class": "EI"}, **options)
    nothing, _ = sedd.generate(jax.random.key(0), told, 2, **options)
    np.testing.assert_array_equal(mixed[0], same[0])
    assert (mixed[1] != same[1]).any() and (nothing != same).any(1).all()


@pytest.mark.slow
def test_guidance_0_draws_as_if_nothing_were_told(told):
    options = {"steps": 4, "length": 8}
    key, ei = jax.random.key(0), {"class": "EI"}
    nothing, _ = sedd.generate(key, told, 2, **options)
    unguided, _ = sedd.generate(key, told, 2, condition=ei, guidance=0.0, **options)
    np.testing.assert_array_equal(unguided, nothing)
    guided, _ = sedd.generate(key, told, 2, condition=ei, guidance=3.0, **options)
    assert (guided != nothing).any()


def test_guidance_that_nothing_can_guide_is_refused(told, tiny):
    train = dataclasses.replace(told.config.train, condition_dropout=0.0)
    config = dataclasses.replace(told.config, train=train)
    always_told = dataclasses.replace(told, config=config)
    nothing = "guidance=2 has nothing to guide by: give every row a condition"
    key, prompt, settings = jax.random.key(0), empty_prompt(2, 8), {"guidance": 2.0}
    for model, message in [
        (tiny, nothing),
        (always_told, "train with config.train.condition_dropout above 0"),
    ]:
        check_guided(model, model.family.sampling())
        with pytest.raises(BadInput, match=message):
            check_guided(model, model.family.sampling(**settings))
    for condition in (None, {}, [{}, {"activity": 1.0}]):
        with pytest.raises(BadInput, match=nothing):
            sedd.generate(key, told, prompt=prompt, condition=condition, **settings)
    with pytest.raises(BadInput, match=nothing):
        generate_stream(key, told, prompt, **settings)
    encoded = told_prompt(told, prompt, [{"class": "EI"}, {"activity": 1.0}]).condition
    check_guided(told, told.family.sampling(**settings), encoded)


def test_conditions_that_do_not_fit_are_refused(told, tiny):
    prompt = empty_prompt(2, 8)
    for model, condition, message in [
        (tiny, {"class": "EI"}, "has no conditions, and was asked for some"),
        (told, {"class": "X"}, "no class 'X' of 'class'; there are EI, IE, N"),
        (told, {"colour": 1}, "no condition 'colour'; it has class, activity"),
        (told, {"activity": "nan"}, "no finite number in 'activity'"),
        (told, [{}], "conditions of 1 rows, and 2 rows"),
    ]:
        with pytest.raises(BadInput, match=message):
            told_prompt(model, prompt, condition)
    encoded = told_prompt(told, prompt, {"class": "EI"})
    with pytest.raises(BadInput, match="has conditions already"):
        told_prompt(told, encoded, {"class": "EI"})
    with pytest.raises(BadInput, match="has no conditions"):
        told_prompt(tiny, encoded)
    with pytest.raises(BadInput, match="an array for each of class, activity"):
        told_prompt(told, prompt._replace(condition={"class": np.zeros(2, int)}))
    with pytest.raises(BadInput, match="known to the data alone"):
        build_family(told.config, Bytes.vocab_size)


def test_weights_of_another_model_start_a_conditional_run(told, tiny):
    state = TrainState(0, told.model.init(jax.random.key(5)), None, None, None, None)
    began = with_weights_of(tiny, state, told.config, Bytes(), CONDITIONS)
    assert began.params == tiny.params | {"condition": state.params["condition"]}
    again = with_weights_of(told, state, told.config, Bytes(), CONDITIONS)
    assert again.params == told.params
    other = Conditions((Label("class", {"EI": 1, "X": 1}), CONDITIONS.columns[1]))
    for conditions in (other, None):
        with pytest.raises(BadInput, match="is told other conditions: class:label"):
            with_weights_of(told, state, told.config, Bytes(), conditions)


def test_a_line_of_a_job_has_its_own_condition(told, tiny, tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [
        {"template": "[MASK:4]", "condition": {"class": "IE"}},
        {"template": "[MASK:4]"},
        {"template": "[MASK:4]", "condition": {"class": "X"}},
        {"template": "[MASK:4]", "condition": "IE"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, unknown, wrong = read_rows(path, told)
    assert first.condition == {"class": "IE", "activity": None}
    assert second.condition == {"class": None, "activity": None} and second.error is None
    assert "no class 'X'" in unknown.error and "must be an object" in wrong.error
    guided, unguided, *_ = read_rows(path, told, told.family.sampling(guidance=2.0))
    assert guided.error is None and "nothing to guide by" in unguided.error
    refused, plain, *_ = read_rows(path, tiny)
    assert "has no conditions" in refused.error and plain.condition == {}
