"""A context of MLIR for all programs of a thread.

JAX makes one for every program, which takes a third of the time of compiling a small one.
"""

import threading

from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir


def share_contexts():
    """Has JAX make a single context in every thread from now on, and one for a program in another.

    What is compiled while another program is made would be put into that one.
    """
    make, kept = mlir.make_ir_context, threading.local()

    def context():
        if ir.Context.current is not None:
            return make()
        if not hasattr(kept, "context"):
            kept.context = make()
        return kept.context

    mlir.make_ir_context = context
