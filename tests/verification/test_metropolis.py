"""Metropolis-Hastings with ratios: what it leaves as it is, and what it draws."""

import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.verification.exact.reverse_process import exact_process
from sedd_jax.verification.exact.scores import exact_ratios
from sedd_jax.verification.exact.space import Space, total_variation
from sedd_jax.verification.metropolis import (
    check_metropolis,
    metropolis_kernel,
    moves_to_halve,
    stationary,
)


@pytest.fixture(params=["absorb", "uniform"])
def case(request):
    space = Space(graphs.GRAPHS[request.param](3), 2)
    data = space.random_data(0)
    return space, data, data @ space.transition(0.7)


def test_a_move_leaves_the_distribution_as_it_is_and_balances_every_pair(case):
    space, _, marginal = case
    kernel = metropolis_kernel(space, np.log(exact_ratios(space, marginal)))
    np.testing.assert_allclose(kernel.sum(1), 1, rtol=1e-12)
    assert kernel.min() >= 0
    flow = marginal[:, None] * kernel
    np.testing.assert_allclose(flow, flow.T, atol=1e-15)
    np.testing.assert_allclose(stationary(kernel), marginal, atol=1e-12)
    # one position at a time
    differ = (space.states[:, None] != space.states).sum(-1)
    assert not kernel[differ > 1].any() and (kernel[differ == 1] > 0).all()
    halved = np.linalg.matrix_power(kernel, round(8 * moves_to_halve(kernel)))
    assert np.abs(halved - marginal).max() < 0.01


def test_only_ratios_at_masks_are_used_under_the_absorbing_graph():
    space = Space(graphs.absorbing(3), 2)
    marginal = space.random_data(0) @ space.transition(0.7)
    log_score = np.log(exact_ratios(space, marginal))
    elsewhere = space.states != space.graph.mask_id
    spoilt = np.where(elsewhere[..., None], 1e3, log_score)
    np.testing.assert_array_equal(
        metropolis_kernel(space, spoilt), metropolis_kernel(space, log_score)
    )


def test_ratios_that_are_off_draw_another_distribution():
    space = Space(graphs.uniform(3), 2)
    marginal = space.random_data(0) @ space.transition(0.7)
    log_score = np.log(exact_ratios(space, marginal)) / 2
    drawn = stationary(metropolis_kernel(space, log_score))
    tempered = marginal**0.5 / (marginal**0.5).sum()  # whose ratios these are
    np.testing.assert_allclose(drawn, tempered, atol=1e-12)
    assert total_variation(drawn, marginal) > 0.02


def test_claims_on_metropolis(case):
    space, data, _ = case
    noise = noises.loglinear()
    section = check_metropolis(space, noise, data, exact_process(space, noise, data))
    assert all(claim.holds for claim in section.claims)
    assert max(row[2] for row in section.tables[0].rows) < 1e-5  # float32 ratios
