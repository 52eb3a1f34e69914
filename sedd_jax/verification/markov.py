"""Data with exact scores at any length: Markov chains and hidden Markov models.

Noise acts on every position by itself, so noised data of a hidden Markov model are a hidden Markov
model again, with a noisier emission. Forward-backward recursions give p(x_0 = a at i | x_t except
at i), and with it the row of scores at i, which is p_t(x_i = y | x_t except at i) up to a factor.
A Markov chain is the model whose hidden states are the tokens. One evaluation costs O(L S^2)
operations per row for S hidden states.

References:
  Rabiner, A Tutorial on Hidden Markov Models, 1989: the recursions;
  Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011: Threefry.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32
from scipy.special import xlogy

from sedd_jax.diffusion.categorical import jump_from_uniforms, uniform_from_bits
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.score import DenseScore, Drawn, StepWeightsFn
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.errors import BadInput
from sedd_jax.model.score_model import Params, ScoreModel

_ROUNDING = 1e-6  # a row of probabilities may miss a sum of 1 by so much


@dataclasses.dataclass(frozen=True)
class HiddenMarkov:
    """A hidden Markov model over S hidden states and N tokens.

    Attributes:
      initial: distribution of the first hidden state, [S].
      transition: transition[h, k] is the probability of k after h, [S, S].
      emission: emission[h, a] is the probability of the token a in the state h, [S, N].

    Raises:
      BadInput: a row is no distribution, or the shapes do not fit.
    """

    initial: Float[np.ndarray, "S"]
    transition: Float[np.ndarray, "S S"]
    emission: Float[np.ndarray, "S N"]

    def __post_init__(self):
        states = np.size(self.initial)
        for name, shape in (
            ("initial", (states,)),
            ("transition", (states, states)),
            ("emission", (states, *np.shape(self.emission)[-1:])),
        ):
            rows = np.asarray(getattr(self, name), np.float64)
            if rows.shape != shape:
                raise BadInput(
                    f"{name} has the shape {rows.shape}, but initial has {states} states: it must "
                    f"have the shape {shape}."
                )
            wrong = ~((rows >= 0).all(-1) & (abs(rows.sum(-1) - 1) <= _ROUNDING))
            if wrong.any():
                where = f"row {int(np.argmax(wrong))} of {name}" if rows.ndim > 1 else name
                raise BadInput(
                    f"{where} is no distribution: its numbers must be at least 0 and sum to 1."
                )
            object.__setattr__(self, name, rows / rows.sum(-1, keepdims=True))

    @property
    def num_tokens(self) -> int:
        """The number of tokens N."""
        return self.emission.shape[1]

    @property
    def params(self) -> Params:
        """The probabilities in JAX's default float, as `markov_model` takes them."""
        return {
            field.name: jnp.asarray(getattr(self, field.name), float)
            for field in dataclasses.fields(self)
        }

    def sample(self, key: Key[Array, ""], rows: int, length: int) -> Int[Array, "B L"]:
        """Draws rows of tokens.

        Args:
          key: random key, used once.
          rows: the number of rows B.
          length: tokens of a row, at least 1.

        Raises:
          BadInput: the length is below 1.
        """
        _check_length(length)
        first_key, step_key, token_key = jax.random.split(key, 3)
        log = jax.tree.map(jnp.log, self.params)
        first = jax.random.categorical(first_key, log["initial"], shape=(rows,))

        def step(hidden, key):
            hidden = jax.random.categorical(key, log["transition"][hidden])
            return hidden, hidden

        _, later = jax.lax.scan(step, first, jax.random.split(step_key, length - 1))
        hidden = jnp.concatenate([first[None], later]).T
        return jax.random.categorical(token_key, log["emission"][hidden]).astype(jnp.int32)

    def log_prob(self, tokens: Int[Array, "B L"]) -> Float[Array, "B"]:
        """Returns the log-probability of rows of tokens, in nats; -inf for impossible ones."""
        likelihood = self.params["emission"].T[tokens]  # [B, L, S]
        _, log_evidence = _messages(self.params, likelihood)
        return log_evidence

    def entropy(self, length: int) -> float:
        """Returns the entropy of a row of a Markov chain, in nats; NaN for other models.

        It is exact: H(x_1) + sum over i of E H(x_i | x_(i-1)).

        Raises:
          BadInput: the length is below 1.
        """
        _check_length(length)
        if not np.array_equal(self.emission, np.eye(len(self.initial))):
            return math.nan  # the entropy of an HMM has no closed form
        marginal, entropy = self.initial, -float(xlogy(self.initial, self.initial).sum())
        per_state = -xlogy(self.transition, self.transition).sum(-1)
        for _ in range(length - 1):
            entropy += float(marginal @ per_state)
            marginal = marginal @ self.transition
        return entropy


def _check_length(length):
    if length < 1:
        raise BadInput(f"A row of a hidden Markov model has at least 1 token, got length={length}.")


def markov_chain(
    initial: Float[np.ndarray, "S"], transition: Float[np.ndarray, "S S"]
) -> HiddenMarkov:
    """Returns a Markov chain: its tokens are its states.

    Args:
      initial: distribution of the first token.
      transition: transition[a, b] is the probability of b after a.
    """
    return HiddenMarkov(initial, transition, np.eye(len(initial)))


def random_model(seed: int, num_tokens: int, num_hidden: int, concentration: float) -> HiddenMarkov:
    """Returns a random model: rows drawn from symmetric Dirichlet distributions.

    Args:
      seed: of the rows.
      num_tokens: N.
      num_hidden: S; 0 for a Markov chain of the tokens.
      concentration: of the Dirichlet distribution; small for rows with few large entries.
    """
    rng = np.random.default_rng(seed)
    states = num_hidden or num_tokens
    transition = rng.dirichlet(np.full(states, concentration), states)
    initial = np.full(states, 1 / states)
    if not num_hidden:
        return markov_chain(initial, transition)
    emission = rng.dirichlet(np.full(num_tokens, concentration), states)
    return HiddenMarkov(initial, transition, emission)


class MarkovScore(DenseScore):
    """A dense score that draws by inverse CDF: two uniforms of a position, not one of a token.

    The distribution is that of `DenseScore`, but for rounding: a token whose share of the weights
    is below 2^-24 may vanish beside the others. Most of the time of a dense draw goes into random
    bits, more than ten times that of a small model's evaluation.
    """

    def draw(
        self,
        keys: Key[Array, "B"],
        step_weights: StepWeightsFn,
        active: Bool[Array, "B L"],
        token_filter: TokenFilter = NO_FILTER,
    ) -> Drawn:
        total, weights = self._weigh(step_weights, active)
        words = jax.random.key_data(keys)[None, :, None]
        positions = jnp.arange(self.xt.shape[1], dtype=jnp.uint32)[None, None]
        uses = jnp.arange(2, dtype=jnp.uint32)[:, None, None]
        u_jump, u_target = uniform_from_bits(*_threefry(words, positions, uses))
        xt = jump_from_uniforms(u_jump, u_target, self.xt, weights, token_filter, draw=_inverse_cdf)
        return Drawn(jnp.where(active, xt, self.xt), total)


def _inverse_cdf(u: Float[Array, "*s"], weights: Float[Array, "*s V"]) -> Int[Array, "*s"]:
    """The first index whose sum of weights up to it exceeds u of the whole sum.

    Sums are made one after another, so they never decrease, and u < 1 keeps u times the last below
    it: an index without weight is never drawn.
    """
    states = weights.shape[-1]
    sums = list(itertools.accumulate(weights[..., state] for state in range(states)))
    index = sum((each <= u * sums[-1]).astype(jnp.int32) for each in sums)
    return jnp.minimum(index, states - 1)  # where there is no weight at all


def _threefry(
    key: UInt32[Array, "*#s 2"], x: UInt32[Array, "*#s"], y: UInt32[Array, "*#s"]
) -> tuple[UInt32[Array, "*#s"], UInt32[Array, "*#s"]]:
    """Threefry-2x32 with 20 rounds, two random words for the counter (x, y).

    JAX's own is the same function; on CPUs it is a loop over arrays in memory, this one is fused.
    """
    words = key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ jnp.uint32(0x1BD11BDA)
    x, y = x + words[0], y + words[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def markov_model(graph: Graph) -> ScoreModel:
    """Returns the score model that emits log p_t(y) / p_t(x_t), the exact answer.

    Its parameters are `HiddenMarkov.params`, so every sampler and bound runs on it unchanged. Where
    the rest of a row is impossible under the data, the ratio is undefined: then nothing is known of
    the hidden state from that side, and the model says what it would without it.

    Args:
      graph: a graph over the tokens of the model.
    """

    def init(key):
        del key
        raise TypeError("The parameters of this model are HiddenMarkov.params.")

    def apply(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        del key
        of_tokens = graph.transposed_transition(xt, sigma)[..., : graph.num_tokens]
        likelihood = jnp.matmul(of_tokens, params["emission"].T, precision="highest")
        hidden, _ = _messages(params, likelihood)
        clean = jnp.matmul(hidden, params["emission"], precision="highest")
        return _log_ratios(graph, clean, xt, sigma)

    def score(params, xt, sigma, key=None):
        return MarkovScore(xt, apply(params, xt, sigma, key))

    return ScoreModel(init, apply, score)


def _log_ratios(graph, clean, xt, sigma):
    """Log p_t(y | rest) - log p_t(x_t | rest), [B, L, V], from p(x_0 | rest) [B, L, N]."""
    sigma = sigma[:, None, None]
    padding = [(0, 0), (0, 0), (0, graph.num_states - graph.num_tokens)]
    noised = jnp.exp(-sigma) * jnp.pad(clean, padding) - jnp.expm1(-sigma) * graph.limit[None, None]
    log_noised = jnp.log(noised)
    log_ratio = log_noised - jnp.take_along_axis(log_noised, xt[..., None], -1)
    return jnp.where(jax.nn.one_hot(xt, graph.num_states, dtype=bool), 0, log_ratio)


def _messages(params, likelihood):
    """The distribution of every hidden state given the rest of its row, and the log-evidence.

    Args:
      params: `HiddenMarkov.params`.
      likelihood: of what is observed at each position, by hidden state, [B, L, S].

    Returns:
      p(h_i | all but position i), [B, L, S], and the log-probability of what is observed, [B].
    """
    transition = params["transition"]
    rows, _, states = likelihood.shape
    flat = jnp.full((rows, states), 1 / states, likelihood.dtype)

    def passed(message, observed, kernel):
        # to the next position, and the mass; a message sums to 1, or the evidence is 0
        known = message * observed
        moved = jnp.matmul(_normalised(known, flat), kernel, precision="highest")
        return _normalised(moved, flat), known.sum(-1)

    def step(messages, observed):
        past, mass = passed(messages[0], observed[0], transition)
        future, _ = passed(messages[1], observed[1], transition.T)
        return (past, future), (*messages, mass)

    by_position = jnp.moveaxis(likelihood, 1, 0)
    start = jnp.broadcast_to(params["initial"], flat.shape), flat
    _, (past, future, mass) = jax.lax.scan(step, start, (by_position, by_position[::-1]))
    hidden = _normalised(past * future[::-1], past)
    return jnp.moveaxis(hidden, 0, 1), jnp.log(mass).sum(0)


def _normalised(weights, otherwise):
    """The weights divided by their sum over the last axis; `otherwise` where the sum is 0."""
    total = weights.sum(-1, keepdims=True)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), otherwise)
