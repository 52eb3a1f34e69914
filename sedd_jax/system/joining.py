"""How the processes of a job find each other."""

import contextlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import jax

from sedd_jax.errors import BadInput, first_line, warn

SHUTDOWN_SECONDS = 60  # a process that ends waits this long for the others, which may hang
NOTICE_SECONDS = 10  # a process other than 0 says what it waits for after this time
_CLUSTERS = ("SLURM_", "OMPI_", "JAX_")  # begin the variables by which JAX finds a cluster


def initialize_distributed(
    mode: str = "auto",
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    patience: int = 300,
) -> None:
    """Connects this process to the others of its job, if there are any.

    To be called before any other use of JAX. With "auto" there are others if the three settings
    below are given, in a SLURM or Open MPI step of several tasks, and on TPU hosts. Where the
    others do not come, the process ends with one line.

    Args:
      mode: "auto"; "yes", which always uses JAX's own detection of the cluster; or "no".
      coordinator: host:port of process 0.
      num_processes: the number of processes in the job.
      process_id: the number of this process, from 0.
      patience: seconds to wait for the others.

    Raises:
      BadInput: settings that contradict each other, or processes that do not find each other.
    """
    explicit = (coordinator, num_processes, process_id)
    given = [value is not None for value in explicit]
    if any(given) and not all(given):
        raise BadInput("--coordinator, --num_processes and --process_id go together.")
    if any(given) and mode == "no":
        raise BadInput("--distributed=no contradicts --coordinator.")
    if mode == "no":
        return
    others, number, alone = "the processes of the job", -1, "--distributed=no runs this one alone"
    if any(given):
        others, number = f"{num_processes} processes (--num_processes={num_processes})", process_id
        alone = "check --coordinator"
    elif step := _step_of_several():
        count, source, number = step
        explicit, others = (None, count, None), f"{count} processes ({source}={count})"
    waiting = _Waiting(others, alone, patience, at_once=number == 0)
    if any(given) or mode == "yes" or step:
        _initialize(explicit, waiting)
    elif _is_tpu_host():
        try:
            _initialize(explicit, waiting)
        except BadInput as error:  # a single host may know nothing of a cluster
            warn(f"this TPU host continues alone. {error}")


class _Waiting(NamedTuple):
    """For whom this process waits, what to do if they do not come, and how long."""

    others: str
    alone: str
    patience: int
    at_once: bool  # whether it is said at once

    @contextlib.contextmanager
    def limited(self):
        """Says what is waited for, and ends the process where it takes too long."""
        notice = f"Waiting for {self.others}; {self.alone}."
        timers = [
            threading.Timer(0 if self.at_once else NOTICE_SECONDS, _say, [notice]),
            threading.Timer(self.patience, self._give_up),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def _give_up(self):
        _say(
            f"error: Of {self.others} not all came within {self.patience} s; --patience=SECONDS "
            f"waits longer, {self.alone}."
        )
        os._exit(1)  # the main thread waits in C++, where JAX would abort the process


def _initialize(explicit, waiting):
    try:
        with waiting.limited():
            jax.distributed.initialize(
                *explicit,
                initialization_timeout=waiting.patience + 60,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except (KeyError, ValueError, RuntimeError) as error:
        named = [name for name in os.environ if name.startswith(_CLUSTERS)]
        empty = [name for name in named if not os.environ[name].strip()]
        raise BadInput(
            f"The processes of the job do not find each other ({first_line(error)}"
            f"{'; empty: ' if empty else ''}{', '.join(empty)}); check "
            "--coordinator, --num_processes and --process_id, or give --distributed=no."
        ) from error


def _say(line):
    print(line, file=sys.stderr, flush=True)


def _step_of_several():
    """Returns the count of tasks in this step, which variable says so, and the task's number.

    None for a single task. A SLURM script outside srun is in no step, and the shell of an
    allocation is in a step of one, whose SLURM_NTASKS is that of the allocation.
    """
    tasks = _number("SLURM_NTASKS")
    if os.environ.get("SLURM_STEP_NODELIST"):
        own = _number("SLURM_STEP_NUM_TASKS")
        source = "SLURM_STEP_NUM_TASKS" if own else "SLURM_NTASKS"
        if (own or tasks) > 1:
            return own or tasks, source, _number("SLURM_PROCID")
    if tasks > 1:
        warn(f"SLURM_NTASKS={tasks}, but this process is alone in its step of srun: it runs alone")
    count = _number("OMPI_COMM_WORLD_SIZE")
    if count > 1 and os.environ.get("OMPI_COMM_WORLD_RANK"):
        return count, "OMPI_COMM_WORLD_SIZE", _number("OMPI_COMM_WORLD_RANK")
    return None


def _number(name):
    """Returns the number in a variable of the environment, 0 if it is unset or empty."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise BadInput(f"{name}={text} in the environment is no number; give --distributed=no.")
    return int(text or 0)


def _is_tpu_host():
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    devices = ("/dev/accel0", "/dev/vfio/0")
    return importlib.util.find_spec("libtpu") and any(Path(path).exists() for path in devices)
