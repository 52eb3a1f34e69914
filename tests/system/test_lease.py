import functools
import heapq
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.system import lease as leases
from sedd_jax.system.bucket import Address, Conflict
from sedd_jax.system.lease import Lease, Record
from sedd_jax.system.lease_follower import Follower

LOCK = Address("gs", "bucket", "run/lock")
SECONDS = 60.0


class Ended(BaseException):
    """What ends a process here, instead of `os._exit`."""


@pytest.fixture(autouse=True)
def _ending(monkeypatch):
    def end(code):
        raise Ended(code)

    monkeypatch.setattr(leases.os, "_exit", end)


class Objects:
    """The lease object of a bucket that heeds conditions; some answers are lost on demand."""

    def __init__(self, delay=lambda: None, loses=lambda: False):
        self.content, self.version, self.writes = None, "", 0
        self._delay, self._loses = delay, loses

    def read(self, address):
        self._delay()
        found = self.content, self.version
        self._delay()
        if found[0] is None:
            raise FileNotFoundError(address)
        return found

    def write(self, address, content, if_version):
        return self._change(content, if_version)

    def delete(self, address, if_version):
        self._change(None, if_version)

    def _change(self, content, if_version):
        while True:
            self._delay()
            if if_version != self.version:
                self._delay()
                raise Conflict(LOCK)
            self.writes += 1
            self.content, self.version = content, str(self.writes) if content else ""
            made = self.version
            self._delay()
            if not self._loses():
                return made


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def lease(store, clock, sleep=None):
    return Lease(
        LOCK, "gs://bucket/run", SECONDS, store=store, clock=clock, sleep=sleep or clock.sleep
    )


def holder_of(store):
    return Record.from_json(store.content)


def test_a_released_lease_is_taken_at_once():
    store, clock = Objects(), Clock()
    for _ in range(2):
        held = lease(store, clock)
        held.acquire("wait")
        held.check()
        held.release()
        assert store.content is None
    assert clock.now == 0


def test_a_lease_whose_holder_was_killed_is_taken_after_its_seconds(capsys):
    store, clock = Objects(), Clock()
    lease(store, clock).acquire("wait")
    second = lease(store, clock)
    second.acquire("wait")
    assert SECONDS <= clock.now < 1.1 * SECONDS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gs://bucket/run was last used by process ")
    assert "Waiting for up to 60 s" in line
    second.check()


def test_a_lease_that_changes_is_refused_at_the_first_change():
    store, clock = Objects(), Clock()
    first = lease(store, clock)
    first.acquire("wait")

    def sleep(seconds):
        clock.sleep(seconds)
        if clock.now > SECONDS / 6:
            first.renew()

    with pytest.raises(BadInput, match="is in use by process .* stop it, or choose another one"):
        lease(store, clock, sleep).acquire("choose another one")
    assert clock.now < SECONDS / 4
    first.check()


def test_a_lease_that_is_released_meanwhile_is_taken():
    store, clock = Objects(), Clock()
    first = lease(store, clock)
    first.acquire("wait")

    def sleep(seconds):
        clock.sleep(seconds)
        first.release()

    lease(store, clock, sleep).acquire("wait")
    assert clock.now < SECONDS / 4


def test_the_holder_ends_before_another_may_take_the_lease(capsys):
    store, clock = Objects(), Clock()
    held = lease(store, clock)
    held.acquire("wait")
    clock.now = 0.8 * SECONDS
    held.check()
    held.renew()
    clock.now = 1.6 * SECONDS
    held.check()
    clock.now = 1.7 * SECONDS
    with pytest.raises(Ended):
        held.check()
    assert "was not renewed for 54 s, so that another may take it" in capsys.readouterr().err


def test_a_holder_that_wakes_up_too_late_ends_and_leaves_the_lease_of_the_other(capsys):
    store, clock = Objects(), Clock()
    first, second = lease(store, clock), lease(store, clock)
    first.acquire("wait")
    second.acquire("wait")
    with pytest.raises(Ended):
        first.renew()
    assert "has taken the lease gs://bucket/run/lock" in capsys.readouterr().err
    first.release()
    second.check()
    assert holder_of(store).token == second._record.token


def test_a_write_whose_answer_was_lost_is_known_by_its_token():
    lost = iter([True, True, False, True] + [False] * 9)
    store, clock = Objects(loses=lambda: next(lost)), Clock()
    held = lease(store, clock)
    held.acquire("wait")
    clock.now = 0.8 * SECONDS
    held.renew()  # lost, and made again after it was found
    clock.now = 1.6 * SECONDS
    held.check()
    held.release()  # lost as well
    assert store.content is None


def test_a_renewal_that_fails_is_told_when_the_time_is_over(capsys):
    store, clock = Objects(), Clock()
    held = lease(store, clock)
    held.acquire("wait")

    def refuse(*arguments):
        raise BadInput("gs://bucket/run/lock refuses the access.\nMore of it")

    store.write = refuse
    held.renew()
    held.check()
    clock.now = SECONDS
    with pytest.raises(Ended):
        held.check()
    assert "(gs://bucket/run/lock refuses the access)" in capsys.readouterr().err


def test_where_conditions_are_not_heeded_a_warning_says_so(capsys):
    store, clock = Objects(), Clock()
    write = store.write
    store.write = lambda address, content, if_version: write(address, content, store.version)
    held = lease(store, clock)
    held.acquire("wait")
    for _ in range(2):
        held.renew()
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be kept to one process" in line


def test_an_object_that_is_no_record_is_of_another_process(capsys):
    store, clock = Objects(), Clock()
    store.write(LOCK, b"[1]", "")
    lease(store, clock).acquire("wait")
    assert "last used by another process" in capsys.readouterr().err


class World:
    """Processes in simulated time, each of several threads of which one runs at a time."""

    def __init__(self, seed):
        self.random, self.now, self.failures = random.Random(seed), 0.0, []
        self._due, self._number, self._threads = [], itertools.count(), []
        self._idle, self._over = threading.Semaphore(0), False
        self._here = threading.local()

    def start(self, process, work):
        """Starts a thread of a process."""
        turn = threading.Semaphore(0)

        def run():
            self._here.process, self._here.turn = process, turn
            turn.acquire()
            try:
                if not self._over:
                    work()
            except Ended:
                process.frozen = math.inf
            except Exception as error:
                self.failures.append(error)
            finally:
                self._idle.release()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append((thread, turn))
        self._push(self.now, process, turn)

    def _push(self, when, process, turn):
        heapq.heappush(self._due, (when, next(self._number), process, turn))

    def sleep(self, seconds):
        here = self._here
        self._push(self.now + seconds, here.process, here.turn)
        self._idle.release()
        here.turn.acquire()
        if self._over:
            raise Ended

    def run(self, until):
        while self._due and self._due[0][0] < until:
            self.now, _, process, turn = heapq.heappop(self._due)
            if process.frozen > self.now:  # stopped, or killed
                if process.frozen < math.inf:
                    self._push(process.frozen, process, turn)
                continue
            turn.release()
            self._idle.acquire()
        self._over = True
        for thread, turn in self._threads:
            turn.release()
            thread.join()
        assert self.failures == []


class Process:
    def __init__(self, frozen=0.0):
        self.frozen = frozen


def writers(seed, log):
    """Simulates an hour of processes that want to write the same folder."""
    world = World(seed)
    chance = world.random.random

    def delay():
        world.sleep(chance() * (2 if chance() < 0.95 else 100))

    store = Objects(delay, lambda: chance() < 0.1)

    def life(process):
        held = Lease(LOCK, "run", SECONDS, store=store, clock=lambda: world.now, sleep=world.sleep)
        name = held._record.token
        try:
            held.acquire("wait")
        except BadInput:
            return

        def renew():
            while True:
                world.sleep(SECONDS / 6)
                held.renew()

        def guard():
            while True:
                world.sleep(SECONDS / 15)
                held.check()

        def arrive():
            log.append(name)

        world.start(process, renew)
        world.start(process, guard)
        for _ in range(int(60 * chance())):
            world.sleep(10 * chance())
            held.check()
            # a request that has been sent arrives whatever becomes of the process
            world.start(Process(world.now + SECONDS / 7 * chance()), arrive)
            if chance() < 0.05:
                process.frozen = world.now + 200 * chance()
            if chance() < 0.02:
                process.frozen = math.inf
        held.release()
        process.frozen = math.inf

    def arrivals():
        while True:
            process = Process()
            world.start(process, functools.partial(life, process))
            world.sleep(100 * chance())

    world.start(Process(), arrivals)
    world.run(3600)


def test_writes_of_two_holders_never_interleave():
    holders = 0
    for seed in range(8):
        log = []
        writers(seed, log)
        in_turn = [name for name, _ in itertools.groupby(log)]
        assert len(set(in_turn)) == len(in_turn), seed
        holders += len(in_turn)
    assert holders > 40


def follower(store, clock):
    return Follower(LOCK, "gs://bucket/run", SECONDS, store=store, clock=clock)


def test_a_follower_ends_before_another_may_take_the_lease(capsys):
    store, clock = Objects(), Clock()
    held = lease(store, clock)
    held.acquire("wait")
    other = follower(store, clock)
    other.look()
    clock.now = 30.0
    other.look()  # without a change
    held.renew()
    clock.now = 65.0
    with pytest.raises(Ended):  # seen unchanged 65 s ago and not since
        other.check()
    other.look()  # changed after 30 s, perhaps at once
    other.check()
    clock.now = 79.0
    other.check()
    clock.now = 80.0
    with pytest.raises(Ended):
        other.check()
    assert f"process {os.getpid()} on " in capsys.readouterr().err


def test_a_follower_ends_when_another_has_taken_the_lease():
    store, clock = Objects(), Clock()
    lease(store, clock).acquire("wait")
    other = follower(store, clock)
    other.look()
    lease(store, clock).acquire("wait")
    with pytest.raises(Ended):
        other.look()


def test_a_follower_goes_on_after_an_orderly_end():
    store, clock = Objects(), Clock()
    held = lease(store, clock)
    held.acquire("wait")
    other = follower(store, clock)
    other.look()
    held.release()
    other.look()
    clock.now = 1000.0
    other.check()


WRITER = """
import os, sys, time
from sedd_jax.errors import BadInput
from sedd_jax.system import bucket, lease
name, folder, log = sys.argv[1:]
address = bucket.parse(folder)
try:
    with lease.exclusive(address / "lock", "wait", address, seconds=3.0), open(log, "a") as file:
        while True:
            bucket.write(address / "data", name.encode())
            lease.check()
            print(name, file=file, flush=True)
except BadInput as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_real_processes_take_turns(cloud, tmp_path):
    """One is stopped for longer than its lease, and wakes up while another writes."""
    log = tmp_path / "log"
    log.touch()

    def start(name):
        command = [sys.executable, "-c", WRITER, name, f"{cloud.address}/run", str(log)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def until(name):
        while name not in log.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)

    end = time.monotonic() + 120
    first = start("first")
    until("first")
    third = start("third")
    assert f"{cloud.address}/run is in use by process {first.pid} on " in third.communicate()[1]
    first.send_signal(signal.SIGSTOP)
    second = start("second")
    until("second")
    first.send_signal(signal.SIGCONT)
    assert "is no longer kept to this process" in first.communicate(timeout=60)[1]
    assert first.returncode == 1
    time.sleep(1)
    assert second.poll() is None
    second.kill()
    assert "last used by process" in second.communicate()[1]
    assert [name for name, _ in itertools.groupby(log.read_text().split())] == ["first", "second"]
