"""Runs a function on all pieces of a corpus, in this process or in several workers."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from sedd_jax.data.documents import Piece
from sedd_jax.errors import Halted


class Task(NamedTuple):
    """One piece to process, or several small ones; `number` counts the tasks of a preparation."""

    number: int
    corpus: str
    pieces: tuple[Piece, ...]


def results(
    build: Callable[[], Callable[[Task], Any]], tasks: Sequence[Task], workers: int, label: str
) -> list[Any]:
    """Runs `build()(task)` for every task and shows progress on a terminal.

    What a task raises is raised here, the first of several, and terminates the other workers, as
    Ctrl-C does. Workers end with this process, however it ends.

    Args:
      build: makes the function that processes a task; called once in each process. It has to be
        picklable unless one worker is enough, which is then this process.
      tasks: the tasks, numbered from 0.
      workers: the largest number of processes.
      label: the name of the progress bar.

    Returns:
      The result of each task, in the order of the tasks.

    Raises:
      Halted: a worker died.
    """
    from tqdm import tqdm

    found = {}
    sizes = [sum(piece.size for piece in task.pieces) for task in tasks]
    done = contextlib.closing(_each(build, tasks, min(workers, len(tasks))))
    # disable=None: no bar where stderr is not a terminal
    bar = tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=label, disable=None)
    with bar, done as numbered:
        for number, result in numbered:
            found[number] = result
            bar.set_postfix_str(f"{len(found)} of {len(tasks)} parts", refresh=False)
            bar.update(sizes[number])
    return [found[number] for number in range(len(tasks))]


def _each(build, tasks, workers):
    """Yields the index and the result of each task as it finishes."""
    if workers < 2:
        yield from enumerate(map(build(), tasks))
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads
    with ProcessPoolExecutor(workers, context, _begin, (build,)) as pool:
        try:
            futures = {pool.submit(_work, task): number for number, task in enumerate(tasks)}
            for future in as_completed(futures):
                if future.exception():  # raise the first that is known
                    future = next(f for f in futures if f.done() and f.exception())
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise Halted(
                "A worker process died, perhaps because memory ran out; give the same command "
                "fewer --workers, and it continues from there."
            ) from error
        except BaseException:
            # do not wait for the current pieces, which may take hours
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()
            raise


def _begin(build):
    """Makes this process a worker."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _function = build()


def _work(task):
    return _function(task)


def _die_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
