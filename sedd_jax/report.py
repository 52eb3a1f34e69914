"""Shows runs side by side: `python -m sedd_jax.report runs/a runs/b --output=report.html`.

The report is one self-contained page without scripts: the settings of the runs, their training,
evaluations and samples. Runs may still be in training.
"""

import shlex
from datetime import UTC, datetime
from pathlib import Path

import jax
from absl import flags

from sedd_jax.display.plot import check_plots
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.dashboard import dashboard
from sedd_jax.evaluation.runs import FILES, read_runs
from sedd_jax.experiment import cli
from sedd_jax.experiment.card import without_folders
from sedd_jax.system import mirror
from sedd_jax.system.files import atomic_write, check_output_path
from sedd_jax.system.outputs import output_file

_OUTPUT = flags.DEFINE_string("output", "report.html", "The page; an older report is replaced.")
_MARK = "<!-- Made by sedd_jax.report;"
_MADE = f"{_MARK} remove this line to protect the page from being replaced. -->\n"


def main(folders: list[str]) -> None:
    """Writes the page about these runs."""
    if not folders:
        raise BadInput("Name the folders of runs: python -m sedd_jax.report RUN [RUN ...].")
    with output_file(_OUTPUT.value, "--output") as output:
        check_output(output)
        check_plots()
        # nothing is computed, and a training run may occupy the accelerator
        jax.config.update("jax_platforms", "cpu")
        runs = read_runs([mirror.local(folder, "A run", FILES) for folder in folders])
        made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        write(output, dashboard(runs, made=made, command=_command(runs, output)))
        shown = mirror.shown(output)
    print(f"Wrote {shown}.")


def _command(runs, output):
    folders = (without_folders(mirror.shown(run.folder)) for run in runs)
    flag = f"--output={without_folders(mirror.shown(output))}"
    return shlex.join(("python", "-m", "sedd_jax.report", *folders, flag))


def check_output(path: Path) -> None:
    """Raises BadInput unless a page can be written there without replacing another file."""
    check_output_path(path, must_be_new=False)
    if path.exists() and _MARK.encode() not in path.read_bytes()[-200:]:
        raise BadInput(f"{path} exists and was not made by report; choose another --output.")


def write(path: Path, text: str) -> None:
    """Writes the page atomically."""
    # JSON can hold a lone surrogate, UTF-8 cannot
    atomic_write(path, (text + _MADE).encode("utf-8", "replace"))


if __name__ == "__main__":
    cli.run(main, takes_names=True)
