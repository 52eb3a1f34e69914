"""What held tokens are on the way, and what that gives, where distributions can be enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.sampler import Clamp, Process, SamplerInfo, SamplerState
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.conditioning import ParticleState, Resampled, systematic
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.verification.exact.reverse_process import exact_process
from sedd_jax.verification.exact.scores import exact_model, exact_params, tabulated
from sedd_jax.verification.exact.space import Space, total_variation

LEVEL = 1e-4  # of a chi-square test; keys are fixed, so a pass stays a pass
ROWS, T_MIN = 4096, 1e-3
SPACE = Space(graphs.uniform(3), 3)
DATA = SPACE.random_data(0)
COMPONENTS = ScoreBased(SPACE.graph, noises.loglinear(), tabulated(exact_model(SPACE), SPACE))
GIVEN = {0: 1, 2: 0}


def drawn(given, rows=ROWS, **settings):
    """Frequencies of samples with true scores, and what happened."""
    held = np.isin(np.arange(3), list(given))
    tokens = np.array([given.get(i, 0) for i in range(3)], np.int32)
    prompt = Prompt(np.tile(tokens, (rows, 1)), np.tile(held, (rows, 1)))
    generator = jax.jit(COMPONENTS.generator(Sampling(**settings), t_min=T_MIN))
    keys = row_keys(jax.random.key(0), jnp.arange(rows))
    tokens, diagnostics = generator(exact_params(DATA), keys, prompt)
    counts = np.bincount(SPACE.index(np.asarray(tokens)), minlength=len(SPACE.states))
    return counts / rows, diagnostics


def fits(frequencies, distribution, rows=ROWS):
    """Whether a chi-square test finds no difference; what is impossible must not be drawn."""
    counts, expected = rows * frequencies, rows * distribution
    assert counts[expected == 0].sum() == 0
    often = expected > 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    return chisquare(observed, expected * rows / expected.sum()).pvalue > LEVEL


def exact_distribution(given, conditioning, steps=8):
    options = {"steps": steps, "sampler": "tweedie", "t_min": T_MIN}
    process = exact_process(SPACE, COMPONENTS.noise, DATA)
    return process.sampler_distribution(given=given, conditioning=conditioning, **options)


def test_samples_follow_the_distribution_by_enumeration():
    frequencies, diagnostics = drawn(GIVEN, steps=8)
    assert fits(frequencies, exact_distribution(GIVEN, "clamp"))
    assert (diagnostics.evaluations == 9).all()
    assert not fits(frequencies, exact_distribution(GIVEN, "resample"))  # so that the test can fail


def test_the_distribution_of_many_copies_is_bayes_to_first_order():
    bayes = SPACE.conditional(DATA, GIVEN)
    with jax.enable_x64(True):
        found = [
            total_variation(exact_distribution(GIVEN, "resample", steps), bayes)
            for steps in (2, 8, 32)
        ]
    # by a program of its own: the distribution times 0 where held tokens differ, after every step
    np.testing.assert_allclose(found, [0.2427, 0.0603, 0.0143], atol=6e-5)


@pytest.mark.slow
def test_one_weighed_copy_is_clamping_and_many_have_the_distribution_of_many():
    one, _ = drawn(GIVEN, steps=8, conditioning="resample")
    assert fits(one, exact_distribution(GIVEN, "clamp"))
    distribution = exact_distribution(GIVEN, "resample")
    error = 5 * np.sqrt(0.25 / ROWS)  # standard errors of the share of an event
    assert total_variation(one, distribution) > 0.1
    some, diagnostics = drawn(GIVEN, steps=8, conditioning="resample", particles=8)
    assert (diagnostics.evaluations == 8 * 9).all() and diagnostics.finite.all()
    assert total_variation(some, distribution) < total_variation(one, distribution) / 4 + error


@pytest.mark.slow
def test_samples_of_very_many_copies_fit_the_distribution_of_many():
    distribution = exact_distribution(GIVEN, "resample")
    many, _ = drawn(GIVEN, 2048, steps=8, conditioning="resample", particles=64)
    assert fits(many, distribution, 2048) and not fits(many, SPACE.conditional(DATA, GIVEN), 2048)


def test_with_nothing_held_copies_are_the_unconditional_sampler():
    frequencies, _ = drawn({}, steps=8, conditioning="resample", particles=2)
    assert fits(frequencies, exact_distribution({}, "clamp"))


def test_distributions_of_other_ways_are_of_the_uniform_graph():
    space = Space(graphs.absorbing(2), 2)
    process = exact_process(space, noises.loglinear(), space.uniform_data())
    options = {"steps": 1, "sampler": "tweedie", "t_min": T_MIN, "given": {0: 1}}
    with pytest.raises(ValueError, match="'resample' is for graphs that do not absorb"):
        process.sampler_distribution(conditioning="resample", **options)


class Told(Tweedie):
    """Changes nothing, and gives the copies of a row the log-probabilities that it is told."""

    def __init__(self, *log_prob):
        self._log_prob = jnp.array(log_prob)

    def step(self, keys, process, state):
        zeros, ones = jnp.zeros(len(keys), jnp.int32), jnp.ones(len(keys), bool)
        info = SamplerInfo(zeros, ones, jnp.zeros(len(keys)), ones, self._log_prob)
        return SamplerState(state.xt, state.step + 1), info


@pytest.mark.slow
def test_weights_start_anew_where_copies_are_resampled():
    copies = jnp.arange(4, dtype=jnp.int32)[None, :, None]
    state = ParticleState(copies[:, 0], jnp.int32(0), copies, jnp.zeros((1, 4)))
    nothing = Clamp(copies[:, 0], jnp.zeros((1, 1), bool))
    process = Process(None, None, None, nothing, T_MIN, 8, log_prob_at=~nothing.held)
    keys = jax.random.split(jax.random.key(0), 1)
    kept, _ = Resampled(Told(-1.0, -1.0, -1.0, -1.5), 4).step(keys, process, state)
    np.testing.assert_array_equal(kept.copies, copies)
    np.testing.assert_array_equal(kept.log_weight, [[-1, -1, -1, -1.5]])
    resampled, _ = Resampled(Told(-30.0, -30.0, 0.0, -30.0), 4).step(keys, process, state)
    np.testing.assert_array_equal(resampled.copies, np.full((1, 4, 1), 2))
    np.testing.assert_array_equal(resampled.log_weight, np.zeros((1, 4)))


def test_systematic_draws_every_index_as_often_as_its_weight_says():
    weights = jnp.array([0.05, 0.45, 0.0, 0.3, 0.2])
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(systematic, (0, None)))(keys, weights))
    counts = (drawn[..., None] == np.arange(5)).sum(1)
    expected = 5 * np.asarray(weights)
    assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.04)  # 5 of the standard errors


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_the_largest_uniform_points_at_a_copy_with_weight(count, monkeypatch):
    largest = np.nextafter(np.float32(1), np.float32(0))
    monkeypatch.setattr(categorical, "uniform", lambda key, shape: jnp.full(shape, largest))
    for weighty in (count, count - 1):  # the last copy without weight is never drawn
        weights = jnp.asarray(np.arange(count) < weighty, jnp.float32) / weighty
        drawn = np.asarray(systematic(jax.random.key(0), weights))
        assert (drawn >= 0).all() and (drawn < weighty).all()


@pytest.mark.parametrize(
    ("graph", "settings", "message"),
    [
        ("uniform", {"conditioning": "bayes"}, "conditioning must be one of clamp, resample"),
        ("uniform", {"particles": 0}, "particles must be at least 1"),
        ("uniform", {"particles": 4}, "particles=4 are for conditioning='resample' alone"),
        (
            "uniform",
            {"conditioning": "resample", "sampler": "euler"},
            "conditioning='resample' needs sampler='tweedie'",
        ),
        ("absorb", {"conditioning": "resample"}, "under the absorbing graph.*'clamp' is exact"),
    ],
)
def test_settings_that_cannot_be_are_refused(graph, settings, message):
    with pytest.raises(BadInput, match=message):
        Sampling(**settings).check(graphs.GRAPHS[graph](3))
