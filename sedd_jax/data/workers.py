"""The pieces of a corpus, one after the other or by several processes."""

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
    """A piece to be worked on; `number` counts all pieces of a preparation."""

    number: int
    corpus: str
    piece: Piece


def results(
    build: Callable[[], Callable[[Task], Any]], tasks: Sequence[Task], workers: int, label: str
) -> list[Any]:
    """The result of each task, as `build()(task)` gives it in some process.

    `build` is called once in each process and can be pickled, unless one worker is enough: then
    all happens here. A terminal shows progress. What a task raises is raised here, of several the
    first that is known, and ends the other workers in the midst of theirs, as Ctrl-C does. Raises
    Halted when a worker dies. Workers end with this process, however it ends.
    """
    from tqdm import tqdm

    found = {}
    sizes = [task.piece.size for task in tasks]
    done = contextlib.closing(_each(build, tasks, min(workers, len(tasks))))
    # A log file is spared the bar.
    bar = tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=label, disable=None)
    with bar, done as numbered:
        for number, result in numbered:
            found[number] = result
            bar.set_postfix_str(f"{len(found)} of {len(tasks)} pieces", refresh=False)
            bar.update(sizes[number])
    return [found[number] for number in range(len(tasks))]


def _each(build, tasks, workers):
    """Yields the index and the result of each task, as they are done."""
    if workers < 2:
        yield from enumerate(map(build(), tasks))
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads
    with ProcessPoolExecutor(workers, context, _begin, (build,)) as pool:
        try:
            futures = {pool.submit(_work, task): number for number, task in enumerate(tasks)}
            for future in as_completed(futures):
                if future.exception():  # of those known the first
                    future = next(f for f in futures if f.done() and f.exception())
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise Halted(
                "A worker process died, perhaps for want of memory; give the same command fewer "
                "--workers, and it goes on from there."
            ) from error
        except BaseException:
            # Nobody waits for the pieces in hand, which may take hours.
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
