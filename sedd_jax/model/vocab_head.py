"""The vocabulary head, streamed: sums over all states and draws from them, never B L V numbers.

On a mesh every device streams the positions of its shard of the batch; where the unembedding is
split too, the devices add up their sums. Padding of the vocabulary ends here.

Shapes: B batch, L length, D hidden, V columns of the padded unembedding, G = V / 128 groups.
`unembedding` is the projection to logits, `inputs` what it is applied to.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.blend import Blend
from sedd_jax.diffusion.graph import align, at_states, over_positions
from sedd_jax.diffusion.output import Output, Softmax
from sedd_jax.diffusion.score import DenseScore, Drawn, Score, StepWeightsFn, Terms
from sedd_jax.diffusion.score_entropy import Target, entropy_terms
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter
from sedd_jax.model import head_draws
from sedd_jax.model.head_inputs import Added, HeadInputs, Second
from sedd_jax.model.head_loss import loss_and_gradient, losses, shannon_entropy
from sedd_jax.model.head_softmax import log_rest, softmax_loss_and_gradient
from sedd_jax.model.tiles import StreamedHead, Unembedding

# True ratios are at most about V / sigma(t_min), 5e7 as a rule: their square is far from overflow.
LEAST_UNBOUNDED = 0.5

# How arguments (after the head and settings) and results are sharded: names of `_per_device`.
_SHARDING = {
    losses: (("unembedding", *["rows"] * 3), "rows"),
    loss_and_gradient: (("unembedding", *["rows"] * 3), ("all", ("rows", "gradient"))),
    softmax_loss_and_gradient: (
        ("unembedding", *["rows"] * 4),
        ("all", ("rows", "gradient"), "rows"),
    ),
    log_rest: (("unembedding", *["rows"] * 2), "rows"),
    head_draws.masses: (("unembedding", *["rows"] * 3), "masses"),
    shannon_entropy: (("unembedding", *["rows"] * 2), "rows"),
    head_draws.pick: (("unembedding", *["rows"] * 5), "rows"),
    head_draws.pick_filtered: (("unembedding", *["rows"] * 4), "rows"),
    head_draws.bounds: (("unembedding", *["rows"] * 2), "rows"),
    head_draws.log_score_at: (("unembedding", *["rows"] * 2), "rows"),
}


def _per_device(head, function, *settings):
    """One of the functions above on all devices, each with its own shards."""
    batch, tensor = head.placement.batch or None, head.placement.tensor
    specs = {
        "all": PartitionSpec(),
        "rows": PartitionSpec(batch),
        "unembedding": Unembedding(PartitionSpec(None, tensor), PartitionSpec(tensor)),
        "gradient": Unembedding(PartitionSpec(head.placement.fsdp, tensor), PartitionSpec(tensor)),
        "masses": PartitionSpec(batch, None, tensor),
    }
    in_specs, out_specs = jax.tree.map(specs.__getitem__, _SHARDING[function])
    bound = functools.partial(function, head, *settings)
    return head.placement.per_device(bound, in_specs, out_specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _weighted(head, output, terms, unembedding, inputs, sigma, arguments, weight):
    if output is None:
        each = _per_device(head, losses, terms)(unembedding, inputs, arguments, weight != 0)
        return jnp.sum(weight * each)
    return _forward(head, output, terms, unembedding, inputs, sigma, arguments, weight)[0]


def _forward(head, output, terms, unembedding, inputs, sigma, arguments, weight):
    if output is None:
        function = _per_device(head, loss_and_gradient, terms)
        total, gradient = function(unembedding, inputs, arguments, weight)
        # the gradient in the weight, which the compiler drops where it is not used
        each = _per_device(head, losses, terms)(unembedding, inputs, arguments, weight != 0)
    else:
        function = _per_device(head, softmax_loss_and_gradient, output, terms)
        total, gradient, each = function(unembedding, inputs, sigma, arguments, weight)
    return total, (gradient, each, jnp.zeros(0, inputs.hidden.dtype))


def _backward(head, output, terms, residual, cotangent):
    gradient, losses, like_hidden = residual
    d_hidden, d_unembedding = jax.tree.map(lambda x: x * cotangent, gradient)
    d_inputs = HeadInputs(d_hidden.astype(like_hidden.dtype), None, None)
    return d_unembedding, d_inputs, None, None, cotangent * losses


_weighted.defvjp(_forward, _backward)


def _entropy_terms(of_states, *target):
    return entropy_terms(Target(*target), of_states.states, of_states.log_score)


@dataclasses.dataclass(frozen=True)
class StreamedScore(Score):
    """A network's output, never materialised: the inputs of the projection to the vocabulary.

    Attributes:
      head: how the unembedding is streamed.
      unembedding: the projection, padded to a multiple of 128 columns.
      inputs: what it is applied to.
      top_p: of the conditional of every token, see `tempered`.
      output: what the logits stand for, see `of_softmax`; None for log-scores.
      sigma: total noise, of an output that is a softmax.
      total: what the ratios are scaled to; None for no scaling.
    """

    head: StreamedHead
    unembedding: Unembedding
    inputs: HeadInputs
    top_p: float = 1.0
    output: Output | None = None
    sigma: Float[Array, "B L"] | None = None
    total: Float[Array, "B L"] | None = None

    @classmethod
    def of_softmax(
        cls,
        head: StreamedHead,
        unembedding: Unembedding,
        inputs: HeadInputs,
        sigma: Float[Array, "B *L"],
        output: Output,
    ) -> "StreamedScore":
        """Returns the score of a network whose logits are a softmax over the tokens.

        Its ratios cost one more product of the head, for the sum of the softmax; its losses do not.

        Args:
          head: how the unembedding is streamed.
          unembedding: the projection, padded to a multiple of 128 columns.
          inputs: what it is applied to.
          sigma: total noise.
          output: what the softmax stands for.
        """
        graph, xt = output.graph, inputs.xt
        sigma = jnp.broadcast_to(over_positions(sigma), xt.shape)
        # no gradient: `weighted` has one of its own
        logits = cls(head, *jax.lax.stop_gradient((unembedding, inputs)))
        softmax = Softmax(
            _per_device(head, log_rest, graph.num_tokens)(
                logits.unembedding, logits.inputs, graph.limit[xt] > 0
            ),
            jnp.where(xt < graph.num_tokens, logits._log_score_at(xt), -jnp.inf),
        )
        shift, offset = output.ratios(sigma, xt, softmax)
        added = None
        if graph.equal_limit != 0:
            added = Added(jnp.log(offset), graph)
        inputs = inputs._replace(shift=shift, added=added)
        return cls(head, unembedding, inputs, output=output, sigma=sigma)

    def entropy(self, target: Target) -> Float[Array, "B L"]:
        self._refuse_blended()
        function = _per_device(self.head, losses, _entropy_terms)
        return target.weight * function(self.unembedding, self.inputs, target, target.weight > 0)

    def weighted_entropy(self, target: Target, weight: Float[Array, "B *L"]) -> Float[Array, ""]:
        return self.weighted(_entropy_terms, target, over_positions(weight) * target.weight)

    def weighted(
        self, terms: Terms, arguments: Sequence[Any], weight: Float[Array, "B L"]
    ) -> Float[Array, ""]:
        self._refuse_blended()
        inputs = self.inputs._replace(added=None)  # of a softmax the logits are taken alone
        given = self.unembedding, inputs, self.sigma, tuple(arguments), weight
        return _weighted(self.head, self.output, terms, *given)

    def tempered(self, token_filter: TokenFilter) -> "StreamedScore":
        """As `Score.tempered`; a temperature from 0.5 on costs nothing.

        A lower one and top-p cost one more product of the head at every position that is drawn.
        """
        head = self.head._replace(temperature=token_filter.temperature)
        return dataclasses.replace(self, head=head, top_p=token_filter.top_p)

    def draw(
        self,
        keys: Key[Array, "B"],
        step_weights: StepWeightsFn,
        active: Bool[Array, "B L"],
        token_filter: TokenFilter = NO_FILTER,
    ) -> Drawn:
        self = self._bounded(active)
        total, step, masses = self._weigh(step_weights, active)
        jump_keys, target_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        length = active.shape[1]
        u = jax.vmap(lambda key: categorical.uniform_by_position(key, (length,)))(jump_keys)
        jumps = active & categorical.leaves(u, step.scale * masses.sum(-1), step.stay)
        if token_filter == NO_FILTER:
            drawn = self._on_devices(head_draws.pick, target_keys, jumps, step.cut, masses)
        else:
            pick = _per_device(self.head, head_draws.pick_filtered, token_filter)
            drawn = pick(self.unembedding, self.inputs, target_keys, jumps, step.cut)
        return Drawn(jnp.where(jumps, drawn, self.inputs.xt), total)

    def log_prob(
        self, step_weights: StepWeightsFn, active: Bool[Array, "B L"], states: Int[Array, "B L"]
    ) -> Float[Array, "B L"]:
        self = self._bounded(active)
        _, step, masses = self._weigh(step_weights, active)
        log_weight = self._log_score_at(states)
        if step.cut is not None:
            cut = at_states(step.cut, states, states.ndim)
            log_weight = jnp.log(jnp.maximum(jnp.exp(log_weight) - cut, 0))
        stay, stays = jnp.maximum(step.stay, 0), states == self.inputs.xt
        log_weight = jnp.where(stays, jnp.log(stay), jnp.log(step.scale) + log_weight)
        log_prob = log_weight - jnp.log(stay + step.scale * masses.sum(-1))
        return jnp.where(active, log_prob, jnp.where(stays, 0, -jnp.inf))

    def shannon_entropy(self, active: Bool[Array, "B L"]) -> Float[Array, "B L"]:
        return self._bounded(active)._on_devices(shannon_entropy, active)

    def _bounded(self, active):
        """The same score with the bounds of its tempered ratios, where it needs them."""
        if self.top_p == 1 and self.head.temperature >= LEAST_UNBOUNDED:
            return self
        bounds = _per_device(self.head, head_draws.bounds, self.top_p)
        excess, floor = bounds(self.unembedding, self.inputs, active)
        inputs = self.inputs.lowered(self.head.temperature * excess)._replace(floor=floor - excess)
        return dataclasses.replace(self, inputs=inputs)

    def at(self, states: Int[Array, "B L"]) -> Float[Array, "B L"]:
        self._refuse_scaled()
        return jnp.where(states == self.inputs.xt, 1, jnp.exp(self._log_score_at(states)))

    def blended(
        self, other: "StreamedScore", blend: Blend, xt: Int[Array, "B L"]
    ) -> "StreamedScore":
        self._refuse_tempered()
        second = Second(self.inputs.xt, other.inputs, blend)
        return dataclasses.replace(self, inputs=self.inputs._replace(xt=xt, second=second))

    def guided(self, other: "StreamedScore", weight: float | Float[Array, "B"]) -> "StreamedScore":
        """As `Score.guided`, in one pass over the unembedding, and mostly in one product.

        See `HeadInputs.guided`.
        """
        self._refuse_tempered()
        weight = jnp.asarray(weight, jnp.float32)
        weight = jnp.broadcast_to(align(weight, 2), self.inputs.xt.shape)
        inputs = self.inputs.guided(other.inputs, weight)
        return StreamedScore(self.head, self.unembedding, inputs)

    def times(self, log_factors: Float[Array, "B L V"]) -> DenseScore:
        return self.written_out().times(log_factors)

    def scaled_to(self, total: Float[Array, "B L"]) -> "StreamedScore":
        """As `Score.scaled_to`, where they are drawn from: the sum is known there."""
        return dataclasses.replace(self, total=total)

    def written_out(self) -> DenseScore:
        """Returns the same with all log-scores materialised, for few states."""
        self._refuse_tempered()
        states = self.head.num_states

        def of_state(state):
            return self._log_score_at(jnp.full_like(self.inputs.xt, state))

        log_score = jax.lax.map(of_state, jnp.arange(states))
        return DenseScore(self.inputs.xt, jnp.moveaxis(log_score, 0, -1))

    def _log_score_at(self, states):
        """The log-scores, not scaled to `total`."""
        second = self.inputs.second
        if second is None:
            return self._on_devices(head_draws.log_score_at, states)
        both = self.inputs._replace(xt=second.first_xt, second=None), second.inputs
        ratios = (dataclasses.replace(self, inputs=inputs).at(states) for inputs in both)
        return jnp.log(second.blend(*ratios, states))

    def _refuse_blended(self):
        if self.inputs.second is not None or self.inputs.guide is not None:
            raise TypeError("A blend of two outputs has no score entropy.")

    def _refuse_tempered(self):
        if (self.top_p, self.head.temperature) != (1, 1):
            raise TypeError("Tempered outputs are not blended.")
        self._refuse_scaled()

    def _refuse_scaled(self):
        if self.total is not None:
            raise TypeError("Ratios that are scaled to a sum are only drawn from.")

    def _weigh(self, step_weights, active):
        """The total of the ratios, the step's weights, and by them the unscaled group masses."""
        masses = self._on_devices(head_draws.masses, active, None)
        total = masses.sum(-1)
        if self.total is not None:
            return self._weigh_scaled(step_weights, total, masses)
        step = step_weights(total)
        if step.cut is not None:  # it depends on the total, so the head is streamed once more
            again = functools.partial(self._on_devices, head_draws.masses, active, step.cut)
            cuts = [jnp.any(cut > 0) for cut in jax.tree.leaves(step.cut)]
            masses = jax.lax.cond(functools.reduce(jnp.logical_or, cuts), again, lambda: masses)
        return total, step, masses

    def _weigh_scaled(self, step_weights, total, masses):
        factor = jnp.where(total > 0, self.total / jnp.where(total > 0, total, 1), 1)
        step = step_weights(factor * total)
        if step.cut is not None:
            raise TypeError("Scaled ratios are for weights without a cut.")
        return factor * total, step._replace(scale=factor * step.scale), masses

    def _on_devices(self, function, *arguments):
        return _per_device(self.head, function)(self.unembedding, self.inputs, *arguments)
