"""What went wrong, in the operating system's words, and in which process."""

import os
import re
import textwrap

import jax
import numpy as np
from jax.experimental import multihost_utils

from sedd_jax.system.lead import is_primary


def of_any_process(trouble: str | None) -> str | None:
    """Returns the trouble of this process or, if it has none, that another has; None if none.

    With several processes all must call this.
    """
    if jax.process_count() == 1:
        return trouble
    if trouble and not is_primary():
        print(f"Process {jax.process_index()}: {trouble}.", flush=True)  # the lead says the rest
    flags = multihost_utils.process_allgather(np.int32(trouble is not None))
    return trouble or (f"process {np.argmax(flags)} found it so" if flags.any() else None)


def errno_of(error: BaseException | None) -> int | None:
    """Returns the operating system's number of an error, None if it has none.

    TensorStore's errors are of type ValueError, with the number in the text.
    """
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return int(number[1]) if number else getattr(error, "errno", None)


def reason(error: BaseException) -> str:
    """Returns what the operating system says of an error, or TensorStore, else its first line."""
    if number := errno_of(error):
        return os.strerror(number)
    # OUT_OF_RANGE: ..., behind much else or in what the error came from
    everything = f"{error}\n{error.__cause__}\n{error.__context__}"
    code = re.search(r"\b[A-Z_]{6,}: .*", everything)
    text = code[0] if code else str(error).strip() or repr(error)
    line = text.splitlines()[0].split(" [tensorstore_spec")[0]
    return textwrap.shorten(line.rstrip("."), 240, placeholder=" ...")
