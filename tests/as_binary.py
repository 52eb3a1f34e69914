"""Becomes `python -m sedd_jax.MODULE FLAGS`: run by `Binary` in a process forked for one call.

The process it is forked from has imported the libraries, which takes two seconds, and has computed
nothing; the binary's own module and all that it does there run here for the first time.
"""

import os
import runpy
import sys

import jax


def become(module, flags, devices, folder, environment, out, err):
    """Runs the binary in `folder`, on CPU devices, and ends as it ends."""
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    from sedd_jax.system import mirror
    from tests.one_context import share_contexts

    share_contexts()
    sys.argv = [module, *flags]
    jax.config.update("jax_num_cpu_devices", devices)
    try:
        runpy.run_module(f"sedd_jax.{module}", run_name="__main__", alter_sys=True)
    finally:
        for folder in list(mirror._OPEN.values()):  # a forked process ends without atexit
            folder.close()


become(**request)  # which runpy is given
