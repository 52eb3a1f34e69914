"""Shows runs side by side: `python -m sedd_jax.report runs/a runs/b --output=report.html`.

One page that needs nothing else, neither the network nor a program in it: how the runs were
trained, what they write and how good they are. Runs may still be in training.
"""

import os
from pathlib import Path

import jax
from absl import flags

from sedd_jax.display.plot import check_plots
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.dashboard import dashboard, read_runs
from sedd_jax.experiment import cli

_OUTPUT = flags.DEFINE_string("output", "report.html", "The page; one made before is made anew.")
_MADE = "<!-- Made by sedd_jax.report; without this line it is not made anew. -->\n"


def main(folders: list[str]) -> None:
    """Writes the page about these runs."""
    if not folders:
        raise BadInput("Name the folders of runs: python -m sedd_jax.report RUN [RUN ...].")
    output = Path(_OUTPUT.value)
    check_output(output)
    check_plots()
    # nothing is computed, and a device that trains has room for no one else
    jax.config.update("jax_platforms", "cpu")
    write(output, dashboard(read_runs([Path(folder) for folder in folders])))
    print(f"Wrote {output}.")


def check_output(path: Path) -> None:
    """Raises BadInput unless a page can be written there, and nothing else is lost by it."""
    if not path.parent.is_dir():
        raise BadInput(f"The folder of --output={path} does not exist; make it.")
    if path.exists() and not (path.is_file() and path.read_bytes().endswith(_MADE.encode())):
        raise BadInput(f"{path} exists and was not made by report; choose another --output.")


def write(path: Path, text: str) -> None:
    """Writes the page at once or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    # half a pair of UTF-16, which JSON can hold and a file cannot
    temporary.write_bytes((text + _MADE).encode("utf-8", "replace"))
    os.replace(temporary, path)


if __name__ == "__main__":
    cli.run(main, takes_names=True)
