"""Searches for good Gibbs moves: which positions, how many moves, and when, by data and graph.

    python -m benchmarks.sampler_search --data=chain8,pairs

Scores are true, so a figure is the sampler's error alone: the excess of the samples over the
entropy of the data, in nats per token, 0 for exact samples (`verification.oracle`). Every way takes
the same number of network evaluations.

Data: "chain8" and "chain64" are Markov chains; "hmm4" and "hmm16" have hidden states that stay for
20 positions, on average; "pairs" is a chain of second order, each token drawn given the two before
it; "copy" repeats the token three positions before with probability 0.9.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.measure import check_output, report
from sedd_jax.diffusion.denoiser import denoise_weights
from sedd_jax.diffusion.gibbs import Gibbs, either, gibbs_move
from sedd_jax.diffusion.graph import GRAPHS
from sedd_jax.diffusion.noise import loglinear
from sedd_jax.diffusion.sampler import Move
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.inference.sampling import Sampling
from sedd_jax.verification.markov import HiddenMarkov, random_model
from sedd_jax.verification.oracle import Oracle


@dataclasses.dataclass(frozen=True)
class Cosine(Tweedie):
    """Times sin(pi u / 2), dense near t = 1 (Chang et al. 2022, arXiv 2202.04200)."""

    def times(self, process, num_steps):
        u = jnp.linspace(1.0, 0.0, num_steps + 1)
        return process.t_min + (1 - process.t_min) * jnp.sin(jnp.pi / 2 * u)


@dataclasses.dataclass(frozen=True)
class Every(Gibbs):
    """Gibbs moves of all positions at once."""

    def move(self, process, xt, step):
        predictions = process.steps // 2
        number = jnp.minimum(step, predictions - 1)
        times = self.times(process, predictions)
        prediction = self.prediction(process, xt, times[number], times[number + 1])
        move = gibbs_move(process, xt, jnp.ones(xt.shape, bool), 0.5)
        return either(step < predictions, prediction, move)


@dataclasses.dataclass(frozen=True)
class Between(Gibbs):
    """A Gibbs move after every Tweedie step, at the noise there."""

    def move(self, process, xt, step):
        predictions = process.steps // 2
        number = jnp.minimum(step // 2, predictions - 1)
        times = self.times(process, predictions)
        prediction = self.prediction(process, xt, times[number], times[number + 1])
        turn = jnp.arange(xt.shape[1]) % self.spacing == number % self.spacing
        move = noised_move(process, xt, jnp.broadcast_to(turn, xt.shape), times[number + 1])
        return either(step % 2 == 0, prediction, move)


def noised_move(process, xt, chosen, t):
    """Returns the Gibbs move at time t, of chosen positions that are not masked."""
    if not process.graph.absorbs:
        return gibbs_move(process._replace(t_min=t), xt, chosen, 0.0)
    sigma = process.noise.sigma(jnp.broadcast_to(t, len(xt)))
    chosen &= (xt != process.graph.mask_id) & ~process.clamp.held
    masked = jnp.where(chosen, process.graph.mask_id, xt)
    return Move(
        masked, sigma, chosen, lambda total: denoise_weights(process.graph, masked, total, sigma)
    )


WAYS = (
    "tweedie",
    "tweedie(power=2)",
    "tweedie(power=0.5)",
    "Cosine",
    *(f"gibbs(spacing={spacing}, share=0.5)" for spacing in (2, 3, 4, 8)),
    *(f"gibbs(spacing={spacing}, share={share})" for spacing in (2, 4) for share in (0.25, 0.75)),
    "gibbs(spacing=4, power=2)",
    "gibbs(spacing=4, power=0.5)",
    "gibbs(spacing=4, order='random')",
    "Every",
    "Between(spacing=4)",
    "spaced",
    "theta_trapezoidal",
)


def sticky(seed: int, num_hidden: int, num_tokens: int) -> HiddenMarkov:
    """Returns an HMM whose hidden states stay for 20 positions, on average."""
    rng = np.random.default_rng(seed)
    stay = 0.95
    transition = np.full((num_hidden, num_hidden), (1 - stay) / (num_hidden - 1))
    np.fill_diagonal(transition, stay)
    emission = rng.dirichlet(np.full(num_tokens, 0.3), num_hidden)
    return HiddenMarkov(np.full(num_hidden, 1 / num_hidden), transition, emission)


def windows(conditional: np.ndarray) -> HiddenMarkov:
    """Returns the chain of order k whose hidden states are the last k tokens.

    Args:
      conditional: the distribution of a token given the k before it, the oldest first, [N, ..., N].
    """
    *order, tokens = conditional.shape
    states = tokens ** len(order)
    transition = np.zeros((states, states))
    for state, row in enumerate(conditional.reshape(states, tokens)):
        transition[state, state % (states // tokens) * tokens + np.arange(tokens)] = row
    emission = np.eye(tokens)[np.arange(states) % tokens]
    return HiddenMarkov(np.full(states, 1 / states), transition, emission)


def copying(tokens: int, order: int, prob: float) -> HiddenMarkov:
    """Returns the chain that repeats the token `order` positions before with a probability.

    Args:
      tokens: N.
      order: positions between a token and its copy.
      prob: of a copy; other tokens are equally likely.
    """
    rows = prob * np.eye(tokens) + (1 - prob) / tokens
    shape = (tokens,) * (order + 1)
    return windows(np.broadcast_to(rows.reshape(tokens, *[1] * (order - 1), tokens), shape))


DATA = {
    "chain8": lambda: random_model(0, 8, 0, 0.3),
    "chain64": lambda: random_model(0, 64, 0, 0.3),
    "hmm4": lambda: sticky(0, 4, 16),
    "hmm16": lambda: sticky(0, 16, 32),
    "pairs": lambda: windows(np.random.default_rng(0).dirichlet(np.full(6, 0.2), (6, 6))),
    "copy": lambda: copying(4, 3, 0.9),
}

_DATA = flags.DEFINE_list("data", list(DATA), "What is sampled.")
_WAYS = flags.DEFINE_multi_string("way", WAYS, "Samplers, with options; those of this module too.")
_STEPS = flags.DEFINE_integer("steps", 16, "Network evaluations before the final one.")
_ROWS = flags.DEFINE_integer("rows", 1024, "Rows of a figure.")
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens of a row.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")


def main() -> None:
    """Runs the search."""
    check_output(_OUTPUT.value)
    if unknown := sorted(set(_DATA.value) - set(DATA)):
        raise BadInput(f"--data must be among {', '.join(DATA)}, got {', '.join(unknown)}.")
    samplings = {way: Sampling(_STEPS.value, _full_name(way)) for way in _WAYS.value}
    for sampling in samplings.values():
        sampling.check()
    rows = [
        _measured(data, oracle, way, sampling)
        for data in _DATA.value
        for oracle in [Oracle(DATA[data](), _LENGTH.value, seed=0)]
        for way, sampling in samplings.items()
    ]
    report(rows, _OUTPUT.value)


def _full_name(way):
    return f"{__name__}:{way}" if way.partition("(")[0] in globals() else way


def _measured(data, oracle, way, sampling):
    """Returns a row of the table: the excess on both graphs."""
    row = {"data": data, "way": way, "evaluations": sampling.max_nfe(oracle.length)}
    for name, graph in GRAPHS.items():
        graph = graph(oracle.model.num_tokens)
        if sampling.method.serves(graph):
            drawn = oracle.draw(graph, loglinear(), sampling, _ROWS.value, 1e-3)
            found = oracle.excess(*drawn)
            row |= {
                name: found.mean,
                f"+- {name}": found.error,
                f"bigram TV {name}": found.bigram_tv,
            }
    return row


if __name__ == "__main__":
    cli.run(main)
