"""Samples with given tokens: their distance from Bayes' rule, by number of steps.

Under the absorbing graph clamping is exact: as for free samples, only the discretisation is left,
and nothing at all where a single position is free. Under the uniform graph it is not: there the
claim is on many particles, weighted by the given tokens (in the limit of infinitely many).
"""

import itertools

import jax
import numpy as np

from sedd_jax.diffusion.noise import Noise
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.verification.exact.reverse_process import exact_process
from sedd_jax.verification.exact.space import Distribution, Space, total_variation
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.samplers import sample_frequencies

NUM_SAMPLES, NUM_PARTICLES = 4096, 16


def check_conditioning(
    space: Space, schedules: dict[str, Noise], data: Distribution, *, t_min: float, max_steps: int
) -> Section:
    """Returns the distances to Bayes' rule with true scores, and the claims on them.

    Args:
      space: all sequences.
      schedules: noise schedules by name, "loglinear" among them.
      data: distribution of the data; the given tokens are those of its likeliest sequence.
      t_min: the time at which the steps end.
      max_steps: a power of 2; the steps are 1, 4, 16, ..., and the last two powers of 2.
    """
    powers = [2**i for i in range(max_steps.bit_length())]
    steps = sorted({*powers[::2], *powers[-2:]})
    likeliest = space.states[np.argmax(data)]
    patterns = {"first": [0], "all but the last": range(space.length - 1)}
    givens = {name: {i: int(likeliest[i]) for i in where} for name, where in patterns.items()}
    absorbing = space.graph.absorbs
    methods = {rule: (rule, "clamp") for rule in ("euler", "tweedie")}
    if not absorbing:
        methods["tweedie, weighted particles"] = ("tweedie", "resample")
    tables, claims, curves = [], [], {}
    for (name, noise), (pattern, given) in itertools.product(schedules.items(), givens.items()):
        distances = {
            method: _distances(space, noise, data, given, steps, t_min, *settings)
            for method, settings in methods.items()
        }
        rows = list(zip(steps, *distances.values(), strict=True))
        title = f"Distance of the samples from Bayes' rule, {pattern} given, {name} noise"
        tables.append(Table(title, ("steps", *(f"TV, {method}" for method in methods)), rows))
        if name == "loglinear":  # all schedules in one plot cannot be told apart
            curves |= {
                f"{method}, {pattern} given": (steps, distances[method])
                for method, (rule, _) in methods.items()
                if rule == "tweedie"
            }
        case = f"{name}, {pattern} given"
        if not absorbing:
            particles = distances["tweedie, weighted particles"]
            claims.append(_first_order(f"{case}: many particles", [particles]))
        elif space.length - len(given) > 1:
            claims.append(_first_order(f"{case}, any sampler", distances.values()))
        else:
            worst = np.max(list(distances.values()))
            statement = f"{case}: TV to Bayes, any steps and sampler"
            claims.append(Claim(statement, worst, "<=", 1e-10))
    plots = []
    if not absorbing:
        case = space, schedules["loglinear"], data, givens["all but the last"]
        claims.append(_few_particles(*case, t_min))
        plots = [Plot("given", "reverse steps", "total variation to Bayes", curves)]
    return Section("Samples with given tokens", claims, tables, plots)


def _distances(space, noise, data, given, steps, t_min, sampler, conditioning):
    """Total variation to Bayes' rule for every number of steps."""
    bayes, settings = space.conditional(data, given), {"given": given, "t_min": t_min}
    settings |= {"sampler": sampler, "conditioning": conditioning}

    def distance(count):
        process = exact_process(space, noise, data)
        return total_variation(process.sampler_distribution(steps=count, **settings), bayes)

    with jax.enable_x64(True):
        return [distance(count) for count in steps]


def _first_order(case, curves):
    """Twice the steps halve the distances."""
    ratios = np.array([distances[-2] / distances[-1] for distances in curves])
    statement = f"{case}: |TV to Bayes at half the steps / TV - 2|"
    return Claim(statement, np.max(np.abs(ratios - 2)), "<=", 0.2)


def _few_particles(space, noise, data, given, t_min):
    """A few particles are much nearer to Bayes' rule than clamping is."""

    def distance(**settings):
        settings |= {"steps": 64, "t_min": t_min, "num_samples": NUM_SAMPLES, "given": given}
        frequencies = sample_frequencies(exact_process(space, noise, data), **settings)
        return total_variation(frequencies, space.conditional(data, given))

    chance = np.sqrt(space.graph.num_tokens / NUM_SAMPLES) / 2  # TV of exact samples to Bayes' rule
    return Claim(
        f"{NUM_SAMPLES} samples of {NUM_PARTICLES} particles, 64 steps, all but the last given: TV "
        "to Bayes, at most 0.3 that of clamping and chance",
        distance(conditioning="resample", particles=NUM_PARTICLES),
        "<=",
        0.3 * distance() + chance,
    )
