"""The proposal changes what is drawn and never what is averaged."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, kstest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.importance import guess_proposal, on_grid, plain_proposal, propose
from sedd_jax.diffusion.objective import dwdse_loss
from sedd_jax.diffusion.score import DenseScore
from tests.skewed import skewed

VOCAB_SIZE, LENGTH, T_MIN, DRAWS = 5, 6, 1e-3, 100_000
LOGLINEAR, GEOMETRIC = noises.loglinear(), noises.geometric(1e-4, 20.0)


@pytest.fixture(
    params=[
        ("absorb", LOGLINEAR),
        ("absorb", GEOMETRIC),
        ("uniform", GEOMETRIC),
        ("hybrid", LOGLINEAR),
    ],
    ids=["absorb-loglinear", "absorb-geometric", "uniform-geometric", "hybrid-loglinear"],
    scope="module",
)
def case(request):
    name, noise = request.param
    return graphs.GRAPHS[name](VOCAB_SIZE), noise


@functools.cache
def _draw(graph, noise, plain):
    """DRAWS draws for x0 = 0 ... 0, at quantiles spread evenly."""
    proposal = plain_proposal(T_MIN) if plain else guess_proposal(graph, noise, T_MIN)
    unit = (jnp.arange(DRAWS) + 0.5) / DRAWS
    x0 = jnp.zeros((DRAWS, LENGTH), jnp.int32)
    call = jax.jit(lambda key: propose(key, proposal, graph, noise, unit, x0))
    return jax.tree.map(np.asarray, call(jax.random.key(0)))


def _changed_prob(graph, noise, t):
    """The probability that a position differs from x0 at time t."""
    moved = -np.expm1(-np.float64(noise.sigma(jnp.asarray(t))))
    return moved * (1 - float(graph.limit[0]))


def test_the_plain_proposal_is_algorithm_1(case):
    graph, noise = case
    draw = _draw(graph, noise, plain=True)
    np.testing.assert_allclose(draw.weight, 1, rtol=1e-6)
    assert kstest((draw.t - T_MIN) / (1 - T_MIN), "uniform").pvalue > 0.01
    for low, high in [(0.1, 0.2), (0.5, 0.6), (0.85, 0.9)]:
        inside = (draw.t > low) & (draw.t < high)
        expected = binom.pmf(
            np.arange(LENGTH + 1)[:, None], LENGTH, _changed_prob(graph, noise, draw.t[inside])
        ).mean(1)
        counts = np.bincount((draw.xt[inside] != 0).sum(1), minlength=LENGTH + 1)
        error = counts / inside.sum() - expected
        assert np.all(np.abs(error) < 5 * np.sqrt(expected / inside.sum()) + 1e-6)


def test_a_row_with_held_tokens_is_drawn_as_a_row_of_the_rest():
    graph, rows = graphs.uniform(VOCAB_SIZE), 64
    proposal = guess_proposal(graph, GEOMETRIC, T_MIN)
    x0 = jax.random.randint(jax.random.key(1), (rows, LENGTH), 0, VOCAB_SIZE)
    unit = (jnp.arange(rows) + 0.5) / rows
    lengths = jnp.arange(rows) % LENGTH + 1
    held = jnp.arange(LENGTH)[None] >= lengths[:, None]

    def draw(**known):
        return propose(jax.random.key(0), proposal, graph, GEOMETRIC, unit, x0, **known)

    # a held suffix is padding, to the bit
    short, rest = draw(lengths=lengths), draw(held=held)
    for got, wanted in zip(rest[:3], short[:3], strict=True):
        np.testing.assert_array_equal(got, wanted)
    # and with any other tokens held the weights are still those of as many free ones
    other = draw(held=held[:, ::-1])
    np.testing.assert_array_equal(other.xt[held[:, ::-1]], x0[held[:, ::-1]])
    assert (other.xt != x0).any(0).all()
    everything = draw(held=jnp.ones_like(held))
    np.testing.assert_array_equal(everything.xt, x0)
    assert not everything.weight.any()


def test_weighted_draws_with_held_tokens_have_the_mean_of_the_rest(case):
    """The mean of weight * the number of changed positions, over many rows, by arithmetic."""
    graph, noise = case
    held = jnp.arange(LENGTH) % 3 == 1
    proposal = guess_proposal(graph, noise, T_MIN)
    unit = (jnp.arange(DRAWS) + 0.5) / DRAWS
    x0 = jnp.zeros((DRAWS, LENGTH), jnp.int32)
    draw = propose(
        jax.random.key(0), proposal, graph, noise, unit, x0,
        held=jnp.broadcast_to(held[None], x0.shape),
    )  # fmt: skip
    fine = np.linspace(T_MIN, 1, 20_001)
    changed = _changed_prob(graph, noise, (fine[1:] + fine[:-1]) / 2)
    terms = np.asarray(draw.weight) * (np.asarray(draw.xt) != 0).sum(1)
    error = 5 * terms.std() / np.sqrt(DRAWS)
    assert abs(terms.mean() - changed.mean() * int((~held).sum())) < error


def test_weighted_draws_of_a_guess_have_the_distribution_of_algorithm_1(case):
    """Weighted frequencies of (range of t, number of changed positions), each to 5 errors."""
    graph, noise = case
    draw = _draw(graph, noise, plain=False)
    assert draw.t.min() >= np.float32(T_MIN) and draw.t.max() <= 1
    fine = np.linspace(T_MIN, 1, 20_001)
    fine = (fine[1:] + fine[:-1]) / 2
    changed = (draw.xt != 0).sum(1)
    edges = np.linspace(T_MIN, 1, 9)
    for low, high in itertools.pairwise(edges):
        times = fine[(fine > low) & (fine < high)]
        distribution = binom.pmf(
            np.arange(LENGTH + 1)[:, None], LENGTH, _changed_prob(graph, noise, times)
        )
        inside = (draw.t > low) & (draw.t < high)
        # without a change the absorbing loss is 0, and nothing is drawn
        for count in range(graph.absorbs, LENGTH + 1):
            weights = np.where(inside & (changed == count), draw.weight, 0)
            expected = distribution[count].sum() / len(fine)
            stderr = weights.std() / np.sqrt(DRAWS)
            assert abs(weights.mean() - expected) < 5 * stderr + 1e-5, (low, count)


@pytest.mark.parametrize("position", range(LENGTH))
def test_every_position_moves_alike_and_apart(position):
    graph, noise = graphs.absorbing(VOCAB_SIZE), LOGLINEAR
    draw = _draw(graph, noise, plain=False)
    moved = draw.xt == graph.mask_id
    assert moved[:, position].mean() == pytest.approx(moved.mean(), abs=0.01)
    other = (position + 1) % LENGTH
    # given t, positions are independent under the weights: here with p = t
    inside = (draw.t > 0.49) & (draw.t < 0.51)
    both = np.sum((draw.weight * moved[:, position] * moved[:, other])[inside])
    one = np.sum((draw.weight * moved[:, position])[inside])
    assert both / one == pytest.approx(0.5, abs=0.08)


def test_a_padded_row_is_drawn_as_the_row_alone():
    graph, noise = graphs.uniform(VOCAB_SIZE), GEOMETRIC
    proposal = guess_proposal(graph, noise, T_MIN)

    def draw(keys, x0, lengths=None):
        def row(key, unit, x0, length):
            rows = jax.tree.map(lambda x: x[None], (unit, x0, length))
            return propose(key, proposal, graph, noise, *rows)

        unit = (jnp.arange(len(x0)) + 0.5) / len(x0)
        return jax.jit(jax.vmap(row))(keys, unit, x0, lengths)

    keys = jax.random.split(jax.random.key(0), 200)
    x0 = jnp.zeros((200, LENGTH), jnp.int32)
    padded = draw(keys, jnp.pad(x0, ((0, 0), (0, 3)), constant_values=1), jnp.full(200, LENGTH))
    alone = draw(keys, x0)
    np.testing.assert_array_equal(padded.t, alone.t)
    np.testing.assert_allclose(padded.weight, alone.weight, rtol=1e-6)
    np.testing.assert_array_equal(padded.xt[..., :LENGTH], alone.xt)
    assert (padded.xt[..., LENGTH:] == 1).all()
    assert (alone.xt != 0).any((0, 1)).all()  # every real position moves in some row


def test_the_weighted_loss_of_the_guess_itself_hardly_varies(case):
    graph, noise = case
    draw = _draw(graph, noise, plain=False)
    x0 = jnp.zeros((DRAWS, LENGTH), jnp.int32)

    def guess(xt, sigma):
        log_probs = jnp.log(jax.vmap(graph.noised_guess)(sigma))
        here = jnp.take_along_axis(log_probs, xt, axis=-1)
        return DenseScore(xt, log_probs[:, None] - here[..., None])

    loss = jax.jit(lambda t, xt: dwdse_loss(graph, noise, guess, t, xt, x0))
    weighted = draw.weight * np.asarray(loss(draw.t, draw.xt))
    # within a cell of t the guess is not followed, and under the uniform graph a redrawn token may
    # be the old one
    assert weighted.std() / weighted.mean() < (0.3 if graph.absorbs else 0.8)
    draw = _draw(graph, noise, plain=True)
    plain = np.asarray(loss(draw.t, draw.xt))
    assert weighted.mean() == pytest.approx(plain.mean(), rel=0.05)
    assert plain.std() / plain.mean() > 3 * weighted.std() / weighted.mean()


def test_the_guess_loses_log_n_per_mask():
    proposal = guess_proposal(graphs.absorbing(VOCAB_SIZE), LOGLINEAR, T_MIN)
    middle = (proposal.edges[1:] + proposal.edges[:-1]) / 2
    # dsigma / expm1(sigma) = 1 / t
    np.testing.assert_allclose(proposal.moved, np.log(VOCAB_SIZE) / middle, rtol=2e-4)
    np.testing.assert_array_equal(proposal.other, 0)
    np.testing.assert_allclose(proposal.density, 1, rtol=2e-4)


def test_the_guess_on_the_uniform_graph():
    graph = graphs.uniform(VOCAB_SIZE)
    proposal = guess_proposal(graph, GEOMETRIC, T_MIN)
    cell = 80
    t = (proposal.edges[cell] + proposal.edges[cell + 1]) / 2
    sigma, dsigma = float(GEOMETRIC.sigma(t)), float(GEOMETRIC.dsigma(t))
    r = np.expm1(sigma) / (np.expm1(sigma) + VOCAB_SIZE)  # p(y | x0) / p(x0 | x0)

    def term(ratio):  # of a score of 1
        return 1 + ratio * (np.log(ratio) - 1)

    same = (VOCAB_SIZE - 1) * term(r) / VOCAB_SIZE
    other = term(1 / r) / VOCAB_SIZE
    redrawn = same / VOCAB_SIZE + other * (1 - 1 / VOCAB_SIZE)
    assert proposal.other[cell] == pytest.approx(dsigma * same, rel=1e-3)
    assert proposal.moved[cell] == pytest.approx(dsigma * redrawn, rel=1e-3)
    assert proposal.density.min() >= 0.05 * (1 - 1e-6)
    assert proposal.density.mean() == pytest.approx(1, rel=1e-5)


def test_the_proposal_of_any_limit_has_no_bias():
    """The likeliest token stands for all of them, which costs variance alone."""
    graph = skewed(0.0, 0.6, 0.1, 0.1, 0.2, mask=True)
    weight = _draw(graph, LOGLINEAR, plain=False).weight
    assert weight.std() > 0.3 and abs(weight.mean() - 1) < 5 * weight.std() / np.sqrt(DRAWS)


def test_a_row_of_large_noise_has_finite_weights():
    """Where the loss of the guess is below rounding, moves are drawn as they come."""
    draw = _draw(graphs.uniform(VOCAB_SIZE), GEOMETRIC, plain=False)
    assert np.all(np.isfinite(draw.weight)) and draw.weight.max() < 1000


@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_weights_at_the_size_of_a_real_vocabulary(name):
    graph = graphs.GRAPHS[name](50_257)
    noise = GEOMETRIC if name == "uniform" else LOGLINEAR
    proposal = guess_proposal(graph, noise, T_MIN)
    unit = (jnp.arange(4096) + 0.5) / 4096
    x0 = jnp.zeros((4096, 64), jnp.int32)
    draw = jax.jit(lambda key: propose(key, proposal, graph, noise, unit, x0))(jax.random.key(0))
    weight = np.asarray(draw.weight)
    assert np.all(np.isfinite(weight)) and weight.min() >= 0
    if name == "uniform":
        assert abs(weight.mean() - 1) < 5 * weight.std() / np.sqrt(len(weight))


@pytest.mark.parametrize("guess", [False, True])
def test_discrete_times_are_drawn_and_weighted_as_equally_likely_ones(guess):
    """The mean over every time i/T of f(t, moved positions), one at a time."""
    graph, noise, times = graphs.uniform(VOCAB_SIZE), GEOMETRIC, 7
    continuous = guess_proposal(graph, noise, T_MIN) if guess else plain_proposal(T_MIN)
    proposal = on_grid(continuous, times)
    unit = (jnp.arange(DRAWS) + 0.5) / DRAWS
    x0 = jnp.zeros((DRAWS, LENGTH), jnp.int32)
    call = jax.jit(lambda key: propose(key, proposal, graph, noise, unit, x0))
    draw = jax.tree.map(np.asarray, call(jax.random.key(0)))
    index = np.round(draw.t * times).astype(int)
    np.testing.assert_array_equal(draw.t, np.float32(index / times))
    assert set(index) == {*range(1, times + 1)}
    shares = np.bincount(index)[1:] / DRAWS
    assert (np.ptp(shares) > 0.1) == guess
    changed = (draw.xt != 0).sum(1)
    for i in range(1, times + 1):
        binomial = binom.pmf(np.arange(LENGTH + 1), LENGTH, _changed_prob(graph, noise, i / times))
        for count in range(LENGTH + 1):
            weights = np.where((index == i) & (changed == count), draw.weight, 0)
            stderr = weights.std() / np.sqrt(DRAWS)
            assert abs(weights.mean() - binomial[count] / times) < 5 * stderr + 1e-5, (i, count)
