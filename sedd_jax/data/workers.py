"""The pieces of a corpus, one after the other or by several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from sedd_jax.data.documents import Piece
from sedd_jax.errors import Halted


class Task(NamedTuple):
    """A piece to be worked on; `number` counts all pieces of a preparation."""

    number: int
    corpus: str
    piece: Piece


def results(
    build: Callable[[], Callable[[Task], Any]], tasks: Sequence[Task], workers: int, label: str
) -> list[Any]:
    """The result of each task, as `build()(task)` gives it in some process.

    `build` is called once in each process and can be pickled, unless one worker is enough: then
    all happens here. A terminal shows progress. What a task raises is raised here, the first in
    the order of the tasks, when no worker is at work any more. Raises Halted when a worker dies.
    Workers end with this process, however it ends.
    """
    from tqdm import tqdm

    found = []
    sizes = [task.piece.size for task in tasks]
    # A log file is spared the bar.
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=label, disable=None) as bar:
        for size, result in zip(sizes, _each(build, tasks, min(workers, len(tasks))), strict=True):
            found.append(result)
            bar.set_postfix_str(f"{len(found)} of {len(tasks)} pieces", refresh=False)
            bar.update(size)
    return found


def _each(build, tasks, workers):
    if workers < 2:
        yield from map(build(), tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads
    with ProcessPoolExecutor(workers, context, _begin, (build,)) as pool:
        futures = [pool.submit(_work, task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise Halted(
                "A worker process died, perhaps for want of memory; give the same command fewer "
                "--workers, and it goes on from there."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
