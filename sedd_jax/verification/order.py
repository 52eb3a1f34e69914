"""The order of the samplers: by which power of the step size their errors fall.

Distributions are exact and scores are true, so that the total variation (TV) to the exact reverse
process is the error of the steps alone. At a time well above 0 and many steps log(TV) is a straight
line in log(steps); its slope is the order.
"""

import jax
import numpy as np

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.second_order import ThetaRK2, ThetaTrapezoidal
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.verification.exact.reverse_process import exact_process, reverse_distribution
from sedd_jax.verification.exact.space import (
    Distribution,
    Space,
    goodness_of_fit,
    kl_divergence,
    total_variation,
)
from sedd_jax.verification.exact.two_stage import two_stage_distribution
from sedd_jax.verification.report import Claim, Section
from sedd_jax.verification.samplers import SIGNIFICANCE, sample_frequencies

ORDERS = {"euler": 1, "tweedie": 1, "theta_rk2": 1, "theta_trapezoidal": 2}
TWO_STAGES = {"theta_rk2": ThetaRK2(), "theta_trapezoidal": ThetaTrapezoidal()}
TIME = 0.1  # at which the steps end: slopes need steps that are small beside it
STEPS = {1: (64, 128), 2: (16, 32)}  # between which the slope of an order is taken
TOLERANCE = {1: 0.1, 2: 0.2}
MILD = 0.1  # share of the data in a mixture with uniform data: no change halves a probability
DRAWN = 16  # steps of the samples that are drawn


def check_order(
    space: Space,
    schedules: dict[str, Noise],
    data: Distribution,
    *,
    t_min: float,
    evaluations: tuple[int, ...] = (8, 16, 32, 64, 128),
    num_samples: int = 0,
) -> Section:
    """Returns the orders of the samplers, and their errors at equal network evaluations.

    Args:
      space: all sequences, of at least 3 positions: for 2 some orders are higher.
      schedules: noise schedules by name.
      data: distribution of the data.
      t_min: the time at which the steps of the samplers end that are compared.
      evaluations: before the final one, of these samplers.
      num_samples: samples of the trapezoid to draw and to compare; 0 for none.
    """
    mild = (1 - MILD) * space.uniform_data() + MILD * data
    alone = Space(space.graph, 1)
    rows, claims, tables, curves = [], [], [], {}
    with jax.enable_x64(True):
        for name, noise in schedules.items():
            for sampler, order in ORDERS.items():
                found = {
                    kind: _slopes(space, noise, given, sampler, STEPS[order])
                    for kind, given in (("mild", mild), ("data", data))
                }
                rows.append((name, sampler, *found["mild"], *found["data"]))
                off = abs(found["mild"][0] - order)
                statement = f"{name}: |slope of TV over steps - {order}|, {sampler}"
                claims.append(Claim(statement, off, "<=", TOLERANCE[order]))
            target = reverse_distribution(alone, noise, alone.random_data(0), TIME)
            worst = max(
                total_variation(_noised(alone, noise, alone.random_data(0), it, 4, TIME), target)
                for it in TWO_STAGES
            )
            statement = f"{name}: TV to the reverse process, one position, two evaluations a step"
            claims.append(Claim(statement, worst, "<=", 1e-9))
            table = _equal_evaluations(name, space, noise, data, t_min, evaluations)
            tables.append(table)
            for column, sampler in enumerate(ORDERS, 1):
                values = [row[column] for row in table.rows]
                curves[f"{sampler}, {name}"] = ([row[0] for row in table.rows], values)
    if num_samples:
        claims.append(_drawn(space, noise, data, t_min, num_samples))
    columns = ("noise", "sampler", "TV, mild", "KL, mild", "TV, data", "KL, data")
    title = (
        f"Slopes at t = {TIME}, over steps; mild: {1 - MILD:g} uniform data and {MILD:g} of the "
        "data, where the trapezoid clips nothing"
    )
    plot = Plot("order", "network evaluations", "total variation to the data", curves)
    return Section("Order of the samplers", claims, [Table(title, columns, rows), *tables], [plot])


def _slopes(space, noise, data, sampler, steps):
    """By which powers of the steps TV and KL to the exact reverse process fall."""
    target = reverse_distribution(space, noise, data, TIME)
    found = [_noised(space, noise, data, sampler, count, TIME) for count in steps]
    distances = [(total_variation(it, target), kl_divergence(target, it)) for it in found]
    return tuple(-np.diff(np.log2(distances), axis=0)[0] / np.diff(np.log2(steps))[0])


def _noised(space, noise, data, sampler, steps, t_min):
    """The distribution after the steps of a sampler."""
    process = exact_process(space, noise, data)
    if sampler in TWO_STAGES:
        return two_stage_distribution(process, TWO_STAGES[sampler], num_steps=steps, t_min=t_min)
    return process.sampler_distribution(steps=steps, sampler=sampler, t_min=t_min, denoise=False)


def _equal_evaluations(name, space, noise, data, t_min, evaluations):
    process, rows = exact_process(space, noise, data), []
    final = process.denoising_kernel(t_min)
    for count in evaluations:
        row = [count + 1]
        for sampler in ORDERS:
            steps = count // 2 if sampler in TWO_STAGES else count
            noised = _noised(space, noise, data, sampler, steps, t_min)
            row.append(total_variation(space.extend(noised @ final), data))
        rows.append(tuple(row))
    title = f"TV of the samples to the data, {name} noise"
    return Table(title, ("evaluations", *ORDERS), rows)


def _drawn(space, noise, data, t_min, num_samples):
    """Samples that are drawn follow the distribution that is computed."""
    process = exact_process(space, noise, data)
    with jax.enable_x64(True):
        noised = _noised(space, noise, data, "theta_trapezoidal", DRAWN, t_min)
        final = exact_process(space, noise, data).denoising_kernel(t_min)
    frequencies = sample_frequencies(
        process, t_min=t_min, num_samples=num_samples, sampler="theta_trapezoidal", steps=2 * DRAWN
    )
    p_value = goodness_of_fit(frequencies, space.extend(noised @ final), num_samples)
    statement = f"trapezoid: {num_samples} drawn samples, {DRAWN} steps: chi-square p-value"
    return Claim(statement, p_value, ">=", SIGNIFICANCE)
