"""Algorithm 2: how far the law of the samples is from the data, for every number of steps.

The laws are exact: with true scores, all that separates them from the data is the discretisation
(positions move independently within a step) and, next to nothing, where the sampler starts.
"""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chisquare

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.reverse import SAMPLERS, euler_weights
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.experiment.build import Components
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.generator import build_generator
from sedd_jax.inference.prompt import Prompt, free
from sedd_jax.inference.sampling import FIRST_HITTING, Sampling
from sedd_jax.model.score_model import Params
from sedd_jax.verification.exact.law import (
    denoising_kernel,
    first_hitting_law,
    reverse_law,
    sampler_law,
)
from sedd_jax.verification.exact.scores import exact_model, exact_params, tabulated
from sedd_jax.verification.exact.space import Law, Space, float64, kl_divergence, total_variation
from sedd_jax.verification.report import Claim, Section

LEVEL = 1e-4  # of the chi-square test of the drawn samples


def _euler_equal_noise(graph, noise, xt, total, t, t_next):
    """The Euler step with the total noise of the step in place of the rate at its start."""
    return euler_weights(graph, xt, total, noise.sigma(t) - noise.sigma(t_next))


RULES = {**SAMPLERS, "euler, equal noise": _euler_equal_noise}


def check_samplers(
    space: Space,
    schedules: dict[str, Noise],
    data: Law,
    *,
    t_min: float,
    max_steps: int,
    drawn_steps: tuple[int, ...],
    num_samples: int,
    num_laws: int = 8,
) -> Section:
    """Returns the laws of all samplers with true scores, and the claims on them.

    Args:
      space: all sequences.
      schedules: noise schedules by name, "loglinear" and "geometric".
      data: law of the data.
      t_min: the time at which the steps end.
      max_steps: a power of 2; laws are computed for 1, 2, 4, ..., max_steps.
      drawn_steps: numbers of steps for which samples are drawn as well.
      num_samples: how many.
      num_laws: random laws of data on which the rules are compared.
    """
    steps = [2**i for i in range(max_steps.bit_length())]
    absorbing = space.graph.mask_id is not None
    rules = RULES if not absorbing else {name: RULES[name] for name in SAMPLERS}
    tables, claims, curves = [], [], {}
    for name, noise in schedules.items():
        components = Components(space.graph, noise, exact_model(space))
        laws, targets = _laws(components, space, data, rules, steps, t_min)
        tables.append(_table(name, rules, laws, data, steps))
        claims += _convergence(name, rules, laws, targets, steps)
        if absorbing and name == "loglinear":
            apart = np.max(
                [
                    total_variation(laws["tweedie", count, denoise], laws["euler", count, denoise])
                    for count, denoise in itertools.product(steps, (True, False))
                ]
            )
            claims.append(Claim("loglinear: TV between Tweedie and Euler", apart, "<=", 1e-10))
            claims += _first_hitting(components, space, data, t_min, num_samples)
        order, order_claims = _order(
            name,
            components,
            space,
            rules,
            t_min,
            num_laws,
            claimed=absorbing or name == "loglinear",
        )
        tables.append(order)
        claims += order_claims
        for rule in ("euler", "tweedie"):
            distances = [total_variation(laws[rule, count, True], data) for count in steps]
            curves[f"{rule}, {name}"] = (steps, distances)
        params = exact_params(data)  # float32, as samples are drawn
        for count in drawn_steps:
            settings = {"steps": count, "t_min": t_min, "num_samples": num_samples}
            frequencies = draw(components, params, space, **settings)
            p_value = goodness_of_fit(frequencies, laws["tweedie", count, True], num_samples)
            statement = f"{name}: {num_samples} drawn samples, {count} steps: chi-square p-value"
            claims.append(Claim(statement, p_value, ">=", LEVEL))
    plot = Plot("steps", "reverse steps", "total variation to the data", curves)
    return Section("Samplers with true scores", claims, tables, [plot])


def _laws(components, space, data, rules, steps, t_min):
    """The laws by (rule, steps, with the final step), and those of the exact reverse process."""
    laws = {}
    with float64():
        params = exact_params(data)
        final = denoising_kernel(components, params, space, t_min)
        for rule, count in itertools.product(rules, steps):
            law = sampler_law(
                components,
                params,
                space,
                steps=count,
                sampler=rules[rule],
                t_min=t_min,
                denoise=False,
            )
            laws[rule, count, False] = law
            laws[rule, count, True] = space.embedded(law @ final)
    targets = {
        True: reverse_law(space, components.noise, data, 0.0),
        False: reverse_law(space, components.noise, data, t_min),
    }
    return laws, targets


def _first_hitting(components, space, data, t_min, num_samples):
    """No time is discretised: the law is that of the data, and given a token that of Bayes."""
    held = space.states[np.argmax(data)][0]  # at the first position
    posterior = np.where(space.states[:, 0] == held, data, 0)
    start = np.array([held, *[space.graph.mask_id] * (space.length - 1)])
    law_before = np.arange(len(data)) == space.index(start)
    with float64():
        params = exact_params(data)
        free = first_hitting_law(components, params, space)
        given = first_hitting_law(components, params, space, np.float64(law_before))
    settings = {"steps": None, "t_min": t_min, "num_samples": num_samples}
    frequencies = draw(components, exact_params(data), space, sampler=FIRST_HITTING, **settings)
    p_value = goodness_of_fit(frequencies, data, num_samples)
    posterior_distance = total_variation(given, posterior / posterior.sum())
    return [
        Claim("first hitting: TV to the data", total_variation(free, data), "<=", 1e-10),
        Claim("first hitting: TV to Bayes, a token held", posterior_distance, "<=", 1e-10),
        Claim(
            f"first hitting: {num_samples} drawn samples against the data: chi-square p-value",
            p_value,
            ">=",
            LEVEL,
        ),
    ]


def draw(
    components: Components,
    params: Params,
    space: Space,
    *,
    steps: int | None,
    t_min: float,
    num_samples: int,
    sampler: str = "tweedie",
    seed: int = 0,
    given: Mapping[int, int] = MappingProxyType({}),
    **settings: Any,
) -> Law:
    """Returns the frequencies of real samples, from the generator that `sample` uses.

    They hold `given` tokens by position; settings are further ones of `Sampling`.

    First hitting has rows at noises of their own, which `tabulated` takes for one: that changes
    nothing where the normalised ratios are the same at all noise, as the true ones are.
    """
    components = components._replace(model=tabulated(components.model, space))
    sampling = Sampling(steps, sampler, **settings)
    generator = jax.jit(build_generator(components, sampling, t_min=t_min))
    keys = row_keys(jax.random.key(seed), jnp.arange(num_samples))
    prompt = free(num_samples, space.length)
    for position, token in given.items():
        prompt = Prompt(
            prompt.tokens.at[:, position].set(token), prompt.held.at[:, position].set(True)
        )
    tokens, _ = generator(params, keys, prompt)
    counts = np.bincount(space.index(np.asarray(tokens)), minlength=len(space.states))
    return counts / num_samples


def goodness_of_fit(frequencies: Law, law: Law, num_samples: int) -> float:
    """Returns the p-value of a chi-square test; rare states are pooled, impossible ones fatal.

    Args:
      frequencies: shares of the samples.
      law: the law that they are tested against; sums to 1, but for the rounding of float32 steps.
      num_samples: how many.
    """
    if not abs(law.sum() - 1) < 1e-3:
        return float("nan")
    counts, expected = frequencies * num_samples, law * num_samples
    if counts[expected == 0].sum() > 0:
        return 0.0
    rare = (expected < 5) & (expected > 0)
    counts = np.append(counts[expected >= 5], counts[rare].sum())
    expected = np.append(expected[expected >= 5], expected[rare].sum())
    if expected[-1] == 0:
        counts, expected = counts[:-1], expected[:-1]
    return float(chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def _table(name, rules, laws, data, steps):
    columns = ["steps"]
    columns += [f"{distance}, {rule}" for rule in rules for distance in ("TV", "KL")]
    columns += [f"TV, {rule}, no final step" for rule in ("euler", "tweedie")]
    rows = []
    for count in steps:
        row = [count]
        for rule in rules:
            law = laws[rule, count, True]
            row += [total_variation(law, data), kl_divergence(data, law)]
        row += [total_variation(laws[rule, count, False], data) for rule in ("euler", "tweedie")]
        rows.append(tuple(row))
    title = f"Distance of the samples' law from the data, {name} noise; KL(data | samples) in nats"
    return Table(title, tuple(columns), rows)


def _convergence(name, rules, laws, targets, steps):
    """First order: twice the steps halve the distance to the exact reverse process."""
    coarse, fine = steps[-2:]
    ratios = [
        total_variation(laws[rule, coarse, denoise], targets[denoise])
        / total_variation(laws[rule, fine, denoise], targets[denoise])
        for rule, denoise in itertools.product(rules, (True, False))
    ]
    statement = f"{name}: |TV at {coarse} steps / TV at {fine} - 2|, every rule"
    return [Claim(statement, np.max(np.abs(np.array(ratios) - 2)), "<=", 0.2)]


def _order(name, components, space, rules, t_min, num_laws, claimed):
    """On how many random laws of data Tweedie ends at least as near as the other rules.

    Theorem 4.2 orders single steps, not whole runs. Where `claimed`, Tweedie ended at least as near
    for all laws tried; under uniform geometric noise Euler may be nearer, see docs/exactness.md.
    """
    counts = (4, 16, 64)
    others = [rule for rule in rules if rule != "tweedie"]
    excess = {(count, rule): [] for count, rule in itertools.product(counts, others)}
    with float64():
        for seed, count in itertools.product(range(num_laws), counts):
            data = space.random_data(seed)
            distance = {
                rule: total_variation(
                    sampler_law(
                        components,
                        exact_params(data),
                        space,
                        steps=count,
                        sampler=step_rule,
                        t_min=t_min,
                    ),
                    data,
                )
                for rule, step_rule in rules.items()
            }
            for rule in others:
                excess[count, rule].append(distance["tweedie"] - distance[rule])
    rows = [
        (count, *(sum(e <= 1e-10 for e in excess[count, rule]) for rule in others))
        for count in counts
    ]
    title = f"Random laws, of {num_laws}, to which Tweedie ends at least as near, {name} noise"
    table = Table(title, ("steps", *(f"than {rule}" for rule in others)), rows)
    if not claimed:
        return table, []
    statement = f"{name}: TV of Tweedie - TV of Euler, at worst of {num_laws} laws"
    worst = np.max([excess[count, "euler"] for count in counts])
    claims = [Claim(statement, worst, "<=", 1e-10)]
    return table, claims
