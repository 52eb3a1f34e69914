"""Samples with given tokens: how far their law is from Bayes' rule, for every number of steps.

Under the absorbing graph clamping is exact: as for free samples, only the discretisation is left,
and nothing at all where a single position is free. Under the uniform graph it is not: there the
same is claimed of many copies, weighed by the given tokens (their law for infinitely many).
"""

import itertools
from collections.abc import Mapping

import numpy as np

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.reverse import SAMPLERS
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.experiment.build import Components
from sedd_jax.verification.exact.law import sampler_law
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import Law, Space, float64, total_variation
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.samplers import draw

NUM_DRAWN, NUM_COPIES = 4096, 16


def check_conditioning(
    space: Space, schedules: dict[str, Noise], data: Law, *, t_min: float, max_steps: int
) -> Section:
    """Returns the distances to Bayes' rule with true scores, and the claims on them.

    Args:
      space: all sequences.
      schedules: noise schedules by name.
      data: law of the data; the given tokens are those of its likeliest sequence.
      t_min: the time at which the steps end.
      max_steps: a power of 2; laws are computed for 1, 4, 16, ..., and the last two powers of 2.
    """
    powers = [2**i for i in range(max_steps.bit_length())]
    steps = sorted({*powers[::2], *powers[-2:]})
    likeliest = space.states[np.argmax(data)]
    patterns = {"first": [0], "all but the last": range(space.length - 1)}
    givens = {name: {i: int(likeliest[i]) for i in where} for name, where in patterns.items()}
    absorbing = space.graph.mask_id is not None
    ways = list(itertools.product(SAMPLERS, ["clamp"] if absorbing else ["clamp", "renoise"]))
    ways += [] if absorbing else [("tweedie", "resample")]
    tables, claims, curves = [], [], {}
    for (name, noise), (pattern, given) in itertools.product(schedules.items(), givens.items()):
        components = Components(space.graph, noise, exact_model(space))
        found = _distances(components, space, data, given, steps, ways, t_min)
        names = tuple(f"TV, {rule}" + ("" if absorbing else f", {how}") for rule, how in ways)
        rows = [(count, *(found[way][i] for way in ways)) for i, count in enumerate(steps)]
        title = f"Distance of the samples' law from Bayes' rule, {pattern} given, {name} noise"
        tables.append(Table(title, ("steps", *names), rows))
        if name == "loglinear":  # all of them in one plot cannot be told apart
            of_tweedie = (how for rule, how in ways if rule == "tweedie")
            curves |= {f"{it}, {pattern} given": (steps, found["tweedie", it]) for it in of_tweedie}
        case = f"{name}, {pattern} given"
        if absorbing:
            claims += _claims(case, found, space.length - len(given))
        else:
            claims.append(_first_order(f"{case}: many copies", [found["tweedie", "resample"]]))
    if not absorbing:
        noise = schedules["loglinear"]
        components = Components(space.graph, noise, exact_model(space))
        claims.append(_drawn(components, space, data, givens["all but the last"], t_min))
    plots = (
        [] if absorbing else [Plot("given", "reverse steps", "total variation to Bayes", curves)]
    )
    return Section("Samples with given tokens", claims, tables, plots)


def _distances(
    components: Components,
    space: Space,
    data: Law,
    given: Mapping[int, int],
    steps: list[int],
    ways: list[tuple[str, str]],
    t_min: float,
) -> dict[tuple[str, str], list[float]]:
    """Total variation to Bayes' rule for every number of steps, by sampler and conditioning."""
    bayes = space.conditional(data, given)

    def distance(sampler, conditioning, count):
        law = sampler_law(
            components,
            exact_params(data),
            space,
            steps=count,
            sampler=sampler,
            t_min=t_min,
            given=given,
            conditioning=conditioning,
        )
        return total_variation(law, bayes)

    with float64():
        return {way: [distance(*way, count) for count in steps] for way in ways}


def _claims(case, found, num_free):
    """What holds under the absorbing graph."""
    worst = np.max(list(found.values()))
    if num_free == 1:
        return [Claim(f"{case}: TV to Bayes, any steps and sampler", worst, "<=", 1e-10)]
    return [_first_order(f"{case}, any sampler", found.values())]


def _first_order(case, curves):
    """That twice the steps halve the distances."""
    ratios = np.array([distances[-2] / distances[-1] for distances in curves])
    statement = f"{case}: |TV to Bayes at half the steps / TV - 2|"
    return Claim(statement, np.max(np.abs(ratios - 2)), "<=", 0.2)


def _drawn(components, space, data, given, t_min):
    """That some copies are much nearer to Bayes' rule than clamping is."""

    def distance(**settings):
        settings |= {"steps": 64, "t_min": t_min, "num_samples": NUM_DRAWN, "given": given}
        frequencies = draw(components, exact_params(data), space, **settings)
        return total_variation(frequencies, space.conditional(data, given))

    noise = np.sqrt(space.graph.num_tokens / NUM_DRAWN) / 2  # what samples of Bayes' law have
    return Claim(
        f"{NUM_DRAWN} samples of {NUM_COPIES} copies, 64 steps, all but the last given: TV to "
        "Bayes, at most 0.3 that of clamping and noise",
        distance(conditioning="resample", particles=NUM_COPIES),
        "<=",
        0.3 * distance() + noise,
    )
