import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sedd_jax.diffusion.graph import absorbing, uniform
from sedd_jax.diffusion.importance import Proposal, on_grid, plain_proposal
from sedd_jax.diffusion.noise import loglinear
from sedd_jax.inference.build import build_family
from sedd_jax.inference.score_based import share_with_loss
from sedd_jax.training.throughput import StepTimer, step_flops


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def devices(monkeypatch, *kinds, memory=None):
    fakes = [SimpleNamespace(device_kind=kind, memory_stats=lambda: memory) for kind in kinds]
    monkeypatch.setattr(jax, "devices", lambda: fakes)
    monkeypatch.setattr(jax, "local_devices", lambda: fakes)


def progress(start=0, total=10):
    return StepTimer(start, total, tokens_per_step=100, flops_per_step=1e14)


def test_pauses_are_left_out(clock):
    run = progress()
    clock.now = 2.0
    with run.paused():
        clock.now = 50.0
    row, left = run.advance(2)
    assert row == {"tokens_per_second": 100.0, "step_seconds": 1.0, "waiting_for_data": 0.0}
    assert left == "8 s"


def test_waiting_is_counted_anew_for_every_row(clock):
    run = progress()
    for step in range(3):
        with run.waiting():
            clock.now += 0.5
        clock.now += 1.5
        with run.paused():
            clock.now += 7.0
        assert run.advance(step + 1)[0]["waiting_for_data"] == pytest.approx(0.25)
    clock.now += 2.0
    assert run.advance(4)[0]["waiting_for_data"] == 0


def test_what_was_before_the_beginning_does_not_count(clock):
    run = progress()
    with run.waiting():
        clock.now = 30.0
    run.begin(1)
    clock.now += 2.0
    row, left = run.advance(2)
    assert (row["step_seconds"], row["waiting_for_data"], left) == (2.0, 0.0, "16 s")


def test_utilization_is_a_share_of_the_peak_of_all_devices(clock, monkeypatch):
    devices(monkeypatch, "TPU v4", "TPU v4")
    run = progress()
    clock.now = 4.0  # 2 s for a step of 1e14 FLOPs, on 2 x 275e12 FLOP/s
    assert run.advance(2)[0]["flops_utilization"] == pytest.approx(50 / 550)


@pytest.mark.parametrize("kind", ["cpu", "TPU v4 lite", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_utilization_is_never_guessed(clock, monkeypatch, kind):
    devices(monkeypatch, "TPU v4", kind)
    clock.now = 1.0
    assert "flops_utilization" not in progress().advance(1)[0]


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    stats = iter([{"peak_bytes_in_use": 2**31}, {"peak_bytes_in_use": 3 * 2**30}])
    fake = SimpleNamespace(device_kind="x", memory_stats=lambda: next(stats))
    monkeypatch.setattr(jax, "local_devices", lambda: [fake, fake])
    assert progress().advance(1)[0]["peak_memory_gib"] == 3.0


def test_under_the_uniform_graph_every_position_has_a_loss():
    assert share_with_loss(uniform(5), loglinear(0.01), plain_proposal(0.2)) == 1


@pytest.mark.parametrize(
    ("proposal", "mean_time"),
    [
        (plain_proposal(0.2), 0.6),
        (on_grid(plain_proposal(0.2), 4), 0.625),
        (Proposal(np.array([0.2, 0.6, 1.0]), np.array([0.5, 1.5]), np.ones(2), np.ones(2)), 0.7),
    ],
)
def test_under_the_absorbing_graph_the_masks_have_a_loss(proposal, mean_time):
    # log-linear: a token is masked with probability (1 - eps) t
    share = share_with_loss(absorbing(5), loglinear(0.01), proposal)
    assert share == pytest.approx(0.99 * mean_time, rel=1e-5)


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_a_step_is_three_forward_passes_of_the_batch(smoke_config, graph):
    model = dataclasses.replace(smoke_config.model, scale_by_sigma=False)
    config = dataclasses.replace(smoke_config, graph=graph, model=model)
    components = build_family(config, vocab_size=127)
    d, c, length, blocks = model.hidden_size, model.cond_dim, model.length, model.num_blocks
    forward = blocks * (24 * length * d**2 + 4 * length**2 * d + 12 * c * d)
    forward += 2 * c * (256 + c) + 4 * c * d
    masked = (1 - config.noise.eps) * (1 + config.train.t_min) / 2
    forward += {"absorb": masked * 128, "uniform": 127}[graph] * 2 * length * d
    expected = 3 * config.train.batch_size * forward
    assert step_flops(components, model, config.train) == pytest.approx(expected, rel=1e-6)


def test_a_step_of_the_baseline_answers_at_all_positions(smoke_config):
    config = dataclasses.replace(smoke_config, family="autoregressive")
    model = config.model
    components = build_family(config, vocab_size=127)
    d, length = model.hidden_size, model.length
    forward = model.num_blocks * (24 * length * d**2 + 4 * length**2 * d) + 127 * 2 * length * d
    assert step_flops(components, model, config.train) == 3 * config.train.batch_size * forward
