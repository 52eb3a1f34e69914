"""Quality of samplers at the entropy of real text, from records of `sedd_jax.evaluate`.

    python -m sedd_jax.evaluate --checkpoint=RUN --suite=quality --judge=JUDGE --reference=heldout \
        --num_samples=256 --sampler=tweedie --sampler=gibbs --steps=8,16,32,64 --temperature=1
    python -m sedd_jax.evaluate ... --temperature=0.9
    python -m benchmarks.matched_entropy --records=RUN/evaluations

Generative perplexity alone favours samples with few words. So every sampler and number of steps is
sampled at several temperatures, and log perplexity is interpolated linearly in the entropy of the
samples to the entropy of real text (beyond the temperatures sampled, extrapolated and marked).
Standard errors are those of the two samples that the line goes through.
"""

from pathlib import Path

from absl import flags

from sedd_jax.display.plot import Plot, check_plots, image
from sedd_jax.display.table import Table, markdown
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.matched import PERPLEXITY, matched
from sedd_jax.evaluation.record import Record, read_records
from sedd_jax.experiment import cli

_RECORDS = flags.DEFINE_string("records", None, "Folder of the records, of one model.")
_PLOT = flags.DEFINE_string("plot", None, "File for the plot, .png.")


def main() -> None:
    """Prints a table in Markdown, and writes the plot if a file is given."""
    if not _RECORDS.value:
        raise BadInput("--records=FOLDER is needed, the folder that sedd_jax.evaluate writes.")
    records = [it for it in read_records(Path(_RECORDS.value)) if PERPLEXITY in it.figures]
    reals = [it for it in records if it.is_real]
    if len(reals) != 1:
        raise BadInput(
            f"{_RECORDS.value} has {len(reals)} records of real text, and one is needed: evaluate "
            "with --reference=heldout, all with the same length and number of samples."
        )
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if not record.is_real:
            way = record.protocol["sampler"], str(record.protocol["steps"])
            groups.setdefault(way, []).append(record)
    level, rows = reals[0].figures["entropy"], []
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for (sampler, steps), of_group in groups.items():
        found, error, mark = matched(of_group, level)
        plain = next((it for it in of_group if it.protocol.get("temperature", 1) == 1), of_group[0])
        own = [_with_error(plain, figure) for figure in (PERPLEXITY, "entropy")]
        evaluations = plain.figures["evaluations"]  # some samplers need others at a temperature
        way = f"{sampler} {steps}"
        rows.append((way, evaluations, *own, f"{found:.4g} ± {error:.2g}{mark}"))
        curves.setdefault(sampler, []).append((evaluations, found, error))
    rows.sort(key=lambda row: (row[0].rsplit(" ", 1)[0], row[1]))
    title = f"Real text: perplexity {reals[0].figures[PERPLEXITY]:.4g}, entropy {level:.4g} nats"
    columns = ("sampler, steps", "evaluations", "perplexity", "entropy", "perplexity, matched")
    print(markdown(Table(title, columns, rows)))
    if _PLOT.value:
        check_plots()
        shown = {
            name: tuple(map(list, zip(*sorted(points), strict=True)))
            for name, points in curves.items()
        }
        label = "generative perplexity at the entropy of real text"
        levels = {"real text": reals[0].figures[PERPLEXITY]}
        plot = Plot("matched", "network evaluations", label, shown, levels=levels)
        Path(_PLOT.value).write_bytes(image(plot))


def _with_error(record, figure):
    return f"{record.figures[figure]:.4g} ± {record.figures[f'{figure}_stderr']:.2g}"


if __name__ == "__main__":
    cli.run(main)
