"""Every sampler by its name, through all that draws: rows of any length, prompts, watching."""

import functools
import itertools

import jax
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.diffusion.graph import GRAPHS
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import default_config, parse
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import SAMPLERS, Sampling, samplers_for
from sedd_jax.inference.stream import generate_stream

KEY, STEPS, TRAINED, LONG = jax.random.key(0), 4, 16, 20
QUICK = (("absorb", "entropy_bounded"), ("absorb", "spaced"))  # others have quick tests elsewhere
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for graph in GRAPHS
    for case in [(graph, name) for name in samplers_for(GRAPHS[graph](2))]
]


def prompt_of(width):
    """A row without given tokens, one with some, one of nothing else, and a short one."""
    tokens = np.broadcast_to(np.arange(width, dtype=np.int32), (4, width))
    held = np.zeros((4, width), bool)
    held[1, 3:8], held[2] = True, True
    return Prompt(tokens, held, np.array([width, width, width, 7], np.int32))


@pytest.mark.parametrize(("graph", "sampler"), CASES)
def test_rows_of_any_length_hold_their_tokens_and_are_watched(toy, graph, sampler):
    checkpoint, settings = toy(graph), {"sampler": sampler, "steps": STEPS}
    draw = functools.partial(sedd.generate, KEY, checkpoint, batch_size=4, **settings)
    most = Sampling(**settings).max_nfe(TRAINED)
    for width, windows in ((LONG, 2), (TRAINED, 1)):
        prompt = prompt_of(width)
        tokens, found = draw(prompt=prompt)
        np.testing.assert_array_equal(tokens[prompt.held], prompt.tokens[prompt.held])
        assert (tokens[3, 7:] == 0).all() and tokens.max() < checkpoint.graph.num_tokens
        assert (found.evaluations[[0, 1, 3]] > 0).all()
        assert found.evaluations.max() <= windows * most
    moments = list(generate_stream(KEY, checkpoint, prompt, **settings))
    np.testing.assert_array_equal(moments[-1].tokens, tokens)
    np.testing.assert_array_equal(moments[-1].evaluations, found.evaluations)
    assert moments[-1].nfe == moments[-1].max_nfe == found.evaluations.max()
    assert all(
        before.nfe < after.nfe <= after.max_nfe <= most
        for before, after in itertools.pairwise(moments)
    )


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("sampler", SAMPLERS.names)
def test_a_sampler_of_the_other_graph_is_refused_and_those_that_serve_are_named(
    toy, graph, sampler
):
    sampling, serving = Sampling(sampler=sampler), samplers_for(toy(graph).graph)
    if sampler in serving:
        sampling.check(toy(graph).graph)
    else:
        with pytest.raises(BadInput, match=f"{graph}.* graph: take {', '.join(serving)}"):
            sampling.check(toy(graph).graph)


def test_a_config_names_every_sampler_with_options():
    config = default_config()
    for name in (*SAMPLERS.names, "gibbs(spacing=2)"):
        config.eval.sampler = name
        assert parse(config).eval.sampler == name
