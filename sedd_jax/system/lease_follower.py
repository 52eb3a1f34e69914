"""A lease as it is seen by processes that rely on another of their job to hold it.

A holder that was killed does not end the others at once, and they write parts of checkpoints.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sedd_jax.system import bucket
from sedd_jax.system.bucket import Address
from sedd_jax.system.lease import (
    MARGIN,
    RENEWALS,
    Record,
    clock,
    end_process,
    in_background,
    lease_seconds,
)


@contextlib.contextmanager
def followed(address: Address, subject: str) -> Iterator[None]:
    """Ends this process when a lease that another one holds runs out, or is taken by a third.

    Args:
      address: of the lease object.
      subject: what it protects, for the message.
    """
    seconds = lease_seconds()  # as the holder's
    follower = Follower(address, subject, seconds)
    follower.look()
    with in_background(follower.look, follower.check, seconds / RENEWALS):
        yield


class Follower:
    """What is known of a lease. Its methods may be called from several threads."""

    def __init__(
        self,
        address: Address,
        subject: str,
        seconds: float,
        *,
        store: Any = bucket,
        clock: Callable[[], float] = clock,
    ):
        """Describes the lease, see `lease.Lease`.

        Args:
          address: of the lease object.
          subject: what it protects, for messages.
          seconds: as the holder's.
          store: has the function read of `bucket`.
          clock: returns seconds.
        """
        self._address, self._subject, self._seconds = address, subject, seconds
        self._store, self._clock, self._mutex = store, clock, threading.Lock()
        self._holder: Record | None = None
        # the last version, and when it was there; the holder has just renewed it, or is about to
        self._version, self._seen = None, clock() - seconds / RENEWALS
        self._until = self._seen + seconds * (1 - MARGIN)

    def look(self) -> None:
        """Reads the lease, and ends this process if it has another holder than at first.

        If it was released, the job ends in an orderly way. What goes wrong is left to `check`.
        """
        began = self._clock()
        try:
            content, version = self._store.read(self._address)
        except FileNotFoundError:
            self._until = math.inf
            return
        except Exception:
            return
        with self._mutex:
            record = Record.from_json(content)
            self._holder = self._holder or record
            if began < self._seen:
                return  # a later answer came before
            if version != self._version:  # it was written after it was last seen
                self._until = max(self._until, self._seen + self._seconds * (1 - MARGIN))
            self._version, self._seen = version, began
        if record.token != self._holder.token:
            end_process(self._subject, f"{record.holder} has taken the lease {self._address}")

    def check(self) -> None:
        """Ends this process unless the lease is held for some time yet."""
        if self._clock() >= self._until:
            holder = self._holder.holder if self._holder else "its holder"
            end_process(self._subject, f"{holder} does not renew the lease {self._address}")
