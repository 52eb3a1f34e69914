"""Sampling from left to right: its distribution, enumerated; and a whole run of the baseline."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import sedd_jax as sedd
from sedd_jax.data.tokenizer import Bytes
from sedd_jax.diffusion.temperature import TokenFilter
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config
from sedd_jax.inference.autoregressive import build_generator
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.model.autoregressive import CausalModel
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.train import train

KEY = jax.random.key(0)
STATES, LENGTH, DRAWS = 4, 3, 20_000
MODEL = CausalModel(
    TransformerConfig(
        ModelConfig(hidden_size=8, num_blocks=1, num_heads=2, dropout=0.0, remat="none"),
        num_states=STATES,
        dtype=jnp.dtype("float32"),
        max_length=LENGTH,
    )
)


@pytest.fixture(scope="module")
def params():
    """Weights whose distributions depend on what came before."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(MODEL.init, KEY),
    )


def distribution(params, temperature, top_p):
    """The probability of every sequence: the product of its conditionals, one by one."""
    sequences = np.array(list(itertools.product(range(STATES), repeat=LENGTH)), np.int32)
    before = np.pad(sequences[:, :-1], ((0, 0), (1, 0)), constant_values=MODEL.start)
    logits = np.asarray(MODEL.apply(params, jnp.asarray(before)), np.float64)
    total = np.ones(len(sequences))
    for sequence, (row, of_row) in enumerate(zip(sequences, logits, strict=True)):
        for token, of_position in zip(row, of_row, strict=True):
            probs = np.exp(of_position / temperature)
            probs /= probs.sum()
            largest = np.argsort(-probs)
            count = 1 + np.searchsorted(np.cumsum(probs[largest]), top_p)
            probs[largest[count:]] = 0
            total[sequence] *= probs[token] / probs.sum()
    return sequences, total


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_sequences_have_the_distribution_of_their_conditionals(params, temperature, top_p):
    sequences, probs = distribution(params, temperature, top_p)
    assert probs.sum() == pytest.approx(1)
    if top_p == 1:  # and it is the one whose likelihood the model gives
        np.testing.assert_allclose(np.exp(-MODEL.nll(params, jnp.asarray(sequences))), probs, 1e-5)
    else:
        assert (probs == 0).any()
    generator = jax.jit(build_generator(MODEL, TokenFilter(temperature, top_p)))
    tokens, found = generator(params, row_keys(KEY, jnp.arange(DRAWS)), empty_prompt(DRAWS, LENGTH))
    assert found.finite.all() and (found.evaluations == LENGTH).all()
    numbers = np.asarray(tokens) @ STATES ** np.arange(LENGTH)[::-1]
    counts = np.bincount(numbers, minlength=len(probs))
    assert not counts[probs == 0].any()
    expected, counts = DRAWS * probs[probs > 0], counts[probs > 0]
    rare = expected < 5
    if rare.any():  # one class of them, as the test needs
        expected = np.append(expected[~rare], expected[rare].sum())
        counts = np.append(counts[~rare], counts[rare].sum())
    assert len(counts) > 10
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert statistic < chi2.isf(1e-4, len(counts) - 1)


@pytest.fixture(scope="module")
def config(smoke_config):
    """The baseline at the smoke config's size."""
    default = Config()
    return dataclasses.replace(
        smoke_config,
        family="autoregressive",
        model=dataclasses.replace(smoke_config.model, cond_dim=default.model.cond_dim),
        eval=dataclasses.replace(smoke_config.eval, sample_steps=default.eval.sample_steps),
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A finished run of it.

    Compiled quickly, so nothing here may be the first to ask for `smoke_run`, whose bits are held
    against runs that are not.
    """
    folder = tmp_path_factory.mktemp("baseline") / "run"
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(config):
    """Random weights: what is asked here does not need trained ones."""
    family, rng = build_family(config, Bytes.vocab_size), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(family.model.init, KEY),
    )
    return TrainedModel(family, params, config, Bytes(), None)


@pytest.mark.slow
def test_a_run_leaves_exact_figures_and_samples(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    figures = {row["step"]: row for row in rows if "nll" in row}
    assert list(losses) == [5, 10, 15, 20] and list(figures) == [10, 20]
    assert losses[20] < losses[5] < np.log(257) + 0.1
    assert figures[20]["nll"] < figures[10]["nll"]
    assert {"nll_stderr", "perplexity", "bits_per_byte"} <= figures[20].keys()
    assert not any("bound" in row for row in rows)
    assert [row["step"] for row in rows if "sample_0" in row] == [20]


def test_the_bound_is_exact(checkpoint):
    tokens = np.random.default_rng(0).integers(0, 257, (4, 12)).astype(np.int32)
    bound = sedd.nll_bound(KEY, checkpoint, tokens, batch_size=2)
    assert bound.nats.shape == (1, 4) and bound.tokens.tolist() == [12] * 4
    wanted = jax.jit(checkpoint.model.nll)(checkpoint.params, jnp.asarray(tokens))
    np.testing.assert_allclose(bound.nats[0], wanted, rtol=1e-5)
    assert bound.stderr == 0 < bound.data_stderr and bound.by_t == []
    with pytest.raises(BadInput, match=r"needs ids in \[0, 257\)"):
        sedd.nll_bound(KEY, checkpoint, tokens + 257)
    with pytest.raises(BadInput, match="at most 32 tokens"):
        sedd.nll_bound(KEY, checkpoint, np.zeros((1, 33), np.int32))


def test_a_row_depends_on_its_number_alone_and_prefixes_come_back(checkpoint):
    prefix = checkpoint.tokenizer.encode("The ")
    three, five = (
        sedd.generate(
            KEY,
            checkpoint,
            count,
            16,
            prompt=sedd.prefix_suffix(prefix, prefix[:0], count, 16),
            batch_size=batch,
        )[0]
        for count, batch in ((3, 3), (5, 2))
    )
    np.testing.assert_array_equal(three, five[:3])
    assert five.shape == (5, 16) and (five[:, :4] == prefix).all()
    assert len({row.tobytes() for row in five}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or more, and finite, got -1.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"length": 33}, "length must be at most 32"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"prompt": "suffix"}, "must be a prefix: it cannot fill in"),
    ],
)
def test_bad_settings_are_named(checkpoint, options, message):
    if "prompt" in options:
        suffix = np.ones(1, np.int32)
        options = {"prompt": sedd.prefix_suffix(suffix[:0], suffix, 1, 32)}
    with pytest.raises(BadInput, match=message):
        sedd.generate(KEY, checkpoint, **{"num_samples": 1, **options})


def test_progress_and_its_end_at_numbers_that_are_not_finite(checkpoint):
    told = []

    def generate(checkpoint):
        options = {"batch_size": 2, "progress": lambda *done: told.append(done)}
        return sedd.generate(KEY, checkpoint, 3, 16, **options)

    generate(checkpoint)
    assert told == [(1, 2), (2, 2)]
    params = jax.tree.map(lambda x: x * np.nan, checkpoint.params)
    with pytest.raises(FloatingPointError, match=r"not finite in rows \[0 1\]: its weights"):
        generate(dataclasses.replace(checkpoint, params=params))
    assert len(told) == 2


def test_numbers_of_rows_that_cannot_be_are_refused(checkpoint):
    with pytest.raises(BadInput, match="rows must be 2 whole numbers"):
        sedd.generate(KEY, checkpoint, 2, 16, rows=np.array([-1, 2]))


def test_settings_and_answers_of_the_other_family_are_refused(checkpoint):
    with pytest.raises(BadInput, match="steps means nothing to autoregressive models"):
        sedd.generate(KEY, checkpoint, 1, steps=4)
    with pytest.raises(BadInput, match="trace is for diffusion models"):
        sedd.generate(KEY, checkpoint, 1, trace=True)
    with pytest.raises(BadInput, match="autoregressive"):
        checkpoint.log_score(np.zeros((1, 2), np.int32), np.ones(1, np.float32))


def test_the_former_name_of_its_sampler_warns(checkpoint):
    with pytest.warns(DeprecationWarning, match=r"sedd\.generate"):
        tokens = sedd.generate_autoregressive(KEY, checkpoint, 2)
    np.testing.assert_array_equal(tokens, sedd.generate(KEY, checkpoint, 2)[0])


@pytest.mark.slow
def test_the_binary_draws_from_it(run, binary, tmp_path):
    path = tmp_path / "out.jsonl"
    flags = ("--num_samples=2", "--length=12", "--prefix=The ", "--temperature=0.7", "--top_p=0.9")
    binary.run("sample", f"--checkpoint={run}", f"--output={path}", *flags)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        assert (row["temperature"], row["top_p"], len(row["tokens"])) == (0.7, 0.9, 12)
        assert row["text"].startswith("The ") and "sampler" not in row
