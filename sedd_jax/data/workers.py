"""The pieces of a corpus, one after the other or by several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
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
) -> Iterator[Any]:
    """The result of each task, in order, as `build()(task)` gives it in some process.

    `build` is called once in each process and can be pickled, unless one worker is enough: then
    all happens here. A terminal shows progress. What a task raises is raised here, the first in
    the order of the tasks; the tasks that have not begun are dropped. Raises Halted when a worker
    dies. Workers end with this process, however it ends.
    """
    from tqdm import tqdm

    found = _each(build, tasks, min(workers, len(tasks)))
    sizes = [task.piece.size for task in tasks]
    # A log file is spared the bar.
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=label, disable=None) as bar:
        for number, (size, result) in enumerate(zip(sizes, found, strict=True)):
            bar.set_postfix_str(f"{number + 1} of {len(tasks)} pieces", refresh=False)
            bar.update(size)
            yield result


def _each(build, tasks, workers):
    if workers < 2:
        yield from map(build(), tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
    with ProcessPoolExecutor(workers, context, _begin, (build,)) as pool:
        try:
            futures = [pool.submit(_work, task) for task in tasks]
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise Halted(
                "A worker process died, perhaps for want of memory. The same command goes on from "
                "there; give it fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(build):
    """Makes this process a worker."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _function = build()


def _work(task):
    return _function(task)


def _die_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
