"""The console commands: `sedd-train` is `python -m sedd_jax.train`, and so is every other binary.

A wheel has no checkout and, in an environment of pipx or uv, no `python` on the path.
"""

import functools
import os
import re
import runpy
import sys

_is_command = False  # whether a console command started this process


def _run(module):
    """Becomes `python -m sedd_jax.MODULE`, for processes that it starts too."""
    global _is_command
    _is_command = True
    if not sys.flags.safe_path:
        # where python -m looks first, for the user's own code; a script looks in its own folder
        sys.path[0] = os.getcwd()
    runpy.run_module(f"sedd_jax.{module}", run_name="__main__", alter_sys=True)


compare = functools.partial(_run, "compare")
convert = functools.partial(_run, "convert")
demo = functools.partial(_run, "demo")
evaluate = functools.partial(_run, "evaluate")
exact = functools.partial(_run, "exact")
lm_eval = functools.partial(_run, "lm_eval")
plan = functools.partial(_run, "plan")
prepare = functools.partial(_run, "prepare")
report = functools.partial(_run, "report")
sample = functools.partial(_run, "sample")
train = functools.partial(_run, "train")


def as_typed(text: str) -> str:
    """Returns a text for the terminal with the commands in it as this process was started."""
    if not _is_command:
        return text
    return re.sub(
        r"python -m\s+sedd_jax\.(\w+)", lambda found: f"sedd-{found[1].replace('_', '-')}", text
    )
