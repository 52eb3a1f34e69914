"""Drawings that are watched: the same samples, call by call."""

import dataclasses

import jax
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.errors import BadInput
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import sampler_named
from sedd_jax.inference.stream import generate_stream

KEY = jax.random.key(0)
LENGTH = 12


@pytest.fixture(scope="module")
def checkpoint(toy):
    return toy("absorb")


@pytest.fixture(scope="module")
def prompt():
    """Three rows, of which one is shorter and one holds a few tokens."""
    tokens = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
    held = np.zeros((3, LENGTH), bool)
    held[1, 3:8] = True
    return Prompt(tokens, held, np.array([LENGTH, LENGTH, 7], np.int32))


SETTINGS = [
    {"sampler": "tweedie", "steps": 3},
    {"sampler": "first_hitting", "steps": 4, "temperature": 0.5, "top_p": 0.9},
    {"sampler": "theta_trapezoidal", "steps": 5},  # two steps of two evaluations
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_moments_are_the_trace_of_the_same_samples(checkpoint, prompt, settings):
    rows = np.array([5, 2, 9])
    options = {"rows": rows, **settings}
    moments = list(generate_stream(KEY, checkpoint, prompt, **options))
    tokens, diagnostics = sedd.generate(
        KEY, checkpoint, 3, LENGTH, prompt=prompt, trace=True, **options
    )
    np.testing.assert_array_equal(moments[-1].tokens, tokens)
    calls = diagnostics.evaluations.max()
    per_step = sampler_named(settings["sampler"]).evaluations_per_step
    assert [moment.nfe for moment in moments] == [*range(0, calls, per_step), calls]
    assert {moment.max_nfe for moment in moments} == {calls}
    for moment, traced in zip(moments, diagnostics.trace, strict=False):
        np.testing.assert_array_equal(moment.tokens, traced)
        used = np.minimum(moment.nfe, diagnostics.evaluations)
        np.testing.assert_array_equal(moment.evaluations, used)
    with pytest.warns(DeprecationWarning, match="is now"):
        assert (moments[-1].calls, moments[-1].most) == (calls, calls)
    sigma = np.stack([moment.sigma for moment in moments])
    assert (sigma[0] == checkpoint.noise.sigma(np.float32(1))).all()
    assert (np.diff(sigma, axis=0) <= 0).all() and (sigma > 0).all()


def test_what_cannot_be_drawn_is_said(checkpoint, prompt):
    with pytest.raises(BadInput, match="steps must be at least 1"):  # before a moment is asked for
        generate_stream(KEY, checkpoint, prompt, steps=0)
    with pytest.raises(BadInput, match="rows must be 3 whole numbers"):
        generate_stream(KEY, checkpoint, prompt, rows=np.array([1, 2]))
    params = jax.tree.map(lambda x: x * np.nan, checkpoint.params)
    broken = dataclasses.replace(checkpoint, params=params)
    moments = generate_stream(
        KEY, broken, prompt, rows=np.array([7, 8, 9]), steps=3
    )  # compiled above
    assert next(moments).nfe == 0
    with pytest.raises(FloatingPointError, match=r"not finite in rows \[7 8 9\]"):
        next(moments)
