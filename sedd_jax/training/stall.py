"""A run that stands still says so, and where every thread of it stands."""

import faulthandler
import queue
import sys
import threading
import time
from typing import TextIO

from sedd_jax.display.table import duration


class Stall:
    """Reports, from a thread of its own, that no step was done for some time.

    Within `with Stall(minutes) as stall:`, `stall.progress(step)` is called after every step. The
    first report comes after `minutes` without a call, since the start or the last one, and the
    next ones after twice, four times, ... as long. Nothing is stopped: what a process of a job
    waits for may still come, and if not it is for the launcher to end the job.
    """

    def __init__(self, minutes: float, file: TextIO | None = None):
        """Reports to `file`, which must have a file descriptor; standard error if None."""
        self._patience = 60 * minutes
        # not sys.stderr, in whose place a notebook puts an object without a descriptor
        self._file = file or sys.__stderr__
        self._news = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="stall", daemon=True)

    def __enter__(self) -> "Stall":
        self.progress(None)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._news.put(None)
        self._thread.join()

    def progress(self, step: int | None) -> None:
        """Takes note that `step` is done; None before the first."""
        self._news.put((step, time.monotonic()))

    def _watch(self):
        step, since = self._news.get()
        patience = self._patience
        while True:
            try:
                news = self._news.get(timeout=max(0, since + patience - time.monotonic()))
            except queue.Empty:
                self._report(step, time.monotonic() - since)
                patience *= 2
                continue
            if news is None:
                return
            if patience > self._patience:
                waited = duration(news[1] - since)
                self._print(f"The run goes on: step {news[0]} is done, after {waited}.")
            (step, since), patience = news, self._patience

    def _report(self, step, seconds):
        last = "since the run started" if step is None else f"since step {step}"
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - seconds))
        self._print(
            f"No step was done for {duration(seconds)}, {last}, at {clock}: most often another "
            "process of the job has died, or the file system hangs; the stacks of all threads of "
            "this process follow."
        )
        faulthandler.dump_traceback(self._file, all_threads=True)

    def _print(self, text):
        print(text, file=self._file, flush=True)  # faulthandler writes past the buffer
