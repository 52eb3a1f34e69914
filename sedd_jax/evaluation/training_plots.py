"""Plots of the metrics that runs have logged, a curve for each run."""

import math
from collections.abc import Iterator, Sequence

from sedd_jax.display.plot import Plot
from sedd_jax.evaluation.runs import Run

BOUNDS = ("bound", "nll")  # logged by diffusion and by autoregressive models
_POINTS = 500  # of a curve; more are not visible
_OF_STEPS = "learning_rate"  # in every row about steps; an evaluation has rows of its own
# metrics, their axis label, whether their axis is logarithmic
_CURVES = (
    (("loss",), "training loss, nats/{}", False),
    (BOUNDS, "held out: {}, nats/token", False),
    (("cross_entropy",), "held out: cross-entropy, nats/sequence", False),
    (("accuracy",), "held out: accuracy", False),
    ((_OF_STEPS,), "learning rate", False),
    (("grad_norm",), "norm of the gradient", True),
    (("tokens_per_second",), "tokens per second", False),
)


def training_plots(runs: Sequence[Run]) -> Iterator[Plot]:
    """Yields a plot of every metric that a run has logged, with a curve for each run."""
    trained = [run for run in runs if run.facts]
    sizes = [it.facts.config.train.batch_size * it.facts.config.model.length for it in trained]
    # steps of different batch sizes are not comparable
    by_tokens = len(set(sizes)) > 1
    for names, label, log_y in _CURVES:
        logged = [
            name for name in names if any(name in row for it in trained for row in it.facts.rows)
        ]
        curves, owners = {}, {}
        for run, size in zip(trained, sizes, strict=True):
            rows = run.facts.rows
            name = next((name for name in logged if any(name in row for row in rows)), names[0])
            title = run.label if len(logged) < 2 else f"{run.label}, {name}"
            curves[title] = _curve(rows, name, size if by_tokens else 1, log_y)
            owners[title] = run.label
        if any(x for x, *_ in curves.values()):
            yield Plot(
                f"training-{names[0]}",
                "tokens" if by_tokens else "step",
                label.format(_unit(trained) if names == ("loss",) else " or ".join(logged)),
                curves,
                log_x=False,
                log_y=log_y,
                owners=owners,
            )


def _unit(trained):
    """What the losses of these runs are divided by."""
    classifiers = {run.facts.config.family == "classifier" for run in trained}
    return " or ".join("sequence" if it else "token" for it in sorted(classifiers))


def _curve(rows, name, scale, log_y):
    """Steps times scale, values and their errors; means of neighbours where rows are many.

    A row about steps that lacks a metric of steps interrupts the curve: it was not finite there.
    """
    of_steps = any(name in row and _OF_STEPS in row for row in rows)
    kept = [row for row in rows if name in row or (of_steps and _OF_STEPS in row)]
    together = math.ceil(len(kept) / _POINTS) or 1
    groups = [kept[i : i + together] for i in range(0, len(kept), together)]

    def means(value):
        return [_mean([it for it in map(value, group) if math.isfinite(it)]) for group in groups]

    def value(row):
        found = row.get(name, math.nan)
        return found if found > 0 or not log_y else math.nan

    steps, values = means(lambda row: row["step"] * scale), means(value)
    if all(map(math.isnan, values)):
        return [], []
    stderr = f"{name}_stderr"
    if any(stderr in row for row in kept):
        return steps, values, means(lambda row: row.get(stderr, 0.0))
    return steps, values


def _mean(values):
    return sum(values) / len(values) if values else math.nan
