"""The processes of a job: how they find each other, take turns, and fail together."""

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from sedd_jax.errors import BadInput, Halted
from sedd_jax.system.lead import is_primary

T = TypeVar("T")
PATIENCE = 24 * 3600  # seconds that processes wait for one that prepares the data
GOODBYE = 60  # seconds that a process waits at its end for the others, which may hang

_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "yes", "no"],
    "Join the other processes of the job: as --coordinator or the environment says (auto), by "
    "JAX's own detection of the cluster (yes), or not at all (no).",
)  # fmt: skip
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0 of the job.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")
FLAGS = (_DISTRIBUTED, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)


def initialize_distributed() -> None:
    """Joins the processes of the job, if there are others; before any other use of JAX.

    They are looked for where `--coordinator`, `--num_processes` and `--process_id` are given, in a
    SLURM or Open MPI step of several tasks, and on TPU hosts.

    Raises:
      BadInput: flags that contradict each other, or processes that do not find each other.
    """
    explicit = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    given = [value is not None for value in explicit]
    if any(given) and not all(given):
        raise BadInput("--coordinator, --num_processes and --process_id go together.")
    if any(given) and _DISTRIBUTED.value == "no":
        raise BadInput("--distributed=no contradicts --coordinator.")
    if _DISTRIBUTED.value == "no":
        return
    if any(given) or _DISTRIBUTED.value == "yes" or _several_tasks():
        _initialize(*explicit)
    elif _on_tpu_host():
        try:
            _initialize(*explicit)
        except BadInput as error:  # a single host may know nothing of a cluster
            print(f"This TPU host goes on alone. {error}", flush=True)


def _initialize(*explicit):
    try:
        jax.distributed.initialize(*explicit, shutdown_timeout_seconds=GOODBYE)
    except (ValueError, RuntimeError) as error:
        raise BadInput(
            f"The processes of the job do not find each other ({str(error).splitlines()[0]}); check"
            " --coordinator, --num_processes and --process_id, or give --distributed=no."
        ) from error
    # a process whose part of a checkpoint fails waits for the others before it can say so itself
    logging.set_verbosity(logging.ERROR)


def _several_tasks():
    """Whether this is one of several tasks; a SLURM script outside srun is in no step."""
    return any(
        int(os.environ.get(tasks, 1)) > 1 and number in os.environ
        for tasks, number in (
            ("SLURM_NTASKS", "SLURM_STEP_NODELIST"),
            ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        )
    )


def _on_tpu_host():
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    devices = ("/dev/accel0", "/dev/vfio/0")
    return importlib.util.find_spec("libtpu") and any(Path(path).exists() for path in devices)


def run_primary_first(first: Callable[[], T], others: Callable[[], T]) -> T:
    """Returns first() on process 0, and after that others() on the others.

    Raises:
      Halted: another process failed; so no process waits for one that has ended.
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
    """Returns work() on the lead, and None on the others once it is done.

    Raises:
      Halted: it failed, on the lead.
    """
    return run_primary_first(work, lambda: None)


@contextlib.contextmanager
def abort_with_peers(goodbye: str) -> Iterator[None]:
    """Ends this process at once, after one line, where the devices of another answer no more.

    For work whose every part is safe on disk as soon as it is done; alone, errors pass.

    Args:
      goodbye: what the line says at its end.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).partition("\n")[0]
        print(
            f"\nerror: another process of the job has ended, it seems ({reason:.200}); {goodbye}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # an exit in good order would wait for the others


def assert_equal_across_processes(facts: str, words: str) -> None:
    """Checks that all processes have the same facts, called so in words.

    Raises:
      BadInput: they do not; on every process, so that none waits for one that has ended.
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
    """Waits until all processes are here, for hours if need be.

    Sums between devices give up after half a minute, on CPUs, if a process comes late to the first
    one: it may be preparing the data, or still compiling.
    """
    if jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(name, timeout=PATIENCE, processes=everyone)


def broadcast_from_primary(value: bool | np.ndarray) -> bool | np.ndarray:
    """Returns, on every process, what the lead gives here: one value, or an array of one shape."""
    if jax.process_count() == 1:
        return value
    said = multihost_utils.process_allgather(np.array(value))[0]
    return said if said.ndim else bool(said)


def _fail_together(error):
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if failed.any() and error is None:
            raise Halted(f"Process {failed.argmax()} of the job ended with an error; see there.")
    if error is not None:
        raise error
