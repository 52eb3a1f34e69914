"""Runs the processes of a job side by side: `python launch/together.py 2 COMMAND`.

Process i runs COMMAND --coordinator=localhost:PORT --num_processes=2 --process_id=i.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

PATIENCE = 10  # seconds from the first failure until what still runs is killed


def together(count: int, command: list[str], patience: float = PATIENCE) -> int:
    """Runs a command in `count` processes until all have ended.

    Their lines are printed with the number of the process before them. When one fails the others
    get SIGTERM, and what still runs after `patience` seconds is killed. The first SIGINT or SIGTERM
    is passed on as SIGTERM, on which training saves; the second one kills.

    Returns:
      The exit code of the first process that failed, or 0.
    """
    processes, threads = [], []

    def send(what):
        for process in processes:
            process.send_signal(what)  # to none that has ended

    signals = iter([signal.SIGTERM])
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda *_: send(next(signals, signal.SIGKILL)))

    with socket.create_server(("localhost", 0)) as server:  # closed again, its port is free
        port = server.getsockname()[1]
    job = [*command, f"--coordinator=localhost:{port}", f"--num_processes={count}"]
    for number in range(count):
        processes.append(_start([*job, f"--process_id={number}"]))
        threads.append(threading.Thread(target=_tell, args=(number, processes[-1])))
        threads[-1].start()

    code, end = 0, float("inf")
    while None in (codes := [process.poll() for process in processes]):
        if not code and any(codes):
            code, end = next(filter(None, codes)), time.monotonic() + patience
            send(signal.SIGTERM)
        if time.monotonic() > end:
            send(signal.SIGKILL)
        time.sleep(0.1)
    for process, thread in zip(processes, threads, strict=True):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind
        thread.join()
    code = code or next(filter(None, codes), 0)
    return code if code >= 0 else 128 - code  # as a shell says it


def _start(command):
    """Starts a process out of reach of Ctrl-C, which is for this program to pass on."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )


def _tell(number, process):
    for line in process.stdout:
        sys.stdout.write(f"{number}: {line}")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(together(int(sys.argv[1]), sys.argv[2:]))
