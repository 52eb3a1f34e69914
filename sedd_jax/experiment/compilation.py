"""Programs compiled once are kept on disk, so that the next run starts at once."""

import hashlib
import os
import platform
from pathlib import Path

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_programs() -> None:
    """Turns on JAX's persistent compilation cache, in the user's cache folder.

    Where JAX_COMPILATION_CACHE_DIR is set, JAX follows that, and an empty one means no cache. Each
    kind of processor has a folder of its own: homes are shared between machines, and a program
    for one may not run on another. Nothing is ever deleted: JAX's limit of size needs a lock on
    every read, which home folders on a network may not have.
    """
    if VARIABLE in os.environ:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in some containers: nothing is kept
        return
    folder = home / "sedd_jax" / hashlib.sha256(_processor().encode()).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor() -> str:
    description = Path("/proc/cpuinfo")
    if not description.exists():
        return platform.machine() + platform.processor()
    lines = description.read_text().splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
