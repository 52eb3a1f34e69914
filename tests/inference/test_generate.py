import dataclasses

import chex
import jax
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.build import build_family
from sedd_jax.inference.prompt import Prompt, _token_ids, rows_and_length
from sedd_jax.model.score_model import dense_model

KEY = jax.random.key(0)
STEPS = 6


@pytest.fixture(scope="module")
def checkpoint(smoke_run):
    return sedd.load(smoke_run)


def generate(checkpoint, num_samples, length=16, **options):
    return sedd.generate(KEY, checkpoint, num_samples, length, steps=STEPS, **options)


@pytest.fixture(scope="module")
def five(checkpoint):
    return generate(checkpoint, 5, batch_size=2, trace=True)


def test_samples_are_tokens_without_a_mask(five, checkpoint):
    tokens, diagnostics = five
    assert tokens.shape == (5, 16)
    assert tokens.min() >= 0
    assert tokens.max() < checkpoint.tokenizer.vocab_size
    assert (diagnostics.evaluations == STEPS + 1).all()
    assert diagnostics.changed.shape == (STEPS + 1, 5)
    # every position leaves the mask exactly once
    np.testing.assert_array_equal(diagnostics.changed.sum(0), np.full(5, 16))


def test_the_trace_goes_from_masks_to_the_sample(five, checkpoint):
    tokens, diagnostics = five
    trace = diagnostics.trace
    assert trace.shape == (STEPS + 2, 5, 16)
    assert (trace[0] == checkpoint.graph.mask_id).all()
    np.testing.assert_array_equal(trace[-1], tokens)
    np.testing.assert_array_equal((trace[1:] != trace[:-1]).sum(-1), diagnostics.changed)


def test_a_row_depends_on_its_number_alone(five, checkpoint):
    again, _ = generate(checkpoint, 3, batch_size=3)
    np.testing.assert_array_equal(again, five[0][:3])


@pytest.mark.parametrize(
    "settings",
    [{"steps": STEPS}, pytest.param({"sampler": "first_hitting"}, marks=pytest.mark.slow)],
)
def test_a_row_does_not_depend_on_the_width_of_its_array(checkpoint, settings):
    """Nor on what stands in the padding."""

    def drawn(width):
        prompt = sedd.Prompt(
            np.full((1, width), 7, np.int32), np.arange(width)[None] < 3, np.array([13], np.int32)
        )
        tokens, _ = sedd.generate(KEY, checkpoint, prompt=prompt, **settings)
        return tokens[0, :13]

    np.testing.assert_array_equal(drawn(13), drawn(16))
    assert (drawn(13)[3:] != 7).any()


def test_progress_is_told_after_every_batch(five, checkpoint):
    told = []
    generate(checkpoint, 7, batch_size=3, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_no_batch_is_drawn_after_numbers_that_are_not_finite(five, checkpoint):
    broken = dataclasses.replace(
        checkpoint, params=jax.tree.map(lambda x: x * np.nan, checkpoint.params)
    )
    told = []
    with pytest.raises(FloatingPointError, match=r"not finite in rows \[0 1 2\]: its weights"):
        generate(broken, 7, batch_size=3, progress=lambda *done: told.append(done))
    assert told == []


@pytest.mark.slow
def test_eight_devices_draw_what_one_draws(five, smoke_run):
    spread = sedd.load(smoke_run, mesh=MeshConfig(data=4, fsdp=2))
    tokens, diagnostics = generate(spread, 5, batch_size=2)  # of eight rows three are cut off
    np.testing.assert_array_equal(tokens, five[0])
    np.testing.assert_array_equal(diagnostics.changed, five[1].changed)


HITTING = [{"steps": None}, {"steps": 4, "temperature": 0.5, "top_p": 0.9}]


@pytest.mark.slow
@pytest.mark.parametrize("settings", HITTING, ids=["one a call", "grid, sharp"])
def test_first_hitting_calls_where_something_happens(checkpoint, smoke_run, settings):
    tokens = np.tile(np.arange(12, dtype=np.int32), (3, 1))
    held = np.zeros((3, 12), bool)
    held[1, 3:10] = True
    prompt = Prompt(tokens, held, np.array([12, 12, 7], np.int32))
    options = {"prompt": prompt, "sampler": "first_hitting", "trace": True, **settings}
    drawn, diagnostics = sedd.generate(KEY, checkpoint, 3, 12, batch_size=2, **options)
    free = np.array([12, 5, 7])
    np.testing.assert_array_equal(drawn[held], tokens[held])
    assert (drawn[2, 7:] == 0).all() and drawn.max() < checkpoint.graph.mask_id
    np.testing.assert_array_equal(diagnostics.changed.sum(0), free)
    most = 12 if settings["steps"] is None else 5
    assert diagnostics.changed.shape == (most, 3) and diagnostics.trace.shape == (most + 1, 3, 12)
    np.testing.assert_array_equal((diagnostics.changed > 0).sum(0), diagnostics.evaluations)
    if settings["steps"] is None:
        np.testing.assert_array_equal(diagnostics.evaluations, free)
    masked = (diagnostics.trace == checkpoint.graph.mask_id).sum(-1)
    np.testing.assert_array_equal(masked[0], free)
    np.testing.assert_array_equal(-np.diff(masked, axis=0), diagnostics.changed)
    np.testing.assert_array_equal(diagnostics.trace[-1], drawn)
    if settings["steps"] is None:
        return
    # the same on eight devices, in a batch of other rows
    spread = sedd.load(smoke_run, mesh=MeshConfig(data=4, fsdp=2))
    again, found = sedd.generate(KEY, spread, 3, 12, batch_size=3, **options)
    np.testing.assert_array_equal(again, drawn)
    np.testing.assert_array_equal(found.evaluations, diagnostics.evaluations)


def test_first_hitting_needs_a_mask(checkpoint):
    config = dataclasses.replace(checkpoint.config, graph="uniform")
    components = build_family(config, checkpoint.tokenizer.vocab_size)
    other = dataclasses.replace(checkpoint, family=components, config=config)
    with pytest.raises(BadInput, match="'first_hitting' needs the absorbing graph"):
        sedd.generate(KEY, other, 1, sampler="first_hitting")


def test_a_tempered_conditional_is_that_of_a_network_of_sharper_scores(toy):
    model = toy("uniform")
    network = model.family.model
    twice = dense_model(network.init, lambda *args, **options: 2 * network.apply(*args, **options))
    sharp = dataclasses.replace(model, family=model.family._replace(model=twice))
    tokens, _ = generate(model, 2, temperature=0.5, tempering="conditional")
    np.testing.assert_array_equal(tokens, generate(sharp, 2)[0])


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (
            "absorb",
            {},
            "tempering='conditional' is for the other graphs: under the absorbing",
        ),
        (
            "uniform",
            {"temperature": 0.0},
            "temperature=0 means nothing with tempering='con",
        ),
        ("uniform", {"tempering": "all"}, "tempering must be one of token, conditional, got 'all'"),
    ],
)
def test_tempering_without_meaning_is_refused(toy, graph, options, message):
    with pytest.raises(BadInput, match=message):
        generate(toy(graph), 1, **{"tempering": "conditional"} | options)


def test_rows_differ(five):
    assert len({row.tobytes() for row in five[0]}) == 5


@pytest.mark.parametrize("sampler", ["tweedie", pytest.param("euler", marks=pytest.mark.slow)])
def test_held_positions_come_back(checkpoint, sampler):
    prefix, suffix = (checkpoint.tokenizer.encode(text) for text in ("The ", "end."))
    prompt = sedd.prefix_suffix(prefix, suffix, 2, 16)
    tokens, diagnostics = generate(checkpoint, 2, prompt=prompt, sampler=sampler, trace=True)
    for row in tokens:
        text = checkpoint.tokenizer.decode(row)
        assert text.startswith("The ")
        assert text.endswith("end.")
    assert (diagnostics.trace[:, :, :4] == prefix).all()


def test_log_score_is_float32_and_zero_at_the_current_token(checkpoint):
    xt = np.array([[1, 257, 2]], np.int32)
    log_score = checkpoint.log_score(xt, np.array([0.5], np.float32))
    chex.assert_shape(log_score, (1, 3, 258))
    chex.assert_type(log_score, np.float32)
    np.testing.assert_array_equal(np.take_along_axis(log_score, xt[..., None], -1), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2**20 + 1}, "steps must be at most 1,048,576"),
        ({"length": 0}, "length must be at least 1"),
        (
            {"sampler": "heun"},
            "sampler must be one of euler, tweedie, .*'heun'",
        ),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_p": 2.0}, "top_p must be in"),
        ({"precision": "low"}, "precision means nothing to diffusion models"),
    ],
)
def test_bad_settings_are_named(checkpoint, options, message):
    with pytest.raises(BadInput, match=message):
        sedd.generate(KEY, checkpoint, **{"num_samples": 1, **options})


@pytest.mark.parametrize("rows", [[7, 8, 9], [7], [-1, 2], [0, 2**32], [0.0, 1.0], 3, [[0], [1]]])
def test_numbers_of_rows_that_cannot_be_are_refused(checkpoint, rows):
    with pytest.raises(BadInput, match=r"rows must be 2 whole numbers in \[0, 2\^32\), one for"):
        generate(checkpoint, 2, rows=np.array(rows))


def test_a_prompt_of_masks_is_refused(checkpoint):
    masks = np.full(2, checkpoint.graph.mask_id, np.int32)
    with pytest.raises(BadInput, match=r"The prompt holds ids outside \[0, 257\)"):
        generate(checkpoint, 1, prompt=sedd.prefix_suffix(masks, masks[:0], 1, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [[1, 2]]}, "prompt.tokens must be an array of whole .* 2 axes, got a list; np"),
        ({"tokens": np.ones((1, 2))}, r"prompt.tokens must be .*, got float64 \(1, 2\)"),
        ({"held": np.array([[0, 1]])}, "prompt.held must be an array of booleans .* got int64"),
        ({"held": np.array([True, False])}, r"prompt.held must be .* 2 axes, got bool \(2,\)"),
        ({"lengths": [2]}, "prompt.lengths must be .* with 1 axes, got a list"),
    ],
)
def test_a_prompt_is_of_arrays(checkpoint, changes, message):
    prompt = Prompt(np.ones((1, 2), int), np.array([[True, False]]))._replace(**changes)
    with pytest.raises(BadInput, match=message):
        sedd.generate(KEY, checkpoint, prompt=prompt)


def test_what_is_no_prompt_is_named():
    with pytest.raises(BadInput, match="prompt is a str: give what sedd.templates, sedd.prefix"):
        rows_and_length("Once")
    for ids in ("Once", [1.5], [[1]]):
        with pytest.raises(BadInput, match="prefix must be token ids, got .* sedd.templates"):
            _token_ids("prefix", ids)


def test_ids_that_the_graph_lacks_have_no_scores(checkpoint):
    for wrong in (-1, 258):
        with pytest.raises(BadInput, match=f"ids from .*{wrong}.*, the graph's are in .0, 258."):
            checkpoint.log_score(np.array([[0, wrong]]), np.ones(1, np.float32))


@pytest.mark.parametrize("texts", ["a[MASK:1]", []])
def test_templates_are_a_list_of_texts(checkpoint, texts):
    with pytest.raises(BadInput, match="templates takes a list of texts with holes, .*, got"):
        sedd.templates(checkpoint, texts)


def test_prompts_that_do_not_fit_are_refused(checkpoint):
    with pytest.raises(BadInput, match="The prompt has 16 tokens and the length is 16"):
        sedd.prefix_suffix(np.zeros(10, np.int32), np.zeros(6, np.int32), 1, 16)
    with pytest.raises(BadInput, match=r"prompt.tokens has shape \(1, 8\), need"):
        prompt = sedd.prefix_suffix(np.zeros(2, np.int32), np.zeros(2, np.int32), 1, 8)
        generate(checkpoint, 1, 16, prompt=prompt)


@pytest.mark.slow
def test_learned_positions_end_at_the_trained_length(checkpoint):
    config = checkpoint.config
    model = dataclasses.replace(config.model, learned_positions=True)
    config = dataclasses.replace(config, model=model)
    components = build_family(config, checkpoint.tokenizer.vocab_size)
    params = components.model.init(KEY)
    learned = dataclasses.replace(checkpoint, family=components, params=params, config=config)
    longer = model.length + 1
    drawn, _ = sedd.generate(KEY, learned, 1, longer, steps=1)  # by windows
    assert drawn.shape == (1, longer)
    tokens = np.zeros((2, longer), np.int32)
    with pytest.raises(BadInput, match=f"at most {model.length} tokens"):
        sedd.nll_bound(KEY, learned, tokens)
    with pytest.raises(ValueError, match="positions, got"):
        learned.log_score(tokens, np.ones(2, np.float32))
