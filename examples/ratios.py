"""Learns the probability ratios of four states by squared error and by score entropy.

    python -m examples.ratios --workdir=FOLDER    # 10 seconds on 2 CPU cores

There is one token with p = (0.05, 0.15, 0.30, 0.50) and no noise, and every state is a neighbour of
every other. The same two-layer network learns s(x)_y = p(y) / p(x) by concrete score matching
(Eq. 4; the output is the ratio) and by score entropy (Eq. 5; the output is the log ratio), with
exact expectations, the same 32 initial weights and the same optimizer. Each learning rate is the
best of RATES at step 70.

Score entropy never gives a negative ratio. Squared error gives some, with some initial weights
until step 33. Which one learns faster depends on the measure and the optimizer. With Adam, score
entropy has the smaller relative error (by a factor of 1.5 to 2), and squared error a slightly
smaller absolute error. With plain gradient descent (--optimizer=sgd) squared error is smaller in
both.

The example prints the matrices of the first initial weights and the mean errors of all of them, and
writes `ratios.png`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from examples import new_file
from sedd_jax.diffusion import graph
from sedd_jax.experiment import cli
from sedd_jax.verification.exact.scores import (
    concrete_score_matching,
    exact_ratios,
    explicit_score_entropy,
)
from sedd_jax.verification.exact.space import Space

PROBS = np.array([0.05, 0.15, 0.30, 0.50])
SPACE = Space(graph.uniform(4), length=1)
TRUTH = exact_ratios(SPACE, PROBS)[:, 0]  # [x, y]
LEARNT = ~np.eye(4, dtype=bool)  # the ratio of a state to itself is 1; no objective counts it
HIDDEN = 32
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
OPTIMIZERS = {"adam": optax.adam, "sgd": optax.sgd}
SHOWN = (10, 30, 50, 70)


class Objective(NamedTuple):
    """An objective: the loss of the output [S, 1, V], and the map from output to ratios."""

    loss: Callable
    ratio: Callable


OBJECTIVES = {
    "squared error": Objective(lambda out: concrete_score_matching(SPACE, out, PROBS), jnp.asarray),
    "score entropy": Objective(lambda out: explicit_score_entropy(SPACE, out, PROBS), jnp.exp),
}
MEASURES = {
    "mean relative error": lambda ratio: (np.abs(ratio - TRUTH) / TRUTH)[..., LEARNT].mean(-1),
    "mean absolute error": lambda ratio: np.abs(ratio - TRUTH)[..., LEARNT].mean(-1),
}


def init(key):
    """Returns initial weights that give outputs of order 1."""
    inner_key, outer_key = jax.random.split(key)
    return {
        "inner": jax.random.normal(inner_key, (4, HIDDEN)),
        "inner_bias": jnp.zeros(HIDDEN),
        "outer": jax.random.normal(outer_key, (HIDDEN, 4)) / HIDDEN**0.5,
        "outer_bias": jnp.zeros(4),
    }


def network(params):
    """Returns the outputs for all four states, [S, 1, V]: one-hot input picks a row of `inner`."""
    hidden = jax.nn.relu(params["inner"] + params["inner_bias"][None])
    return (hidden @ params["outer"] + params["outer_bias"][None])[:, None]


def learn(objective: Objective, optimizer: str, rates=RATES, num_inits=32, steps=SHOWN[-1]):
    """Returns the ratios after every step, [rates, num_inits, steps, 4, 4].

    Args:
      objective: what is minimised.
      optimizer: a key of OPTIMIZERS.
      rates: learning rates.
      num_inits: number of initial weights.
      steps: updates.
    """

    def run(rate, key):
        transform = OPTIMIZERS[optimizer](rate)

        def step(state, _):
            params, opt_state = state
            grads = jax.grad(lambda params: objective.loss(network(params)))(params)
            updates, opt_state = transform.update(grads, opt_state)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), objective.ratio(network(params)[:, 0])

        params = init(key)
        return jax.lax.scan(step, (params, transform.init(params)), None, length=steps)[1]

    keys = jax.random.split(jax.random.key(0), num_inits)
    grid = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    return np.asarray(jax.jit(grid)(jnp.asarray(rates), keys))


def best(ratios, measure):
    """Returns the index of the learning rate with the smallest mean error after the last step."""
    last = measure(ratios[:, :, -1]).mean(1)
    return int(np.argmin(np.where(np.isfinite(last), last, np.inf)))  # divergence gives NaN


def negatives(ratios):
    """Returns how many of the 12 learnt ratios are not positive, over the last two axes."""
    return (ratios <= 0)[..., LEARNT].sum(-1)


def show(runs: dict[str, np.ndarray]) -> None:
    """Prints the matrices and errors of the runs, {objective: [rates, inits, steps, 4, 4]}."""
    relative = MEASURES["mean relative error"]
    paths = {name: ratios[best(ratios, relative), 0] for name, ratios in runs.items()}
    for step in SHOWN:
        print(f"step {step:<4}" + "".join(f"{name:<36}" for name in ("truth", *paths)).rstrip())
        matrices = [TRUTH, *(path[step - 1] for path in paths.values())]
        for rows in zip(*(np.where(LEARNT, matrix, 1) for matrix in matrices), strict=True):
            cells = ("".join(f"{ratio:8.2f}" for ratio in row) for row in rows)
            print("     " + "    ".join(cells))
        for name, path in paths.items():
            error, count = relative(path[step - 1]), negatives(path[step - 1])
            print(f"     {name}: mean relative error {error:.3f}, {count} of 12 not positive")
    count = next(iter(runs.values())).shape[1]
    for title, measure in MEASURES.items():
        print(f"\n{title}, mean over {count} initial weights, after {SHOWN} steps")
        for name, ratios in runs.items():
            rate = best(ratios, measure)
            path = ratios[rate][:, np.array(SHOWN) - 1]
            errors = "".join(f"{error:8.3f}" for error in measure(path).mean(0))
            counts = "".join(f"{count:6.2f}" for count in negatives(path).mean(0))
            print(f"  {name} at rate {RATES[rate]:<6}{errors}   not positive{counts}")


def plot(runs: dict[str, np.ndarray], file: Path) -> None:
    """Plots errors against steps, and the matrices of the first initial weights as heat maps."""
    from matplotlib.colors import LogNorm  # imported here: optional, and the plot comes last
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2, 3])
    for axes, (title, measure) in zip(above.subplots(1, 2), MEASURES.items(), strict=True):
        for name, ratios in runs.items():
            rate = best(ratios, measure)
            errors = measure(ratios[rate]).mean(0)
            axes.plot(1 + np.arange(len(errors)), errors, label=f"{name}, rate {RATES[rate]}")
        axes.set(xlabel="step", ylabel=title, yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    grid = below.subplots(len(runs), 1 + len(SHOWN))
    for row, (name, ratios) in zip(grid, runs.items(), strict=True):
        path = ratios[best(ratios, MEASURES["mean relative error"]), 0]
        panels = {f"{name}, step {step}": path[step - 1] for step in SHOWN} | {"truth": TRUTH}
        for axes, (title, ratio) in zip(row, panels.items(), strict=True):
            ratio = np.where(LEARNT, ratio, 1)
            axes.imshow(np.where(ratio > 0, ratio, np.nan), norm=LogNorm(0.05, 20))
            axes.set_facecolor("red")  # visible where a ratio is not positive and has no logarithm
            for (x, y), value in np.ndenumerate(ratio):
                axes.text(y, x, f"{value:.2f}", ha="center", va="center", color="white")
            axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(file, dpi=110)


def main() -> None:
    """Learns the ratios, prints them and plots them."""
    file = new_file(flags.FLAGS.workdir, "ratios.png")
    runs = {name: learn(one, flags.FLAGS.optimizer) for name, one in OBJECTIVES.items()}
    show(runs)
    plot(runs, file)
    print(f"\nwritten: {file}")


if __name__ == "__main__":  # here, since the binaries define a flag of the same name
    flags.DEFINE_string("workdir", None, "Folder for the plot; made if absent.")
    flags.DEFINE_enum("optimizer", "adam", list(OPTIMIZERS), "Optimizer of both objectives.")
    cli.run(main)
