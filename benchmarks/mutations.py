"""Counts which mistakes in the mathematics the quick test suite catches, one at a time.

A mutation turns a correct formula into a wrong one, in a copy of the tree. The script runs the
quick tests that should fail. A mutation that survives is a claim that no test proves.

    python -m benchmarks.mutations                # all of them: 10 to 20 minutes on 2 cores
    python -m benchmarks.mutations --list
    python -m benchmarks.mutations --only=12 --only=34
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
COPIED = ("sedd_jax", "configs", "tests", "examples", "launch", "docs", "benchmarks")
FILES = ("pyproject.toml", "setup.py", "README.md", "CHANGELOG.md")


class Mutation(NamedTuple):
    """A mistake in the source of one module.

    Attributes:
      path: of the module, from `sedd_jax/` on.
      old: text that occurs exactly once in it.
      new: what replaces it.
      tests: paths of the tests that should fail, from `tests/` on.
    """

    path: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutations_of(path: str, tests: str, *pairs: tuple[str, str]) -> list[Mutation]:
    """Returns the mutations of one module that the same tests catch.

    Args:
      path: of the module, from `sedd_jax/` on.
      tests: paths from `tests/` on, separated by blanks.
      pairs: right and wrong texts.
    """
    return [Mutation(path, old, new, tuple(tests.split())) for old, new in pairs]


MUTATIONS = [
    *mutations_of(
        "diffusion/noise.py",
        "diffusion/test_noise.py",
        ("-jnp.log1p(-moved * t)", "-jnp.log1p(-(1 - eps / 2) * t)"),
        ("return moved / (1 - moved * t)", "return 1 / (1 - moved * t)"),
        ("(1 - t) * log_min + t * log_max", "t * log_min + (1 - t) * log_max"),
        ("sigma(t) * (log_max - log_min)", "sigma(t) * log_max"),
    ),
    *mutations_of(
        "diffusion/graph.py",
        "diffusion/test_graph.py diffusion/test_denoiser.py",
        ("self._limit_per_row(x) - self._one_hot(x)", "self._limit_per_row(x)"),
        ("return self.limit[x][..., None] -", "return self._limit_per_row(x) -"),
        ("+ moved * self._limit_per_row(x)", "+ sigma * self._limit_per_row(x)"),
        ("+ moved * self.limit[x][..., None]", "+ moved * self._limit_per_row(x)"),
        ("* score - jnp.expm1(sigma) * redrawn", "* score + jnp.expm1(-sigma) * redrawn"),
        ("-jnp.expm1(-align(sigma, x0.ndim))", "-jnp.expm1(-align(sigma / 2, x0.ndim))"),
        ("return 1 / self.num_states", "return 1 / (self.num_states - 1)"),
        ("(1 - self.mask) / self.num_tokens", "(1 - self.mask) / self.num_states"),
        ("jnp.full(shape, self.mask))", "jnp.full(shape, 1 - self.mask))"),
    ),
    *mutations_of(
        "diffusion/graph.py",
        "diffusion/test_score_entropy.py inference/test_bound.py",
        ("* token / self.num_tokens", "* token / self.num_states"),
    ),
    *mutations_of(
        "diffusion/score_entropy.py",
        "diffusion/test_score_entropy.py diffusion/test_score.py diffusion/test_conversions.py",
        ("stayed, 0) + moved * graph.limit[xt]", "stayed, 0) + graph.limit[xt]"),
        ("(stayed + moved * graph.equal_limit) / likelihood", "stayed / likelihood"),
        ("(stayed + moved * graph.limit[x0]) / likelihood", "stayed / likelihood"),
        ("states, ndim) - 1)", "states, ndim))"),
        ("of_others.sum() - of_others + at_x0", "of_others.sum() + at_x0"),
        ("xlogy(r, r) - r for r", "xlogy(r, r) for r"),
        ("ratio * log_score + constant", "ratio * jnp.exp(log_score) + constant"),
        ("(states != target.xt[..., None]) & (", "(states >= 0) & ("),
        ("+ xlogy(ratio, ratio) - ratio", "+ xlogy(ratio, ratio)"),
        ("graph.noised_guess(sigma)", "graph.noised_guess(2 * sigma)"),
    ),
    *mutations_of(
        "diffusion/times.py",
        "diffusion/test_times.py",
        ("(order_key, grid % 1)", "(order_key, jnp.minimum(grid, 1))"),
        ("t_min + (1 - t_min) * sample_quantiles", "t_min + sample_quantiles"),
    ),
    *mutations_of(
        "diffusion/times.py",
        "inference/test_bound.py",
        ("return v**2 * (3 - 2 * v)", "return v**3 * (3 - 2 * v)"),
    ),
    *mutations_of(
        "diffusion/importance.py",
        "diffusion/test_importance.py",
        ("* mean / mean.mean() + FLOOR", "* mean / mean.mean()"),
        ("bernoulli(chance_key, p * a / mean)", "bernoulli(chance_key, p)"),
        ("(count * a + (length - count) * b)", "(count * a)"),
        ("1 / (density * jnp.where(tilt > 0, tilt, 1))", "1 / jnp.where(tilt > 0, tilt, 1)"),
        ("return p, p * moved + (1 - p) * other,", "return p, moved + other,"),
    ),
    *mutations_of(
        "diffusion/token_guess.py",
        "diffusion/test_token_guess.py",
        ("jnp.where(same, limit[xt] / at.likelihood,", "jnp.where(same, limit[xt],"),
        ("mean = rest + limit[x0] * excess + at.kl", "mean = rest + at.kl"),
        ("kl = likelihood * log_rho + moved *", "kl = likelihood * log_rho - moved *"),
    ),
    *mutations_of(
        "inference/control.py",
        "inference/test_control.py",
        ("mean = mean * len(nats)", "mean = mean * 1"),
        ("scale = (all_nats - nats) /", "scale = all_nats /"),
    ),
    *mutations_of(
        "diffusion/any_order.py",
        "diffusion/test_any_order.py",
        ("tangent = psi + np.expm1(", "tangent = psi + np.exp("),
        ("axis=0) - np.log(len(log_weights))", "axis=0)"),
        ("- np.log(len(log_weights) - 1)", "- np.log(len(log_weights))"),
        ("(hits.evaluation >= step)", "(hits.evaluation > step)"),
    ),
    *mutations_of(
        "diffusion/first_hitting.py",
        "diffusion/test_any_order.py",
        ("count - end + u * (end - start)", "u * count"),
    ),
    *mutations_of(
        "diffusion/categorical.py",
        "diffusion/test_categorical.py",
        ("(low.astype(jnp.float32) + 0.5) * 2.0**-32", "(low.astype(jnp.float32) * 0 + 0.5)"),
        ("-jnp.log(-jnp.log1p(-u))", "-jnp.log(-jnp.log(u))"),
        ("away = jnp.where(at_xt, 0, weights)", "away = weights"),
        ("leave / (leave + stay)", "leave"),
    ),
    *mutations_of(
        "diffusion/categorical.py",
        "verification/exact/test_reverse_process.py",
        ("weights / weights.sum(-1, keepdims=True)", "weights / weights.max(-1, keepdims=True)"),
    ),
    *mutations_of(
        "diffusion/score.py",
        "diffusion/test_score.py",
        ("* (score - cut))", "* score)"),
        ("dtype=bool), 0, score).sum(-1)", "dtype=bool), 1, score).sum(-1)"),
        ("return target.weight * terms.sum(-1)", "return terms.sum(-1)"),
    ),
    *mutations_of(
        "diffusion/euler.py",
        "diffusion/test_sampler.py diffusion/test_score.py",
        ("graph.transposed_rate(xt) * score", "graph.rate(xt) * score"),
        ("stay=1 - rate * total", "stay=1 - rate"),
        ("noise.dsigma(t) * (t - t_next)", "noise.dsigma(t_next) * (t - t_next)"),
    ),
    *mutations_of(
        "diffusion/tweedie.py",
        "diffusion/test_sampler.py",
        ("noise.sigma(t) - noise.sigma(t_next)", "noise.dsigma(t) * (t - t_next)"),
    ),
    *mutations_of(
        "diffusion/sampler.py",
        "diffusion/test_sampler.py",
        ("limit[xt] > 0) & ~self.clamp.held", "limit[xt] > 0) & self.clamp.held"),
        ("jnp.where(self.held, self.tokens, xt)", "xt"),
        ("jnp.linspace(1.0, process.t_min,", "jnp.linspace(1.0, 0.5,"),
    ),
    *mutations_of(
        "diffusion/denoiser.py",
        "diffusion/test_denoiser.py diffusion/test_score.py diffusion/test_sampler.py",
        ("(1 - limit - limit * total)", "(1 - limit * total)"),
        ("times_limit(graph, moved, 1 + total)", "times_limit(graph, moved, total)"),
        ("cut.without_mask(where) if", "cut if"),
        ("jnp.exp(-delta) + moved * limit", "jnp.exp(-delta)"),
        ("scale=growth * limit", "scale=moved * limit"),
        ("xt < graph.num_tokens", "xt <= graph.num_tokens"),
        ("staggered_score(graph, score, delta_sigma) * likelihood", "score * likelihood"),
        ("tweedie_probs(graph, xt, score, sigma)[", "tweedie_probs(graph, xt, score, sigma / 2)["),
    ),
    *mutations_of(
        "diffusion/first_hitting.py",
        "diffusion/test_first_hitting.py",
        ("hit = u * masked[0]", "hit = u"),
        ("jnp.maximum(-jnp.log1p(-hit), sigmas[-1])", "jnp.maximum(hit, sigmas[-1])"),
        ("stay=jnp.zeros_like(total)", "stay=jnp.ones_like(total)"),
        ("jnp.searchsorted(-masked[1:], -hit)", "jnp.searchsorted(-masked, -hit)"),
    ),
    *mutations_of(
        "diffusion/temperature.py",
        "diffusion/test_temperature.py",
        ("keepdims=True)) / self.temperature", "keepdims=True)) * self.temperature"),
        ("before < top_p * mass[..., -1:]", "mass < top_p * mass[..., -1:]"),
    ),
    *mutations_of(
        "diffusion/temperature.py",
        "model/test_vocab_head.py",
        ("reached = kept >= enough", "reached = weights.sum(-1) - kept >= enough"),
        ("jnp.maximum(excess, 0), excess)", "0, jnp.maximum(excess, 0))"),
    ),
    *mutations_of(
        "diffusion/objective.py",
        "diffusion/test_score.py diffusion/test_conversions.py",
        ("return noise.dsigma(t) * entropy.sum(-1)", "return entropy.sum(-1)"),
        ("batch.weight * noise.dsigma(batch.t)", "noise.dsigma(batch.t)"),
    ),
    *mutations_of(
        "diffusion/second_order.py",
        "diffusion/test_second_order.py",
        ("1 / (2 * self.theta * (1 - self.theta))", "1 / (2 * self.theta)"),
        ("earlier * jnp.exp(delta)", "earlier"),
        ("times_limit(graph, -earlier * growth)", "times_limit(graph, 0 * earlier * growth)"),
        ("before.score.at(start) - growth", "1.0 - growth"),
        ("jnp.where(known, earlier, 1)", "earlier"),
        ("jnp.exp(back) * moved * limit", "jnp.expm1(back) * limit"),
    ),
    *mutations_of(
        "model/head_inputs.py",
        "model/test_guided.py",
        ("share * a + (1 - share) * b", "share * a + share * b"),
        ("weight * first + (1 - weight) * other", "weight * first + other"),
    ),
    *mutations_of(
        "diffusion/guidance.py",
        "diffusion/test_guidance.py",
        ("log_prob - here)", "log_prob)"),
        ("power * factors(", "factors("),
        ("gradient - jnp.take_along_axis", "gradient + 0 * jnp.take_along_axis"),
        ("1 / jnp.expm1(align(sigma, 2))", "1 / jnp.exp(align(sigma, 2))"),
    ),
    *mutations_of(
        "diffusion/constraint.py",
        "diffusion/test_constraint.py",
        ("none * probs + one * jnp.pad", "probs + one * jnp.pad"),
        (
            "(joint * which[None, None]).sum(-1) / joint.sum(-1)",
            "(joint * which[None, None]).sum(-1)",
        ),
    ),
    *mutations_of(
        "model/tiles.py",
        "model/test_blended.py",
        ("inputs._replace(xt=inputs.second.first_xt)", "inputs"),
    ),
    *mutations_of(
        "model/head_loss.py",
        "model/test_vocab_head.py",
        ("jnp.where(chunk.unvisited[None], each, 0)", "jnp.where(chunk.real[None], each, 0)"),
        ("+ low.astype(jnp.float32).sum(0)", "+ 2 * low.astype(jnp.float32).sum(0)"),
    ),
    *mutations_of(
        "model/head_draws.py",
        "model/test_vocab_head.py",
        ("state = shard.first_state + start", "state = shard.first_state"),
        ("out + unembedding.bias[column]", "out"),
    ),
    *mutations_of(
        "model/vocab_head.py",
        "model/test_vocab_head.py",
        ("jnp.log(stay + step.scale * masses.sum(-1))", "jnp.log(step.scale * masses.sum(-1))"),
        ("step.scale * masses.sum(-1), step.stay", "masses.sum(-1), step.stay"),
    ),
    *mutations_of(
        "model/tiles.py",
        "model/test_vocab_head.py",
        ("(inputs.hidden) - inputs.shift", "(inputs.hidden) + inputs.shift"),
        ("(states < self.num_states) & (column < self.columns)", "(column < self.columns)"),
        ("(self.states[None] != inputs.xt[:, None])", "(self.states[None] >= 0)"),
        ("jnp.maximum(score - at_states(cut, self.states, 2), 0)", "score"),
        ("log_score >= inputs.floor[:, None]", "log_score >= -jnp.inf"),
        ("self.states[None] == inputs.xt[:, None], 0, log", "self.states[None] < 0, 0, log"),
        ("return x if axis is None else jax.lax.psum(x, axis)", "return x"),
    ),
    *mutations_of(
        "model/head_inputs.py",
        "model/test_vocab_head.py",
        ("else log_score / temperature", "else log_score * temperature"),
    ),
    *mutations_of(
        "model/vocab_head.py",
        "model/test_softmax_head.py",
        ("None, None, cotangent * losses", "None, None, losses"),
    ),
    *mutations_of(
        "model/head_softmax.py",
        "model/test_softmax_head.py",
        ("d_softmax.log_rest[:, None] * share", "d_softmax.log_rest[:, None] * 0 * share"),
        ("jnp.where(at_xt, d_softmax.logit[:, None], 0)", "0 * d_softmax.logit[:, None]"),
        ("head.log_sum_over_shards(softmax.log_rest), head", "softmax.log_rest, head"),
        ("(chunk.unvisited & (chunk.states < num_tokens))", "(chunk.states < num_tokens)"),
    ),
    *mutations_of(
        "diffusion/output.py",
        "diffusion/test_output.py",
        (
            "leaves / jnp.where(changes, limit, 1) + stays",
            "1 / jnp.where(changes, limit, 1) + stays",
        ),
        ("_expm1(sigma) / (1 + odds)", "_expm1(sigma)"),
        ("jnp.where(at_xt, jnp.log1p(odds)[..., None], log_odds[..., None])", "0.0"),
        ("jnp.logaddexp(softmax.logit - log_total, log_odds)", "log_odds"),
    ),
    *mutations_of(
        "diffusion/d3pm.py",
        "diffusion/test_objectives.py",
        ("jnp.where(index > 1, before, 0)", "before"),
        ("moved * limit * everything", "moved * limit"),
        ("batch.weight * self.steps / len(x0)", "batch.weight / len(x0)"),
    ),
    *mutations_of(
        "diffusion/concrete_score.py",
        "diffusion/test_objectives.py",
        ("/ unit**2", "/ unit"),
        ("batch.weight * noise.dsigma(batch.t) / len(x0)", "batch.weight / len(x0)"),
    ),
    *mutations_of(
        "diffusion/cross_entropy.py",
        "diffusion/test_objectives.py",
        ("noise.dsigma(batch.t) / jnp.expm1(sigma)", "noise.dsigma(batch.t) / sigma"),
        ("return self.weighted and graph.absorbs", "return self.weighted"),
    ),
    *mutations_of(
        "diffusion/time_sampling.py",
        "diffusion/test_time_sampling.py",
        ("jnp.log(jnp.expm1(noise.sigma(", "jnp.log((noise.sigma("),
        ("(logit - self.mean) / self.std", "(logit - self.mean) * self.std"),
        ("above[:-1] - above[1:]", "above[:-1]"),
        ("jnp.sqrt(square)", "square"),
        ("total.at[cell].add(loss**2)", "total.at[cell].add(loss)"),
        ("(t - t_min) / (1 - t_min) * self.cells", "(t - t_min) * self.cells / 2"),
        ("(1 - FLOOR) * mass / mass.mean() + FLOOR", "mass / mass.mean()"),
    ),
    *mutations_of(
        "model/denoiser_layouts.py",
        "model/test_denoiser_layouts.py",
        ("no_class / (1 + np.exp(-no_class))", "no_class"),
        ("(num_classes, cond_dim), path)[-1]", "(num_classes, cond_dim), path)[0]"),
        (
            'modulate(f"{block}.adaLN_modulation", first,',
            'modulate(f"{block}.adaLN_modulation", zeros,',
        ),
        ('shift("output_layer.norm_final"), zeros)', "zeros, zeros)"),
    ),
    *mutations_of(
        "model/rows.py",
        "model/test_vocab_head.py",
        ("fold_in)(keys[sequence], position)", "fold_in)(keys[sequence], sequence)"),
    ),
    *mutations_of(
        "model/attention.py",
        "model/test_attention.py test_golden.py",
        ("logits * width**-0.5", "logits * width**-0.25"),
        ("jnp.tri(length, dtype=bool)", "jnp.tri(length, k=1, dtype=bool)"),
        ("jnp.where(real[:, None], logits, -jnp.inf)", "jnp.where(real[:, None], logits, 0)"),
        ("second * cos + first * sin", "second * cos - first * sin"),
        ("jnp.arange(0, head_dim, 2) / head_dim", "jnp.arange(0, head_dim, 2) / (head_dim - 2)"),
    ),
    *mutations_of(
        "model/transformer.py",
        "model/test_transformer.py test_golden.py",
        ("(1 if scale is None else 1 + scale)", "(1 if scale is None else scale)"),
        ("jax.lax.rsqrt(variance + 1e-5)", "jax.lax.rsqrt(variance + 1e-3)"),
        ("d - d.mean(-1, keepdims=True)", "d"),
        ("approximate=True", "approximate=False"),
    ),
    *mutations_of(
        "model/dropout.py",
        "model/test_transformer.py",
        ("jnp.float32(1 / (1 - _dropped(rate) / 2**16))", "jnp.float32(1)"),
    ),
    *mutations_of(
        "model/trunk.py",
        "model/test_score_model.py model/test_transformer.py test_golden.py",
        ("x + gate_a * dropout(", "x + dropout("),
        ("shift_m, scale_m, gate_m = mod", "scale_m, shift_m, gate_m = mod"),
    ),
    *mutations_of(
        "model/score_model.py",
        "model/test_score_model.py model/test_transformer.py test_golden.py",
        ("[jnp.cos(angles), jnp.sin(angles)]", "[jnp.sin(angles), jnp.cos(angles)]"),
        ("nnx.silu(self.outer(", "(self.outer("),
        (
            "modulation_parts(self.modulation(cond))",
            "modulation_parts(self.modulation(cond))[::-1]",
        ),
        ("jnp.log(config.num_states - 1.0)", "jnp.log(config.num_states * 1.0)"),
        ("jnp.where(at_xt, 0, log_score)", "log_score"),
        (
            "shift = jnp.broadcast_to(over_positions(log_norm",
            "shift = -jnp.broadcast_to(over_positions(log_norm",
        ),
    ),
    *mutations_of(
        "model/autoregressive.py",
        "model/test_autoregressive.py inference/test_autoregressive.py",
        ("jnp.arange(keys.shape[1]) <= position", "jnp.arange(keys.shape[1]) <= position + 1"),
        ("return jnp.log(total) + top - scored", "return jnp.log(total) - scored"),
    ),
    *mutations_of(
        "inference/likelihood.py",
        "inference/test_bound.py verification/exact/test_likelihood.py",
        ("freedom = (draws - 1) / draws", "freedom = draws"),
        ("self.nats.mean(0).sum() / self.", "self.nats.sum() / self."),
        ("(1 - t_min if complete else 1)", "(1 + t_min if complete else 1)"),
        ("nats + family.prior_nll() * tokens +", "nats +"),
        ("[jax.random.fold_in(key, draw) for", "[key for"),
    ),
    *mutations_of(
        "inference/score_based.py",
        "inference/test_bound.py verification/exact/test_likelihood.py",
        ("return batch.weight * dwdse_loss(", "return dwdse_loss("),
        ("jnp.broadcast_to(noise.sigma(t_min), x0", "jnp.broadcast_to(noise.sigma(4 * t_min), x0"),
    ),
    *mutations_of(
        "inference/family.py",
        "inference/test_bound.py verification/exact/test_likelihood.py",
        ("axis=1)), draws * weights", "axis=1)), np.ones(draws)"),
    ),
    *mutations_of(
        "diffusion/gaussian.py",
        "diffusion/test_gaussian.py inference/test_gaussian.py",
        ("weight = 0.5 * rate", "weight = rate"),
        ("(jax.nn.softplus(-gamma) - left)", "jax.nn.softplus(-gamma)"),
        ("(1 - forgotten) / alpha(now) * z", "(1 - forgotten) * z"),
        ("alpha(gamma) / jax.nn.sigmoid(gamma)", "alpha(gamma) / sigma(gamma)"),
        ("2 * value * d", "2 * d"),
    ),
    *mutations_of(
        "inference/gaussian.py",
        "inference/test_gaussian.py",
        ("(last - first) * levels.rate", "levels.rate"),
        ("x_hat, (now, then), normal", "x_hat, (now, 0.5 * (now + then)), normal"),
    ),
    *mutations_of(
        "inference/batches.py",
        "inference/test_generate.py inference/test_sliding.py inference/test_bound.py",
        ("fold_in, (None, 0))(key, rows)", "fold_in, (None, 0))(key, rows // 2)"),
        (".windows, window)", ".windows, 0 * window)"),
    ),
    *mutations_of(
        "inference/generator.py",
        "inference/test_conditioning.py",
        ("split(keys).steps, state.step)", "split(keys).steps, 0 * state.step)"),
    ),
    *mutations_of(
        "inference/conditioning.py",
        "inference/test_conditioning.py",
        ("state.log_weight + info.log_prob", "state.log_weight"),
        ("jnp.arange(count) + categorical.uniform(key, ())", "jnp.arange(count) + 0.5"),
        ("jnp.where(degenerate, 0, log_weight)", "log_weight"),
    ),
    *mutations_of(
        "training/step.py",
        "training/test_step.py",
        ("jax.random.fold_in(key, state.step)", "key"),
        ("in_row=jnp.where(finite, 0,", "in_row=jnp.where(finite, state.skipped.in_row,"),
        ("jnp.isfinite(loss) & jnp.isfinite(grad_norm)", "jnp.isfinite(loss)"),
        ("count = step - skipped.total", "count = step"),
        ("jax.tree.map(lambda x: x / count, total)", "total"),
    ),
    *mutations_of(
        "training/optim.py",
        "training/test_optim.py test_golden.py",
        ("(count + 1) / config.warmup_steps", "count / config.warmup_steps"),
        ("jnp.minimum(decay, (1 + count) / (10 + count))", "decay"),
        ("optax.clip_by_global_norm(config.clip_norm)", "optax.clip(config.clip_norm)"),
        ('in ("kernel", "table")', 'in ("kernel", "table", "bias")'),
        ("jnp.minimum(size + noise, 0x7F7FFFFF)", "jnp.minimum(size + 0x8000, 0x7F7FFFFF)"),
        ("b1=config.beta1, b2=config.beta2", "b1=config.beta2, b2=config.beta1"),
        ("0.5 * (1 + jnp.cos(jnp.pi * progress))", "(1 - progress)"),
    ),
    *mutations_of(
        "data/pipeline.py",
        "data/test_pipeline.py",
        ("stream.places(step * batch_size + rows)", "stream.places(step + rows)"),
        ("numbers, positions // len(self.blocks)", "numbers, positions // (len(self.blocks) + 1)"),
        ("np.arange(count) * len(blocks) // count", "np.arange(count)"),
        ("[seed, epoch]).generate_state", "[seed, 0]).generate_state"),
    ),
    *mutations_of(
        "data/token_blocks.py",
        "data/test_token_blocks.py data/test_pipeline.py",
        ("row[before_end:], 0)", "row[before_end:], start)"),
        ("(numbers[own] - first) * len(part) // (stop - first)", "numbers[own] - first"),
    ),
]


class Workplace:
    """A copy of the tree in which one module at a time is wrong."""

    def __init__(self, folder: pathlib.Path):
        self._root = folder / "tree"
        self._passing: set[tuple[str, ...]] = set()  # tests that pass without a mutation
        self._root.mkdir()
        for name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self._root / name, ignore=ignored)
        for name in FILES:
            shutil.copy(ROOT / name, self._root / name)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        path = {"PYTHONPATH": str(self._root), "PYTHONDONTWRITEBYTECODE": "1"}
        self._environment = os.environ | cache | path

    def fails(self, tests: tuple[str, ...]) -> bool:
        """Returns whether one of the tests fails.

        Raises:
          RuntimeError: pytest ends otherwise, as where the tests cannot be collected.
        """
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        paths = [f"tests/{path}" for path in tests]
        process = subprocess.run(
            [*command, *paths],
            cwd=self._root,
            env=self._environment,
            capture_output=True,
            text=True,
        )
        if process.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with {process.returncode}:\n{process.stdout[-2000:]}")
        return process.returncode == 1

    def catches(self, mutation: Mutation) -> bool:
        """Returns whether the tests of a mutation, which pass without it, fail under it."""
        if mutation.tests not in self._passing:
            if self.fails(mutation.tests):
                raise RuntimeError(f"{mutation.tests} fail without a mutation: mend them first.")
            self._passing.add(mutation.tests)
        module = self._root / "sedd_jax" / mutation.path
        right = module.read_text()
        module.write_text(right.replace(mutation.old, mutation.new))
        try:
            return self.fails(mutation.tests)
        finally:
            module.write_text(right)


def faults(mutations: list[Mutation]) -> list[str]:
    """Returns faults of the list: texts that do not occur exactly once, missing tests."""
    found = []
    for number, mutation in enumerate(mutations):
        module = ROOT / "sedd_jax" / mutation.path
        times = module.read_text().count(mutation.old) if module.is_file() else 0
        if times != 1:
            found.append(f"{number}: {mutation.old!r} occurs {times} times in {mutation.path}")
        missing = [path for path in mutation.tests if not (ROOT / "tests" / path).exists()]
        found += [f"{number}: tests/{path} is not there" for path in missing]
    return found


def main() -> int:
    """Runs the mutations and prints which ones the tests catch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", type=int, action="append", help="number of a mutation to run")
    parser.add_argument("--list", action="store_true", help="print the mutations and run none")
    arguments = parser.parse_args()
    wrong = faults(MUTATIONS)
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 2
    chosen = range(len(MUTATIONS)) if arguments.only is None else arguments.only
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        workplace = Workplace(pathlib.Path(folder))
        for number in chosen:
            mutation = MUTATIONS[number]
            line = f"{number:3} {mutation.path}: {mutation.old}  ->  {mutation.new}"
            if arguments.list:
                print(line)
                continue
            start = time.perf_counter()
            caught = workplace.catches(mutation)
            survivors += [] if caught else [number]
            seconds = time.perf_counter() - start
            print(f"{'caught  ' if caught else 'SURVIVED'} {seconds:4.0f} s {line}", flush=True)
    if not arguments.list:
        print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught; survivors: {survivors}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
