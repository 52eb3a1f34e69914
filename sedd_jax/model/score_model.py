"""The network of the paper (Appendix C.1), as a score: pure functions of parameters.

Embedding, embedding of the noise and head are here, what stands between them in `trunk`.

Shapes: B batch, L length, D hidden, C condition, F sigma features, V states.

References:
  Lou, Meng and Ermon, Discrete Diffusion Modeling by Estimating the Ratios of the Data
    Distribution, 2024 (arXiv 2310.16834).
  Peebles and Xie, Scalable Diffusion Models with Transformers, 2022 (arXiv 2212.09748): adaLN-zero.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from sedd_jax.data.column_statistics import ColumnSize
from sedd_jax.diffusion.graph import over_positions
from sedd_jax.diffusion.output import Output
from sedd_jax.diffusion.score import DenseScore, Score
from sedd_jax.model.conditions import ConditionEmbedding
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.context import NOTHING, Context
from sedd_jax.model.head_inputs import HeadInputs
from sedd_jax.model.sharding import ANYWHERE, Placement, all_gathered, param_layout
from sedd_jax.model.tiles import StreamedHead, Unembedding, tiling_for
from sedd_jax.model.transformer import (
    Dense,
    Embedding,
    LayerNorm,
    Params,
    initial_params,
    modulation_parts,
    structure,
)
from sedd_jax.model.trunk import TRUNKS
from sedd_jax.model.vocab_head import StreamedScore

FREQUENCIES = 256  # width of the sinusoidal embedding of sigma


@runtime_checkable
class NetworkFn(Protocol):
    """The signature of `ScoreModel.apply` and `ScoreModel.score`."""

    def __call__(
        self,
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B *L"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
        context: Context = NOTHING,
    ) -> Any:
        """Returns the network's output at noised tokens.

        Args:
          params: as `init` returns them.
          xt: noised tokens.
          sigma: total noise of every row, or of every position.
          key: of dropout, None for none.
          lengths: of the rows, None for full rows. The rest of a row is padding, of any ids: no
            real position attends to it, and its own log-scores mean nothing.
          context: what else it is told of the rows, see `ScoreModel.told`.
        """


class ScoreModel(NamedTuple):
    """A score network as pure functions.

    Attributes:
      init: init(key) -> params, a nested dict of float32 arrays. Block parameters have a leading
        axis of num_blocks.
      apply: returns log_score [B, L, V] in float32, 0 at the current token.
      score: returns the same as a `Score`, which need not materialise B L V numbers.
      max_length: number of learned positions, None for any number.
      told_given: whether the network is told which tokens are given.
      conditions: what it is told of a row; empty: nothing.
      classifier: what guides its samples, a `model.classifier.ClassifierModel`; then the parameters
        are {"network": ..., "classifier": ...}. None: nothing.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: NetworkFn
    score: NetworkFn
    max_length: int | None = None
    told_given: bool = False
    conditions: tuple[ColumnSize, ...] = ()
    classifier: Any = None

    def told(self, context: Context) -> Context:
        """Returns what the network takes of a context."""
        return context if self.told_given else context._replace(given=None)


def dense_model(init: Callable, apply: Callable, *, told_given: bool = False) -> ScoreModel:
    """Returns the score model whose `Score` is the materialised result of `apply`.

    Args:
      init: see `ScoreModel`.
      apply: likewise.
      told_given: likewise.
    """

    def score(params, xt, sigma, key=None, lengths=None, context=NOTHING):
        # many dense models know of neither
        known = {} if lengths is None else {"lengths": lengths}
        known |= {} if context.empty else {"context": context}
        return DenseScore(xt, apply(params, xt, sigma, key=key, **known))

    return ScoreModel(init, apply, score, told_given=told_given)


def sigma_features(sigma: Float[Array, "B"]) -> Float[Array, "B F"]:
    """Returns the sinusoidal features of the total noise: 128 cosines, then 128 sines."""
    half = FREQUENCIES // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = sigma[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class SigmaEmbedding(nnx.Module):
    """Maps the total noise to the conditioning vector: features, Linear, SiLU, Linear, SiLU."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width = config.model.cond_dim
        # tiny, and sigma spans decades
        config = dataclasses.replace(config, dtype=jnp.dtype("float32"))
        self.inner = Dense((FREQUENCIES,), (width,), config, rngs=rngs)
        self.outer = Dense((width,), (width,), config, rngs=rngs)

    def __call__(self, sigma: Float[Array, "B"]) -> Float[Array, "B C"]:
        return nnx.silu(self.outer(nnx.silu(self.inner(sigma_features(sigma)))))


class Head(nnx.Module):
    """Final norm, shift and scale by the noise, and the zero-initialised vocabulary projection."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        size = config.model.hidden_size
        self.config = config
        self.norm = LayerNorm(config, rngs=rngs)
        self.modulation = Dense((config.model.cond_dim,), (2, size), config, rngs=rngs, zero=True)
        self.kernel = nnx.Param(jnp.zeros((size, config.padded_states)))
        self.bias = nnx.Param(jnp.zeros(config.padded_states))

    def __call__(
        self, x: Float[Array, "B L D"], cond: Float[Array, "B *L C"]
    ) -> Float[Array, "B L V"]:
        """Returns the logits of the V states, float32, without padding."""
        states, h = self.config.num_states, self.hidden(x, cond)
        out = jnp.dot(
            h.reshape(-1, h.shape[-1]),
            self.kernel[...].astype(h.dtype),
            preferred_element_type=jnp.float32,
        )
        return (out + self.bias[...][None])[:, :states].reshape(*x.shape[:-1], states)

    def hidden(
        self, x: Float[Array, "B L D"], cond: Float[Array, "B *L C"]
    ) -> Float[Array, "B L D"]:
        """Returns what is projected to the vocabulary."""
        shift, scale = modulation_parts(self.modulation(cond))
        return self.norm(x, shift, scale).astype(self.config.dtype)


def score_model(
    config: TransformerConfig, placement: Placement = ANYWHERE, output: Output | None = None
) -> ScoreModel:
    """Builds the score network of the paper.

    Args:
      config: settings; `num_states` is that of the graph. With `scale_by_sigma` the log-score is
        the logits minus log expm1(sigma) + log(V - 1), so that zero logits are the ratios of a
        uniform guess under the absorbing graph (Appendix C.1).
      placement: of the activations.
      output: what the logits stand for if they are a softmax; None for log-scores.
    """
    modules = {"embedding": Embedding, "sigma": SigmaEmbedding, "head": Head}
    structures = {name: structure(module, config) for name, module in modules.items()}
    if config.conditions:
        structures["condition"] = structure(ConditionEmbedding, config)
    trunk = TRUNKS[config.model.trunk]
    trunk_of_length = trunk.build(config, placement)

    def init(key):
        outer_key, blocks_key = jax.random.split(key)
        keys = jax.random.split(outer_key, len(modules))
        params = {
            name: initial_params(module, config, k)
            for (name, module), k in zip(modules.items(), keys, strict=True)
        }
        if config.conditions:  # the other weights are those of the unconditional network
            own_key = jax.random.fold_in(outer_key, 0)
            params["condition"] = initial_params(ConditionEmbedding, config, own_key)
        block_keys = jax.random.split(blocks_key, config.model.num_blocks)
        params["blocks"] = jax.vmap(lambda k: initial_params(trunk.block, config, k))(block_keys)
        if config.told_given:
            params["given"] = {"table": jnp.zeros((2, config.model.hidden_size))}
        return params

    def body(params, xt, sigma, key, lengths, context):
        """The head, and its inputs: activations [B, L, D] and the conditioning vector."""
        outer = all_gathered({name: params[name] for name in structures}, placement, "")
        embedding, sigma_embedding, head = (
            nnx.merge(structures[name], outer[name]) for name in modules
        )
        layers = trunk_of_length(xt.shape[1])
        told = sigma if config.model.time_conditioning else jnp.zeros_like(sigma)
        # [B, C], or [B, L, C] where every position has its own noise
        cond = sigma_embedding(told.reshape(-1)).reshape(*told.shape, -1)
        if config.conditions:
            condition = nnx.merge(structures["condition"], outer["condition"])
            of_rows = condition(context.condition, len(xt))
            cond = cond + (of_rows if cond.ndim == 2 else of_rows[:, None])
        elif context.condition is not None:
            raise ValueError("This network has no conditions, and was given some.")
        x = embedding(xt)
        if config.told_given:
            given = jnp.zeros(xt.shape, bool) if context.given is None else context.given
            not_given, is_given = params["given"]["table"][:, None, None]
            x = x + jnp.where(given[..., None], is_given, not_given)
        x = layers(params["blocks"], x, cond, lengths, key)
        return head, x, cond

    def log_normaliser(sigma):
        if not config.model.scale_by_sigma:
            return jnp.zeros_like(sigma)
        return jnp.log(jnp.expm1(sigma)) + jnp.log(config.num_states - 1.0)

    def head_placement(unembedding, rows):
        """The placement of the head, split by the axes that divide its inputs and kernel."""
        if placement.mesh is None:
            return placement
        batch = placement.batch_axes(rows)
        fsdp, tensor = param_layout("head/kernel", unembedding.kernel.shape, placement.mesh).spec
        return placement._replace(batch=batch, tensor=tensor, fsdp=fsdp if fsdp in batch else None)

    def apply(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B *L"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
        context: Context = NOTHING,
    ) -> Float[Array, "B L V"]:
        head, x, cond = body(params, xt, sigma, key, lengths, context)
        if output is not None:
            return output.dense(sigma, xt, head(x, cond)).log_score
        logits, shift = head(x, cond), log_normaliser(sigma)
        log_score = logits - (shift[:, None, None] if sigma.ndim == 1 else shift[..., None])
        at_xt = jax.nn.one_hot(xt, config.num_states, dtype=bool)
        return jnp.where(at_xt, 0, log_score)

    def score(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B *L"],
        key: Key[Array, ""] | None = None,
        lengths: Int[Array, "B"] | None = None,
        context: Context = NOTHING,
    ) -> Score:
        head, x, cond = body(params, xt, sigma, key, lengths, context)
        unembedding = Unembedding(head.kernel[...], head.bias[...])
        tiling = tiling_for(placement.platform)
        streamed = StreamedHead(config.num_states, tiling, head_placement(unembedding, len(xt)))
        hidden = head.hidden(x, cond)
        if output is not None:
            inputs = HeadInputs(hidden, jnp.zeros(xt.shape), xt)
            return StreamedScore.of_softmax(streamed, unembedding, inputs, sigma, output)
        shift = jnp.broadcast_to(over_positions(log_normaliser(sigma)), xt.shape)
        return StreamedScore(streamed, unembedding, HeadInputs(hidden, shift, xt))

    told = {"told_given": config.told_given, "conditions": config.conditions}
    return ScoreModel(init, apply, score, config.max_length, **told)


def count_params(params: Params) -> int:
    """Returns the number of parameters, padding included."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def forward_flops(
    *,
    hidden_size: int,
    cond_dim: int,
    num_blocks: int,
    num_states: int,
    length: int,
    head_share: float = 1.0,
    kernel_width: int | None = None,
) -> float:
    """Returns the FLOPs of one forward pass over one sequence, 2 for a multiply and an add.

        blocks (24 L D^2 + 4 L^2 D + 12 C D)  +  2 C (256 + C) + 4 C D  +  head_share 2 L D V

    A block's terms are the products with its weights (queries, keys and values 3, output 1, MLP 8,
    each 2 L D^2), attention's two products over all pairs of positions, and the modulation by the
    noise, one for a sequence; then the embedding of sigma, the head's modulation, and the
    projection to the vocabulary. Norms, rotation, softmax and the loss are not products and are
    left out, like padding of the vocabulary and recomputation in a backward pass. The causal
    network is one with C = 0; all its pairs of positions count, as is the custom, though half of
    them are masked.

    Args:
      hidden_size: D.
      cond_dim: C, 0 for the causal network.
      num_blocks: number of transformer blocks.
      num_states: V, without padding.
      length: L.
      head_share: share of the positions whose logits are computed, in [0, 1].
      kernel_width: K of the convolutional trunk, whose blocks cost 2 K L D^2 + 6 C D, with the
        zeros beyond the ends; None for a transformer.
    """
    d, c = hidden_size, cond_dim
    if kernel_width is None:
        block = 24 * length * d**2 + 4 * length**2 * d + 12 * c * d
    else:
        block = 2 * kernel_width * length * d**2 + 6 * c * d
    conditioning = 2 * c * (FREQUENCIES + c) + 4 * c * d
    return num_blocks * block + conditioning + head_share * 2 * length * d * num_states


def network_flops(config: ModelConfig, num_states: int, head_share: float) -> float:
    """Returns `forward_flops` of a network that knows the noise, of either trunk.

    Args:
      config: its settings.
      num_states: outputs of the head, without padding.
      head_share: share of the positions whose logits are computed, in [0, 1].
    """
    return forward_flops(
        hidden_size=config.hidden_size,
        cond_dim=config.cond_dim,
        num_blocks=config.num_blocks,
        num_states=num_states,
        length=config.length,
        head_share=head_share,
        kernel_width=config.kernel_width if config.trunk == "convolution" else None,
    )
