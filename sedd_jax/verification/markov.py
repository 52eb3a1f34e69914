"""Data with exact scores at any length: Markov chains and hidden Markov models.

Noise acts on every position by itself, so noised data of a hidden Markov model are a hidden Markov
model again, with a noisier emission. Forward-backward recursions give p(x_0 = a at i | x_t except
at i), and with it the row of scores at i, which is p_t(x_i = y | x_t except at i) up to a factor.
A Markov chain is the model whose hidden states are the tokens. One evaluation costs O(L S^2)
operations per row for S hidden states.

References:
  Rabiner, A Tutorial on Hidden Markov Models, 1989: the recursions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from scipy.special import xlogy

from sedd_jax.diffusion.graph import Graph
from sedd_jax.errors import BadInput
from sedd_jax.model.score_model import Params, ScoreModel, dense_model

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
        states = len(self.initial)
        for name, shape in (
            ("initial", (states,)),
            ("transition", (states, states)),
            ("emission", (states, self.emission.shape[-1])),
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
        """
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
        """
        if not np.array_equal(self.emission, np.eye(len(self.initial))):
            return math.nan  # the entropy of an HMM has no closed form
        marginal, entropy = self.initial, -float(xlogy(self.initial, self.initial).sum())
        per_state = -xlogy(self.transition, self.transition).sum(-1)
        for _ in range(length - 1):
            entropy += float(marginal @ per_state)
            marginal = marginal @ self.transition
        return entropy


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

    return dense_model(init, apply)


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
    start = jnp.stack([jnp.broadcast_to(params["initial"], flat.shape), flat])
    kernels = jnp.stack([transition, transition.T])

    def step(message, observed):
        # of the past and of the future in one matrix product; sums to 1, or the evidence is 0
        known = message * observed
        mass, known = known.sum(-1, keepdims=True), _normalised(known, flat)
        moved = jnp.einsum("dbs,dsk->dbk", known, kernels, precision="highest")
        return _normalised(moved, flat), (message, mass[0, :, 0])

    by_position = jnp.moveaxis(likelihood, 1, 0)
    both = jnp.stack([by_position, by_position[::-1]], 1)  # [L, 2, B, S]
    _, (messages, mass) = jax.lax.scan(step, start, both)
    hidden = _normalised(messages[:, 0] * messages[::-1, 1], messages[:, 0])
    return jnp.moveaxis(hidden, 0, 1), jnp.log(mass).sum(0)


def _normalised(weights, otherwise):
    """The weights divided by their sum over the last axis; `otherwise` where the sum is 0."""
    total = weights.sum(-1, keepdims=True)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), otherwise)
