"""The network of Gaussian diffusion (PLAID): SEDD's transformer from noisy embeddings to tokens.

The blocks, their conditioning and the head are those of the score network. What is its own: a table
of embeddings of norm 1, their projection to the hidden size, and the noise schedule. The published
model also feeds its last answer back (self-conditioning); this one does not.

Shapes: B batch, L length, D hidden, E dimensions of an embedding, H units of the schedule, V
tokens, R rows: positions of the batch, flat.

References:
  Gulrajani and Hashimoto, Likelihood-Based Diffusion Language Models, 2023 (arXiv 2305.18619).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.gaussian import alpha, evidence
from sedd_jax.model.attention import rotary_attention_for, rotary_tables
from sedd_jax.model.autoregressive import project
from sedd_jax.model.config import TransformerConfig
from sedd_jax.model.rows import map_blocks
from sedd_jax.model.score_model import Head, SigmaEmbedding
from sedd_jax.model.sharding import ANYWHERE, Placement, all_gathered
from sedd_jax.model.transformer import Params, apply_blocks, initial_params, structure
from sedd_jax.model.trunk import Block

ROWS = 1024  # positions whose logits exist at a time
UNITS = 1024  # of the schedule, as published
# The published learning rates of embeddings and schedule are 1e-2, that of the network is 1.4e-3.
# Here there is one: AdamW moves a number that is kept in units of FASTER so many times as fast.
FASTER = 7.0

_MODULES = {"sigma": SigmaEmbedding, "head": Head}


class NoiseLevels(NamedTuple):
    """The schedule at the times of rows, between 0 at t = 0 and 1 at t = 1.

    Attributes:
      level: share of the way from the first gamma to the last.
      rate: its derivative by t, positive.
    """

    level: Float[Array, "B"]
    rate: Float[Array, "B"]


@dataclasses.dataclass(frozen=True)
class GaussianModel:
    """A network and a schedule; its methods are pure functions of the parameters.

    Attributes:
      config: settings; `num_states` is the number of tokens.
      embed_dim: E.
      gamma: the first values of gamma at t = 0 and t = 1, which are learned.
      placement: of the activations. The table and the head are used whole on every device.
    """

    config: TransformerConfig
    embed_dim: int
    gamma: tuple[float, float]
    placement: Placement = ANYWHERE

    @property
    def max_length(self) -> int:
        """The trained length: a longer row would have to hold the end of the text before."""
        return self.config.model.length

    def init(self, key: Key[Array, ""]) -> Params:
        """Returns parameters; those of blocks have a leading axis of num_blocks."""
        config, units = self.config, (UNITS,)
        keys = iter(jax.random.split(key, 8))
        params = {name: initial_params(it, config, next(keys)) for name, it in _MODULES.items()}
        block_keys = jax.random.split(next(keys), config.model.num_blocks)
        params["blocks"] = jax.vmap(lambda k: initial_params(Block, config, k))(block_keys)
        shape = self.embed_dim, config.model.hidden_size
        bound = self.embed_dim**-0.5
        table = bound * jax.random.normal(next(keys), (config.padded_states, self.embed_dim))
        schedule = {
            "ends": jnp.array(self.gamma),
            "inner": jax.random.normal(next(keys), units),
            "shift": jax.random.normal(next(keys), units),
            "outer": jax.random.normal(next(keys), units),
        }
        return params | {
            "embedding": {"table": table / FASTER},  # of any norm; about 1 as published
            "input": {"kernel": jax.random.uniform(next(keys), shape, minval=-bound, maxval=bound)},
            "schedule": jax.tree.map(lambda x: x / FASTER, schedule),
        }

    def table(self, params: Params) -> Float[Array, "V E"]:
        """Returns the embeddings of all tokens, of norm 1, and of the padding of the vocabulary."""
        table = self._outer(params)["embedding"]["table"]
        return table / jnp.linalg.norm(table, axis=-1, keepdims=True)

    def ends(self, params: Params) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns gamma at t = 0 and at t = 1."""
        first, last = FASTER * params["schedule"]["ends"]
        return first, last

    def levels(self, params: Params, t: Float[Array, "B"]) -> NoiseLevels:
        """Returns the schedule's shape: a monotone network of t, shifted and scaled to [0, 1].

            sum_h softplus(outer_h) tanh(softplus(inner_h) (t - 1/2) + shift_h)

        Args:
          params: as `init` returns them.
          t: times in [0, 1].
        """
        weights = jax.tree.map(lambda x: FASTER * x, params["schedule"])
        inner, outer = map(jax.nn.softplus, (weights["inner"], weights["outer"]))

        def rising(t):
            return jnp.tanh(inner[None] * (t[:, None] - 0.5) + weights["shift"][None]) @ outer

        start, end = rising(jnp.array([0.0, 1.0]))
        value, rate = jax.jvp(rising, (t,), (jnp.ones_like(t),))
        return NoiseLevels((value - start) / (end - start), rate / (end - start))

    def denoised(
        self,
        params: Params,
        z: Float[Array, "B L E"],
        gamma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B L E"]:
        """Returns the mean of the embedding at every position given z.

            softmax(network's logits + alpha / sigma^2 z @ embeddings^T) @ embeddings

        The second term is the evidence of a position's own z, so a network of zeros gives the mean
        under tokens that are independent and equally likely.

        Args:
          params: as `init` returns them.
          z: noisy embeddings.
          gamma: of every row.
          key: of dropout, None for none.
          lengths: of the rows, None for full rows. The rest of a row is padding, which no real
            position attends to.
        """
        head, hidden = self._body(params, z, gamma, key, lengths)
        weights = self.table(params), head.kernel[...], head.bias[...]

        def of_rows(weights, rows):
            (table, kernel, bias), (hidden, seen) = weights, rows
            logits = project(hidden, kernel.T) + bias[None] + seen @ table.T
            return jax.nn.softmax(self._real(logits), axis=-1) @ table

        return self._by_rows(of_rows, weights, (hidden, evidence(z, gamma)))

    def token_nll(
        self,
        params: Params,
        z: Float[Array, "B L E"],
        gamma: Float[Array, "B"],
        tokens: Int[Array, "B L"],
    ) -> Float[Array, "B L"]:
        """Returns -log p(token | z) in nats, by Bayes' rule for equally likely tokens.

        Args:
          params: as `init` returns them.
          z: noisy embeddings.
          gamma: of every row.
          tokens: what is scored.
        """

        def of_rows(table, rows):
            seen, tokens = rows
            log_probs = jax.nn.log_softmax(self._real(seen @ table.T), axis=-1)
            return -jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]

        return self._by_rows(of_rows, self.table(params), (evidence(z, gamma), tokens))

    def draw(
        self,
        params: Params,
        keys: Key[Array, "B"],
        z: Float[Array, "B L E"],
        gamma: Float[Array, "B"],
    ) -> Int[Array, "B L"]:
        """Draws every token given its z, from the distribution that `token_nll` scores.

        Args:
          params: as `init` returns them.
          keys: of the rows.
          z: noisy embeddings.
          gamma: of every row.
        """
        positions = jnp.arange(z.shape[1])
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, positions)

        def of_rows(table, rows):
            seen, words = rows
            probs = jax.nn.softmax(self._real(seen @ table.T), axis=-1)
            return jax.vmap(categorical.categorical)(jax.random.wrap_key_data(words), probs)

        rows = evidence(z, gamma), jax.random.key_data(keys)
        return self._by_rows(of_rows, self.table(params), rows)

    def _real(self, logits):
        """Logits of the padded vocabulary without its padding."""
        real = jnp.arange(logits.shape[-1]) < self.config.num_states
        return jnp.where(real[None], logits, -jnp.inf)

    def _outer(self, params):
        """The parameters outside the blocks, all-gathered."""
        outer = {name: params[name] for name in ("embedding", "input", *_MODULES)}
        return all_gathered(outer, self.placement, "")

    def _body(self, params, z, gamma, key, lengths):
        """The head, and what it projects to the vocabulary, [B, L, D]."""
        config, placement = self.config, self.placement
        outer = self._outer(params)
        sigma_embedding, head = (
            nnx.merge(structure(it, config), outer[name]) for name, it in _MODULES.items()
        )
        cond = sigma_embedding(gamma)
        rotary = rotary_tables(z.shape[1], config.model.hidden_size // config.model.num_heads)
        attention = rotary_attention_for(config.model.attention, placement)
        block_structure = structure(Block, config)

        def layer(block_params, x, block_key):
            block = nnx.merge(block_structure, block_params)
            return block(x, cond, rotary, block_key, attention, lengths, placement.row_major)

        # of variance 1: that of an embedding is 1 / E in each dimension
        variance = alpha(gamma) ** 2 / self.embed_dim + jax.nn.sigmoid(gamma)
        x = (z * jax.lax.rsqrt(variance)[:, None, None]) @ outer["input"]["kernel"]
        x = apply_blocks(layer, x, params["blocks"], key, config, placement)
        return head, head.hidden(x, cond)

    def _by_rows(self, function, weights, arrays):
        """function(weights, rows) of arrays [B, L, ...], `ROWS` positions of a device at a time."""
        batch, length = jax.tree.leaves(arrays)[0].shape[:2]
        split = PartitionSpec(self.placement.batch_axes(batch) or None)
        whole = jax.tree.map(lambda _: PartitionSpec(), weights)

        def on_device(weights, arrays):
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
            found = map_blocks(functools.partial(function, weights), rows, ROWS)
            return found.reshape(-1, length, *found.shape[1:])

        specs = whole, jax.tree.map(lambda _: split, arrays)
        return self.placement.per_device(on_device, specs, split)(weights, arrays)
