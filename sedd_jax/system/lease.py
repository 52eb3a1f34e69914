"""A lease object in a bucket that keeps a folder to one process, as `lock` does on a disk.

Buckets have no locks, but writes that fail unless an object has a stated version. The holder
rewrites the lease object several times within `lease_seconds()`. Another process takes it over, by
such a write, only after it has seen it unchanged for that long on its own clock: clocks of two
machines are never compared. A holder that could not renew its lease ends before that time is over.

References:
  Gray and Cheriton 1989, Leases: an efficient fault-tolerant mechanism for distributed file cache
  consistency, https://doi.org/10.1145/74851.74870
"""

import contextlib
import json
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from sedd_jax.errors import BadInput, first_line, warn
from sedd_jax.system import bucket
from sedd_jax.system.bucket import ABSENT, Address, Conflict

RENEWALS = 6  # within the seconds of a lease
MARGIN = 1 / RENEWALS  # of the seconds, by which a holder ends before another may follow
_LOOKS = 30  # of a process that waits for a lease to run out
_ATTEMPTS = 2  # at the same time: a request may hang for longer than a lease lasts
_HELD: set["Lease"] = set()  # of this process


def lease_seconds() -> float:
    """Returns how long others wait for a change of a lease before they take it."""
    return bucket.seconds_from("SEDD_JAX_LEASE_SECONDS", 60.0)


def clock() -> float:
    """Returns seconds that go on while the machine sleeps, unlike those of time.monotonic."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Record(NamedTuple):
    """What a lease object says; `token` is of one holder alone, and no two writes are equal."""

    holder: str
    token: str | None
    seconds: float
    count: int

    def to_json(self) -> bytes:
        """Returns the content of the object."""
        return (json.dumps(self._asdict()) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Record":
        """Returns the record in an object; one that is none is of another, unknown process."""
        try:
            record = cls(**json.loads(content))
            return record._replace(seconds=float(record.seconds))
        except (TypeError, ValueError):
            return cls("another process", None, lease_seconds(), 0)


class Lease:
    """A lease as its holder has it. Its methods may be called from several threads."""

    def __init__(
        self,
        address: Address,
        subject: str,
        seconds: float,
        *,
        store: Any = bucket,
        clock: Callable[[], float] = clock,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Describes a lease; `acquire` takes it.

        Args:
          address: of the lease object.
          subject: what it protects, for messages.
          seconds: how long others wait for its next change.
          store: has the functions read, write and delete of `bucket`.
          clock: returns seconds.
          sleep: waits for some seconds.
        """
        self._address, self._subject, self._seconds = address, subject, seconds
        self._store, self._clock, self._sleep = store, clock, sleep
        self._mutex = threading.Lock()
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._record = Record(holder, secrets.token_hex(16), seconds, 0)
        self._version, self._until = ABSENT, -math.inf
        self._fault: str | None = None  # why the last renewal failed
        self._tried = self._released = False

    def acquire(self, advice: str) -> None:
        """Takes the lease, after `seconds` if a holder has ended without releasing it.

        Raises:
          BadInput: another process holds it; the message says which.
        """
        if_version = ABSENT
        while not self._try(if_version):
            if_version = self._wait(advice)

    def _try(self, if_version):
        """Whether the lease is now held, by a write that replaces a version."""
        began = self._clock()
        try:
            self._held(self._write(if_version), began)
        except Conflict:
            found = self._read()
            if found is None or found[0].token != self._record.token:
                return False
            self._held(found[1], began)  # the answer to a write that was made was lost
        return True

    def _wait(self, advice):
        """Returns the version to replace, once nobody holds it any more."""
        first = None
        while (found := self._read()) is not None:
            record, version = found
            now = self._clock()
            if first is None:
                first, since = found, now
                patience = max(self._seconds, record.seconds)
                print(
                    f"{self._subject} was last used by {record.holder}. Waiting for up to "
                    f"{patience:.0f} s: if its lease does not change, it has ended.",
                    file=sys.stderr,
                    flush=True,
                )
            elif version != first[1]:
                raise BadInput(
                    f"{self._subject} is in use by {record.holder}, which renewed its lease within "
                    f"the last {math.ceil(now - since)} s; wait until it has ended, stop it, or "
                    f"{advice}."
                )
            elif now - since >= patience:
                return version
            self._sleep(self._seconds / _LOOKS)
        return ABSENT  # it was released

    def renew(self) -> None:
        """Extends the lease, or ends the process if another has taken it.

        Whatever else goes wrong is left to `check`, when the lease has run out.
        """
        try:
            while not self._released:
                began, replaced = self._clock(), self._version
                try:
                    self._held(self._write(replaced), began)
                    return self._try_conditions(replaced)
                except Conflict:
                    self._adopt()
        except Exception as error:
            self._fault = first_line(error)

    def _try_conditions(self, replaced):
        """Warns, once, of a store that writes even if the condition does not hold."""
        if self._tried:
            return
        self._tried = True
        with contextlib.suppress(Conflict):
            self._version = self._write(replaced)
            warn(
                f"{self._subject} cannot be kept to one process, since {self._address.scheme}:// "
                "writes here whatever the condition: make sure that no other run writes there"
            )

    def _adopt(self):
        """Finds out whose write came before, perhaps one of ours whose answer was lost."""
        found = self._read()
        with self._mutex:
            if found is not None and found[0].token == self._record.token:
                self._version = found[1]
                return
            if self._released:
                return
        taken = f"{found[0].holder} has taken" if found else "somebody has deleted"
        end_process(self._subject, f"{taken} the lease {self._address}")

    def check(self) -> None:
        """Ends the process at once, after one line, unless the lease is held for some time yet.

        Threads of TensorStore that write a checkpoint cannot be stopped in another way.
        """
        with self._mutex:
            now, until = self._clock(), self._until
            if self._released or now < until:
                return
        age = now - until + self._seconds * (1 - MARGIN)
        fault = f" ({self._fault})" if self._fault else ""
        end_process(
            self._subject,
            f"the lease {self._address} was not renewed for {age:.0f} s{fault}, so that another "
            "may take it",
        )

    def release(self) -> None:
        """Gives the lease up, if it is still held."""
        with self._mutex:
            self._released = True
        for _ in range(_ATTEMPTS + 1):  # a renewal may have been under way
            if self._clock() >= self._until:
                return
            try:
                return self._store.delete(self._address, self._version)
            except Conflict:
                found = self._read()
                if found is None or found[0].token != self._record.token:
                    return
                self._version = found[1]
            except Exception as error:  # not instead of what ended the work
                return warn(
                    f"the lease {self._address} could not be released ({first_line(error)}); the "
                    f"next process waits for {self._seconds:.0f} s"
                )

    def _held(self, version, began):
        with self._mutex:
            self._version, self._fault = version, None
            # counted from before the write: another counts from after it
            self._until = max(self._until, began + self._seconds * (1 - MARGIN))

    def _write(self, if_version):
        with self._mutex:
            self._record = self._record._replace(count=self._record.count + 1)
            content = self._record.to_json()
        return self._store.write(self._address, content, if_version)

    def _read(self):
        try:
            content, version = self._store.read(self._address)
        except FileNotFoundError:
            return None
        return Record.from_json(content), version


@contextlib.contextmanager
def exclusive(
    address: Address, advice: str, subject: str, seconds: float | None = None
) -> Iterator[None]:
    """Holds a lease, so that no other process runs the body at the same time.

    If a process ends without releasing it, the next one waits for `seconds`. The process is ended
    when the lease runs out, as after a suspension, or is taken.

    Args:
      address: of the lease object.
      advice: what the user may do instead of waiting, for the message.
      subject: what the lease protects, for the message.
      seconds: how long others wait for a change; by default `lease_seconds()`.

    Raises:
      BadInput: another process holds the lease; the message names the process and its host.
    """
    seconds = seconds or lease_seconds()
    lease = Lease(address, subject, seconds)
    lease.acquire(advice)
    _HELD.add(lease)
    try:
        with in_background(lease.renew, lease.check, seconds / RENEWALS):
            yield
    finally:
        _HELD.discard(lease)
        lease.release()


@contextlib.contextmanager
def in_background(
    work: Callable[[], None], check: Callable[[], None], seconds: float
) -> Iterator[None]:
    """Calls two functions again and again, in threads, while the body runs.

    Args:
      work: asks the bucket; a call that hangs does not delay the next.
      check: is called ten times as often.
      seconds: between two calls of `work`.
    """
    ended, attempts = threading.Event(), []

    def attempt():
        attempts[:] = [each for each in attempts if each.is_alive()]
        if len(attempts) < _ATTEMPTS:
            attempts.append(threading.Thread(target=work, daemon=True))
            attempts[-1].start()

    def repeat(call, period):
        while not ended.wait(period):
            call()

    loops = [
        threading.Thread(target=repeat, args=each, daemon=True)
        for each in ((attempt, seconds), (check, seconds / 10))
    ]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        ended.set()
        for loop in loops:
            loop.join()


def check() -> None:
    """Ends this process at once unless it holds all its leases for some time yet.

    For a moment before something is written: threads do the same once a second.
    """
    for lease in list(_HELD):
        lease.check()


def end_process(subject: str, why: str) -> NoReturn:
    """Ends this process at once, after one line.

    Args:
      subject: what it may no longer write to.
      why: a clause.
    """
    print(
        f"error: {subject} is no longer kept to this process: {why}. It ends at once and writes no "
        "more; the same command continues.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
