"""A tracker in a thread of its own: a slow one delays no step, and a dead one stops no run."""

import queue
import threading

from sedd_jax.errors import BadInput, first_line, warn
from sedd_jax.experiment.trackers.tracker import Tracker

WAITING = 1000  # calls; of a row a minute, most of a day
CLOSE_SECONDS = 60.0


class InBackground:
    """Calls a tracker in order, in the background.

    A tracker that raises, that lets calls pile up, or that does not end in time is given up: this
    is said once, in one line, and the run goes on without it.
    """

    def __init__(self, name: str, tracker: Tracker, *start):
        """Starts the thread.

        Args:
          name: of the tracker, for that line.
          tracker: to call.
          *start: arguments of its `start`.
        """
        self._name, self._tracker = name, tracker
        self._calls = queue.Queue(WAITING)
        self._given_up = threading.Lock()  # held for good, by whoever says so
        self._call(tracker.start, *start)
        # a daemon: the interpreter does not wait for it
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        """Passes numbers on; returns at once."""
        self._call(self._tracker.scalars, step, values)

    def text(self, step: int, name: str, value: str) -> None:
        """Passes a text on; returns at once.

        Args:
          step: the step.
          name: of the text.
          value: the text.
        """
        self._call(self._tracker.text, step, name, value)

    def close(self) -> None:
        """Waits until the tracker has ended, for at most CLOSE_SECONDS."""
        self._call(self._tracker.close)
        self._call(None)
        if not self._given_up.locked():
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                self._give_up(f"it has not ended after {CLOSE_SECONDS:g} s")

    def _call(self, *call):
        if not self._given_up.locked():
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                self._give_up(f"{WAITING} rows wait for it")

    def _work(self):
        while not self._given_up.locked():
            method, *arguments = self._calls.get()
            if method is None:
                return
            try:
                method(*arguments)
            except BaseException as error:  # a library may even call sys.exit
                known = isinstance(error, BadInput)
                kind = "" if known else f"{type(error).__name__}: "
                self._give_up(f"{kind}{first_line(error)}")

    def _give_up(self, reason):
        if self._given_up.acquire(blocking=False):
            warn(
                f"The tracker {self._name} has stopped ({reason}); the run goes on without it, and "
                "metrics.jsonl has every row"
            )
