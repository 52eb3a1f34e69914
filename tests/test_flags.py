"""What importing the package defines."""

import subprocess
import sys

PROGRAM = """
import contextlib, importlib, pkgutil, sys
from absl import flags
import sedd_jax
from sedd_jax.errors import BadInput
BINARIES = {
    "compare", "convert", "demo", "evaluate", "exact", "lm_eval", "plan", "prepare", "report",
    "sample", "train",
}
for module in pkgutil.walk_packages(sedd_jax.__path__, "sedd_jax."):
    *_, name = module.name.split(".")
    if name != "__main__" and (name not in BINARIES or module.ispkg or module.name.count(".") > 1):
        with contextlib.suppress(BadInput):  # of an extra that is not installed
            importlib.import_module(module.name)
print(*(name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("sedd_jax")))
print(len([name for name in sys.modules if name.startswith("sedd_jax.")]))
"""


def test_importing_the_library_defines_no_flag():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    defining, count = done.stdout.splitlines()
    assert defining == "" and int(count) > 80
