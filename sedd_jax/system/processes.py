"""The processes of a job: how they take turns, stop and fail together; see also `joining`."""

import collections
import contextlib
import hashlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from sedd_jax.errors import BadInput, Halted, first_line, warn

T = TypeVar("T")
BARRIER_SECONDS = 24 * 3600  # one process may prepare the data while the others wait
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def is_primary() -> bool:
    """Returns whether this is process 0, which prints and writes for the whole job."""
    return jax.process_index() == 0


def print_on_primary(text: str) -> None:
    """Prints a line on process 0, without buffering."""
    if is_primary():
        print(text, flush=True)


def warn_on_primary(text: str) -> None:
    """Prints a warning on process 0, see `errors.warn`."""
    if is_primary():
        warn(text)


def run_primary_first(first: Callable[[], T], others: Callable[[], T]) -> T:
    """Runs one function on process 0 and, once it has returned, another on the other processes.

    Args:
      first: what process 0 runs.
      others: what each of the others runs.

    Returns:
      What this process's function returns.

    Raises:
      Halted: another process failed; every process raises, so that none waits for one that ended.
    """
    turns = [first] if jax.process_count() == 1 else [first, others]
    for turn, work in enumerate(turns):
        mine, error = is_primary() == (turn == 0), None
        try:
            result = work() if mine else None
        except Exception as caught:
            error = caught
        barrier("turn taken")
        _fail_together(error)
        if mine:
            kept = result
    return kept


def on_primary(work: Callable[[], T]) -> T | None:
    """Returns work() on process 0, and None on the others once it has returned.

    Raises:
      Halted: it failed on process 0.
    """
    return run_primary_first(work, lambda: None)


@contextlib.contextmanager
def abort_with_peers(goodbye: str) -> Iterator[None]:
    """Ends this process at once, after one line, when another process no longer answers.

    For work whose finished parts are all safe on disk. A single process lets errors pass.

    Args:
      goodbye: the end of that line.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            "\nerror: another process of the job seems to have ended "
            f"({first_line(error):.200}); {goodbye}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # an orderly exit would wait for the others


def assert_equal_across_processes(facts: str, words: str) -> None:
    """Checks that all processes were started with the same facts.

    Args:
      facts: text that has to be equal on all of them.
      words: what it describes, for the message: "data or settings".

    Raises:
      BadInput: it differs; on every process, so that none waits for one that ended.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(facts.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    other = (digests != digests[0]).any(1)
    if other.any():
        raise BadInput(
            f"Process {other.argmax()} of the job has other {words} than process 0; give all of "
            "them the same files and flags."
        )


def barrier(name: str) -> None:
    """Waits until all processes call this, for hours if need be.

    A collective between devices gives up after half a minute, on CPUs, when a process comes late to
    the first one: it may still be preparing the data, or compiling.
    """
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(name, timeout=BARRIER_SECONDS, processes=everyone)


def broadcast_from_primary(value: bool | np.ndarray) -> bool | np.ndarray:
    """Returns process 0's value on every process: a bool, or an array of the same shape on all."""
    if jax.process_count() == 1:
        return value
    said = multihost_utils.process_allgather(np.array(value))[0]
    return said if said.ndim else bool(said)


def failure_of_any_process(failure: str | None) -> str | None:
    """Returns this process's failure or, if it has none, a sentence about another's; None if none.

    With several processes all must call this.
    """
    if jax.process_count() == 1:
        return failure
    if failure and not is_primary():
        said = failure.rstrip(".")
        print(f"Process {jax.process_index()}: {said}.", flush=True)  # process 0 prints the rest
    flags = multihost_utils.process_allgather(np.int32(failure is not None))
    return failure or (f"process {np.argmax(flags)} found it so" if flags.any() else None)


def _fail_together(error):
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if failed.any() and error is None:
            raise Halted(f"Process {failed.argmax()} of the job ended with an error; see there.")
    if error is not None:
        raise error


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a request to stop between two training steps.

    A second one ends the process at once. With several processes, JAX's preemption service agrees
    on one step for all of them; it takes every SIGTERM, and the first SIGINT is turned into one.

    Use as a context manager. Outside the main thread, where Python allows no handlers, only
    `notice` asks to stop.
    """

    def __init__(self, grace_seconds: float = math.inf):
        """Expects the end of the machine some time after a SIGTERM, by default never."""
        self._received = None
        self._previous = {}
        self._grace, self._end = grace_seconds, math.inf
        self._calls = collections.deque([time.monotonic()], maxlen=3)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.distributed.is_initialized():
            self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, _forward)}
        else:
            self._previous = {
                number: signal.signal(number, self._receive) for number in _STOP_SIGNALS
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def notice(self, seconds: float) -> None:
        """Asks to stop as SIGTERM does; a SIGTERM after it is the first one.

        Args:
          seconds: until the machine is taken away.
        """
        self._end = time.monotonic() + seconds
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # for JAX's preemption service
        else:
            self._received = signal.SIGTERM

    def after(self, step: int) -> signal.Signals | None:
        """Returns the signal that asks to stop after this step; to be called after every step."""
        self._calls.append(time.monotonic())
        if jax.distributed.is_initialized():
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._received

    def seconds_left(self) -> float:
        """Returns the time until the first machine of the job is taken away, infinity if unknown.

        With several processes all call this when `after` has asked them to stop; a SIGTERM to one
        of them counts from two steps before.
        """
        if not jax.distributed.is_initialized():
            return self._end - time.monotonic()
        end = min(self._end, self._calls[0] + self._grace)
        left = np.float32(end - time.monotonic())
        return float(multihost_utils.process_allgather(left).min())

    def _receive(self, number, frame):
        self._received = signal.Signals(number)
        if number == signal.SIGTERM:
            self._end = min(self._end, time.monotonic() + self._grace)
        for each in _STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        _print_in_handler(f"{self._received.name}: stopping after this step; again: at once.")


def _forward(number, frame):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _print_in_handler(
        "SIGINT: all processes stop after a step they agree on; again: this one at once."
    )
    os.kill(os.getpid(), signal.SIGTERM)


def _print_in_handler(text):
    os.write(2, f"{text}\n".encode())  # a print may have been interrupted halfway


@contextlib.contextmanager
def end_on_signal() -> Iterator[None]:
    """Lets SIGTERM and SIGINT end the process at once, even during a computation.

    Python would run its handler, which raises KeyboardInterrupt, only after the program on the
    device has returned, perhaps minutes later. For work whose finished parts are all safe on disk.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
