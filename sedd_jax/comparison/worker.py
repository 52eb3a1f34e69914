"""A process that ends with its parent: `python -m sedd_jax.comparison.worker MODULE ARGUMENTS`.

It becomes `python -m MODULE ARGUMENTS`. Its standard input is a pipe that the parent never writes
to; when the parent ends, even by SIGKILL, the pipe is closed, and this process gets a SIGTERM, on
which training saves.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Runs the module that the arguments name."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent():
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
