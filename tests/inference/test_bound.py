import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import xlogy

import sedd_jax as sedd
from sedd_jax.diffusion.score_entropy import prior_kl
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config
from sedd_jax.inference.batches import batch_rows
from sedd_jax.inference.likelihood import NLLEstimate, estimate_nll, split_by_t
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.row_passes import RowPasses
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.score_model import dense_model, score_model
from sedd_jax.verification.exact.given import exact_told_model
from sedd_jax.verification.exact.reverse_process import ReverseProcess, base_distribution
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import Space

VOCAB_SIZE, LENGTH = 5, 4


def constant_model(graph):
    """Scores of a network that knows nothing: uniform over tokens, whatever its input."""

    def apply(params, xt, sigma, key=None):
        del params, key
        shape = (*xt.shape, graph.num_states)
        return jnp.broadcast_to(
            -jnp.log(jnp.expm1(sigma))[:, None, None] - jnp.log(VOCAB_SIZE), shape
        )

    return apply


KNOWS_NOTHING = ScoreBased(
    sedd.graph.absorbing(VOCAB_SIZE),
    sedd.noise.loglinear(),
    dense_model(dict, constant_model(sedd.graph.absorbing(VOCAB_SIZE))),
)


def estimate(tokens, seed, batch_size):
    """As the evaluator of a run estimates the bound."""
    rows = batch_rows(len(tokens), batch_size, 1)
    passes = RowPasses(
        KNOWS_NOTHING, None, {}, rows, lambda rows: (tokens[rows], {"lengths": None})
    )
    return estimate_nll(passes, jax.random.key(seed), np.full(len(tokens), LENGTH), t_min=1e-3)


def test_a_uniform_guess_has_the_entropy_of_a_uniform_guess():
    """Exact: log V per token, of those noised at t = 1. The proposal leaves no variance."""
    tokens = jax.random.randint(jax.random.key(0), (40, LENGTH), 0, VOCAB_SIZE)
    bound = estimate(tokens, 1, batch_size=16)
    assert bound.nats.shape == (1, 40)
    assert bound.nats_per_token == pytest.approx((1 - 1e-3) * np.log(VOCAB_SIZE), rel=1e-3)
    assert bound.stderr < 1e-2
    assert bound.perplexity == pytest.approx(np.exp(bound.nats_per_token))


def test_the_estimate_is_a_function_of_its_key_and_not_of_the_batches():
    tokens = jnp.zeros((8, LENGTH), jnp.int32)
    one = estimate(tokens, 0, batch_size=4).nats
    np.testing.assert_allclose(one, estimate(tokens, 0, batch_size=3).nats, rtol=1e-6)
    assert not np.array_equal(one, estimate(tokens, 1, batch_size=4).nats)


def test_figures_per_token():
    """Two sequences of 1 and 3 tokens, two draws; every number by hand."""
    drawn = NLLEstimate(np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([1, 3]), "low-discrepancy")
    assert drawn.nats_per_token == 1.5  # (2 + 4) / 4
    assert drawn.perplexity == pytest.approx(np.exp(1.5))
    # of a variance in proportion to tokens, 1 - (1 / 4)^2 - (3 / 4)^2 = 3 / 8 is left
    assert drawn.data_stderr == pytest.approx(np.sqrt((0.5**2 + 0.5**2) / (3 / 8)) / 4)
    # draws are at 3 / 4 and 9 / 4 nats a token; what is left of the differences is +-1/4
    assert drawn.stderr == pytest.approx(np.sqrt(4 * 0.25**2 / (1 / 2 * 3 / 8)) / (2 * 4))
    assert drawn.perplexity_stderr == pytest.approx(np.exp(1.5) * drawn.stderr)
    # of a single sequence the draws alone: their variance is 2, over 2 draws
    alone = NLLEstimate(drawn.nats[:, :1], drawn.tokens[:1], "low-discrepancy")
    assert alone.stderr == pytest.approx(1) and np.isnan(
        dataclasses.replace(alone, times="quadrature").stderr
    )
    one = dataclasses.replace(drawn, nats=drawn.nats[:1])
    assert one.stderr == one.data_stderr > 0
    exact = dataclasses.replace(one, times="exact")
    assert exact.stderr == exact.perplexity_stderr == 0 < exact.data_stderr


@pytest.mark.parametrize("tokens", [(8, 8), (32, 5), (32, 32, 32, 5, 1)])
def test_stated_errors_are_those_of_repetition(tokens):
    """Rows whose nats vary in proportion to their tokens, around nodes of their own means."""
    tokens, draws, means = np.array(tokens), 6, np.linspace(1, 4, 6)[:, None]
    noise = np.random.default_rng(0).standard_normal((4000, draws, len(tokens)))
    bounds = [
        NLLEstimate(means * tokens + row * np.sqrt(tokens), tokens, "quadrature") for row in noise
    ]
    spread = np.std([bound.nats_per_token for bound in bounds])
    for name in ("stderr", "data_stderr"):
        stated = np.sqrt(np.mean([getattr(bound, name) ** 2 for bound in bounds]))
        assert spread / stated == pytest.approx(1, abs=0.04)


def test_what_cannot_be_told_is_nan():
    single = NLLEstimate(np.ones((1, 1)), np.ones(1, int), "low-discrepancy")
    assert np.isnan([single.stderr, single.data_stderr]).all()
    denied = NLLEstimate(np.array([[1.0, np.inf], [1.0, 2.0]]), np.ones(2, int), "low-discrepancy")
    assert denied.nats_per_token == denied.perplexity == np.inf
    assert np.isnan([denied.stderr, denied.data_stderr, denied.perplexity_stderr]).all()


def test_parts_of_t():
    nats, t = np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[0.2, 0.201], [0.999, 1.0]])
    parts = split_by_t(nats, t, np.array([1, 3]), t_min=0.2)
    assert len(parts) == 16
    assert parts[0] == pytest.approx((0.2, 0.25, 3 / 8))
    assert parts[-1] == pytest.approx((0.95, 1, 9 / 8))
    assert sum(part for _, _, part in parts) == pytest.approx(1.5)


NOISE = sedd.noise.geometric(1e-2, 6.0)
SIZES = ModelConfig(
    hidden_size=16, cond_dim=8, num_blocks=1, num_heads=2, dropout=0.0, remat="none"
)


@functools.cache
def small(graph):
    """A network with random weights over so few sequences that its bound can be summed up."""
    graph = sedd.graph.GRAPHS[graph](3 if graph == "absorb" else 4)
    sizes = dataclasses.replace(SIZES, scale_by_sigma=graph.mask_id is not None)
    model = score_model(TransformerConfig(sizes, 4, jnp.dtype("float32"), max_length=5))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.15 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    config = Config()
    train = dataclasses.replace(config.train, t_min=0.02)
    model_config = dataclasses.replace(config.model, length=5, learned_positions=True)
    config = dataclasses.replace(config, train=train, model=model_config)
    return TrainedModel(ScoreBased(graph, NOISE, model), params, config, None, None)


@functools.cache
def text(graph):
    """Sequences of 2 and of 3 tokens, their lengths, and their bound in both conventions."""
    checkpoint = small(graph)
    rng, parts = np.random.default_rng(0), []
    for length in (2, 3):
        space = Space(checkpoint.graph, length)
        chosen = rng.choice(len(space.clean), 8, replace=False)
        base = base_distribution(space, NOISE, space.uniform_data())
        process = ReverseProcess(checkpoint.family, checkpoint.params, space)
        terms = process.bound(base, 0.02, 20)
        states = np.pad(space.states[space.clean[chosen]], ((0, 0), (0, 3 - length)))
        rows = (states, np.full(8, length), terms.diffusion[chosen] / 0.98, terms.total[chosen])
        parts.append(rows)
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


GRAPHS = pytest.mark.parametrize(
    "graph", ["absorb", pytest.param("uniform", marks=pytest.mark.slow)]
)


@pytest.mark.parametrize(
    ("graph", "draws", "most"),
    [("absorb", 60, 0.02), pytest.param("uniform", 200, 0.03, marks=pytest.mark.slow)],
)
def test_the_bound_of_padded_rows_is_the_exact_one(graph, draws, most):
    checkpoint = small(graph)
    tokens, lengths, published, total = text(graph)

    def check(wanted, most, **options):
        bound = sedd.nll_bound(
            jax.random.key(0), checkpoint, tokens, lengths=lengths, batch_size=16, **options
        )
        error = bound.nats_per_token - wanted.sum() / lengths.sum()
        assert abs(error) < 3 * bound.stderr
        assert bound.stderr < most * bound.nats_per_token
        return bound

    drawn = check(published, most, draws=draws)
    nodes = check(published, 0.05, draws=min(draws, 100), times="quadrature")
    complete = check(total, most, draws=draws, complete=True)
    for bound in (drawn, nodes):
        assert sum(part for *_, part in bound.by_t) == pytest.approx(bound.nats_per_token)
    integral = 0.98 * published.sum() / lengths.sum()
    parts = [part for *_, part in complete.by_t]
    assert abs(sum(parts) - integral) < 4 * drawn.stderr
    early = [part for _, high, part in nodes.by_t if high <= 0.51]
    assert sum(early) == pytest.approx(sum(parts[:8]) / 0.98, abs=4 * nodes.stderr)


def test_the_final_step_starts_at_t_min():
    """Its mean over noised rows is the sum over all of them, at a time when many are noised."""
    checkpoint, t_min, draws = small("absorb"), 0.5, 400
    space = Space(checkpoint.graph, 2)
    base = base_distribution(space, NOISE, space.uniform_data())
    terms = ReverseProcess(checkpoint.family, checkpoint.params, space).bound(base, t_min, 2)
    rows = np.repeat(space.states[space.clean], draws, axis=0)
    loss = jax.jit(checkpoint.family.reconstruction_loss(t_min))
    nats = np.float64(loss(checkpoint.params, jax.random.split(jax.random.key(0), len(rows)), rows))
    error = nats.mean() - terms.reconstruction.mean()
    assert abs(error) < 4 * nats.std() / np.sqrt(len(rows))
    assert nats.std() / np.sqrt(len(rows)) < 0.05 * nats.mean()


@GRAPHS
@pytest.mark.parametrize(
    ("times", "draws", "least"), [("low-discrepancy", 4, 0.45), ("quadrature", 16, 0.3)]
)
def test_another_seed_moves_it_by_its_stated_error(graph, times, draws, least):
    checkpoint = small(graph)
    tokens, lengths, *_ = text(graph)
    bounds = [
        sedd.nll_bound(
            jax.random.key(seed), checkpoint, tokens, lengths=lengths, draws=draws, times=times
        )
        for seed in range(50)
    ]
    spread = np.std([bound.nats_per_token for bound in bounds], ddof=1)
    stated = np.sqrt(np.mean([bound.stderr**2 for bound in bounds]))
    assert least < spread / stated < 1.2


def test_neither_batches_nor_padding_move_it():
    checkpoint, told = small("absorb"), []
    tokens, lengths, *_ = text("absorb")

    def nats(tokens, **options):
        return sedd.nll_bound(
            jax.random.key(0),
            checkpoint,
            tokens,
            lengths=lengths,
            draws=2,
            complete=True,
            **options,
        ).nats

    wider = np.pad(tokens, ((0, 0), (0, 2)), constant_values=-7)
    moved = nats(wider, batch_size=5, progress=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(moved, nats(tokens), rtol=1e-5)
    assert told == [(done, 16) for done in range(1, 17)]  # 4 batches, 2 draws, 2 terms


def test_weights_that_are_not_numbers_are_named():
    checkpoint = small("absorb")
    params = jax.tree.map(lambda x: x * jnp.nan, checkpoint.params)
    broken = dataclasses.replace(checkpoint, params=params)
    with pytest.raises(
        FloatingPointError, match=r"not finite in rows 0, 1, 2, 3, 4, \.\.\.: its w"
    ):
        sedd.nll_bound(jax.random.key(0), broken, np.zeros((9, 3), int))


def test_a_denied_token_makes_a_complete_bound_infinite():
    """Under the uniform graph a score far below the others is a denial at the final step."""
    checkpoint = small("uniform")

    def apply(params, xt, sigma, key=None):
        del params, sigma, key
        return jnp.broadcast_to(jnp.where(jnp.arange(4) == 0, -9.0, 2.0), (*xt.shape, 4))

    components = checkpoint.family._replace(model=dense_model(dict, apply))
    denies = dataclasses.replace(checkpoint, family=components, params={})
    tokens = np.zeros((64, 2), int)
    bound = sedd.nll_bound(jax.random.key(0), denies, tokens, complete=True)
    assert np.isinf(bound.nats).any() and bound.nats_per_token == np.inf
    assert np.isfinite(sum(part for *_, part in bound.by_t))
    assert np.isfinite(sedd.nll_bound(jax.random.key(0), denies, tokens).nats).all()


@pytest.mark.parametrize(
    ("graph", "model"),
    [
        (sedd.graph.uniform(2), exact_told_model),
        (sedd.graph.absorbing(2), exact_model),  # not told: an unmasked token is a clean one
    ],
    ids=["uniform", "absorb"],
)
def test_with_true_scores_the_bound_given_tokens_is_the_likelihood_of_the_rest(graph, model):
    """Every sequence with every pattern of given tokens, by Bayes' rule."""
    space = Space(graph, 3)
    data = space.random_data(2)
    family = ScoreBased(graph, sedd.noise.loglinear(), model(space))
    checkpoint = TrainedModel(family, exact_params(data), Config(), None, None)
    clean = space.states[space.clean]
    patterns = np.array(list(np.ndindex(2, 2, 2)), bool)[:-1]  # something is left
    tokens, held = np.tile(clean, (len(patterns), 1)), np.repeat(patterns, len(clean), axis=0)
    options = {"draws": 64, "batch_size": 64, "complete": True}
    found = sedd.nll_bound(jax.random.key(0), checkpoint, tokens, held=held, **options)
    np.testing.assert_array_equal(found.tokens, (~held).sum(1))
    agrees = ((tokens[:, None] == clean[None]) | ~held[:, None]).all(-1)
    joint = np.tile(data[space.clean], len(patterns))
    error = found.nats.std(0) / 8
    off = found.nats.mean(0) - (np.log(agrees @ data[space.clean]) - np.log(joint))
    assert np.abs(off / (error + 2e-3)).max() < 5
    assert error.max() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [3]}, "one length from 1 to 3 for each of the 2 rows"),
        ({"lengths": [3, 4]}, "one length from 1 to 3"),
        ({"lengths": [0, 3]}, "one length from 1 to 3"),
        ({"lengths": [1.5, 3]}, "one length from 1 to 3"),
        ({"held": [[True, False]]}, r"held must be booleans \[2, 3\], one for each token"),
        ({"held": np.ones((2, 3), bool)}, "held leaves no token to score"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"times": "even"}, "times must be one of low-discrepancy, quadrature, got 'even'"),
        ({"times": "quadrature"}, "at least 2 nodes: set draws"),
    ],
)
def test_bad_settings_of_the_bound_are_named(options, message):
    with pytest.raises(BadInput, match=message):
        sedd.nll_bound(jax.random.key(0), small("absorb"), np.zeros((2, 3), int), **options)


def test_nll_bound_of_a_trained_run(smoke_run):
    checkpoint = sedd.load(smoke_run)
    tokens = np.full((6, 32), ord("e"), np.int32)
    bound = sedd.nll_bound(jax.random.key(0), checkpoint, tokens, batch_size=4)
    assert bound.nats.shape == (1, 6)
    assert 0 < bound.nats_per_token < np.log(258)
    with pytest.raises(BadInput, match=r"needs ids in \[0, 257\)"):
        sedd.nll_bound(jax.random.key(0), checkpoint, tokens * 0 + 257)
    listed = sedd.nll_bound(jax.random.key(0), checkpoint, tokens.tolist(), batch_size=4)
    np.testing.assert_array_equal(listed.nats, bound.nats)
    for other in (tokens[:0], tokens[:2, :0], tokens[0], tokens * 0.5, []):
        with pytest.raises(BadInput, match=r"needs integers \[N, L\], at least one"):
            sedd.nll_bound(jax.random.key(0), checkpoint, other)


def test_the_complete_bound_adds_the_prior_and_the_final_step(smoke_run):
    checkpoint = sedd.load(smoke_run)
    tokens = np.full((64, 32), ord("e"), np.int32)
    key = jax.random.key(0)
    published, complete = (
        sedd.nll_bound(key, checkpoint, tokens, batch_size=64, complete=flag).nats
        for flag in (False, True)
    )
    # a share exp(-sigma(1)) = 1e-3 of the tokens is kept at t = 1, one of 257 by a guess
    prior = 32 * 1e-3 * np.log(257)
    final = complete - (1 - 1e-3) * published - prior
    assert np.all(final > -1e-2)
    # 32 tokens are masked at t = 1e-3 with probability 1e-3 each, and cost a few nats then
    assert np.mean(final > 1) < 0.2
    assert 0 <= final.mean() < 0.5


@pytest.mark.parametrize(("graph", "base"), [("absorb", 5), ("uniform", 5)])
def test_the_prior_term(graph, base):
    """By its definition, from the distribution of a noised token and of a noised uniform guess."""
    Q = np.full((5, 5), 0.2) - np.eye(5)
    if graph == "absorb":
        Q = np.pad(-np.eye(5), ((0, 1), (0, 1)))
        Q[-1, :-1] = 1
    kernel = expm(0.7 * Q)
    distribution, guess = kernel[:, 0], kernel[:, :base].mean(1)
    expected = np.sum(xlogy(distribution, distribution) - xlogy(distribution, guess))
    got = prior_kl(sedd.graph.GRAPHS[graph](5), jnp.float32(0.7))
    assert float(got) == pytest.approx(expected, rel=1e-5)
