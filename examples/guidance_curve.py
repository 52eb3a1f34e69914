"""Plots what guidance does to drawn sequences: is their class told, and how alike are they?

    python -m examples.guidance_curve --workdir=runs/curve \
        --figures=1=runs/plain.sequences.json,2=runs/guided.sequences.json

The figures are those of `evaluate --suite=sequences --label=COLUMN`, of samples drawn with guidance
1, 2 and so on. A panel above has the share judged to be of its class, one below the mean distance
of two sequences of a class; the broken lines are those of the real sequences. Both are printed too.
"""

import json
from pathlib import Path

from absl import flags

from examples import new_file
from sedd_jax.display.plot import Plot, check_plots, image
from sedd_jax.display.table import markdown_lines
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli

JUDGED, DISTANCE = "judged to be of its class", "distance of two"


def read(figures: list[str]) -> dict[float, dict]:
    """Returns the figures of every file by its strength, which increases.

    Raises:
      BadInput: not STRENGTH=FILE, or the file has no figures by class.
    """
    found = {}
    for one in figures:
        strength, _, path = one.partition("=")
        try:
            classes = json.loads(Path(path).read_text())["figures"]
            found[float(strength)] = {
                name: {key: own[key] for key in (JUDGED, DISTANCE)}
                for name, own in classes.items()
                if name != "all"
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"--figures: {one} must be STRENGTH=FILE, a file that `evaluate --suite=sequences "
                f"--label=COLUMN --judge_data=FILE` wrote: {type(error).__name__}: {error}."
            ) from error
    if len({tuple(own) for own in found.values()}) != 1 or () in map(tuple, found.values()):
        raise BadInput("--figures: there must be files, of the same classes, at least one.")
    return dict(sorted(found.items()))


def plot(found: dict[float, dict]) -> Plot:
    """Returns the plot of the figures."""
    strengths = list(found)

    def panel(key, label, below=None):
        curves, levels = {}, {}
        for name, own in found[strengths[0]].items():
            drawn = [figures[name][key]["drawn"] for figures in found.values()]
            values, errors = ([one[part] for one in drawn] for part in ("value", "stderr"))
            curves[name] = (strengths, values, errors)
            levels[f"{name}, real"] = own[key]["real"]["value"]
        return Plot("guidance", "guidance", label, curves, False, False, levels, below)

    return panel(JUDGED, "share judged of its class", panel(DISTANCE, "mean distance of two"))


def main() -> None:
    """Plots the figures of the flags."""
    check_plots()
    path = new_file(flags.FLAGS.workdir, "guidance.png")
    found = read(flags.FLAGS.figures)
    path.write_bytes(image(plot(found)))
    rows = [
        (strength, name, *(own[key]["drawn"]["value"] for key in (JUDGED, DISTANCE)))
        for strength, figures in found.items()
        for name, own in figures.items()
    ]
    print("\n".join(markdown_lines(("guidance", "class", JUDGED, DISTANCE), rows)))
    print(f"Plot: {path}")


def define_flags() -> None:
    """Defines the flags; not on import, since another program may have some of their names."""
    flags.DEFINE_list("figures", [], "STRENGTH=FILE, with commas.")
    flags.DEFINE_string("workdir", None, "Folder of the plot.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
