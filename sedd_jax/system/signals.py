"""Being told to stop: by a scheduler (SIGTERM) or at the keyboard (SIGINT)."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import TracebackType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Turns the first signal to stop into a request that the loop heeds between two steps.

    A second one ends the process at once. With several processes, JAX's preemption service agrees
    on a step for all of them; it takes every SIGTERM, and SIGINT is turned into one, but for the
    second.

    Use as a context manager; outside the main thread, where Python allows no handlers, it asks for
    nothing.
    """

    def __init__(self):
        self._received = None
        self._previous = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.distributed.is_initialized():
            self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, _forward)}
        else:
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def after(self, step: int) -> signal.Signals | None:
        """Returns the signal that asks to stop after this step; to be called at every step."""
        if jax.distributed.is_initialized():
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._received

    def _receive(self, number, frame):
        self._received = signal.Signals(number)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        _tell(f"{self._received.name}: stopping after this step; again: at once.")


@contextlib.contextmanager
def ends_at_once(goodbye: str) -> Iterator[None]:
    """Lets a signal to stop end the process at once, whatever it computes, after one line.

    For work whose every part is safe on disk as soon as it is done. Outside the main thread, where
    Python allows no handlers, signals do what they did.

    Args:
      goodbye: what the line says after the name of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Python runs handlers between two of its own instructions, and a program on a device may run
    # for minutes; the number of a signal is written to this socket in the moment that it comes
    ours, of_signals = socket.socketpair()
    of_signals.setblocking(False)
    threading.Thread(target=_end, args=(ours, goodbye), daemon=True).start()
    before = signal.set_wakeup_fd(of_signals.fileno())
    handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        of_signals.close()  # which ends the thread


def _end(wakened, goodbye):
    with wakened:
        while received := wakened.recv(1):
            if received[0] in _SIGNALS:
                # on a line of its own: a progress bar may stand on this one
                _tell(f"\n{signal.Signals(received[0]).name}: {goodbye}")
                os._exit(128 + received[0])


def _forward(number, frame):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _tell("SIGINT: all processes stop after a step they agree on; again: this one at once.")
    os.kill(os.getpid(), signal.SIGTERM)


def _tell(text):
    os.write(2, f"{text}\n".encode())  # not print: the signal may have come in the middle of one
