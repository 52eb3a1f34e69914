import functools
import multiprocessing
import operator
import os
import time

import pytest

from sedd_jax.data.documents import Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.data.workers import Task, results
from sedd_jax.errors import BadInput, Halted

NUMBER = functools.partial(operator.attrgetter, "number")


def _tasks(count):
    topics = tuple(pieces(Recipe(), "pydoc"))
    return [Task(number, "corpus", topics) for number in range(count)]


def test_results_come_in_the_order_of_the_tasks():
    for workers in (1, 2):
        assert results(NUMBER, _tasks(9), workers, "") == list(range(9))


def test_one_worker_is_this_process():
    def build():
        return lambda task: os.getpid()

    assert results(build, _tasks(2), 1, "") == [os.getpid()] * 2
    assert results(build, _tasks(1), 8, "") == [os.getpid()]


def test_what_a_task_raises_is_raised():
    absent = functools.partial(operator.attrgetter, "absent")
    for workers in (1, 2):
        with pytest.raises(AttributeError, match="absent"):
            results(absent, _tasks(3), workers, "")


def _late(task):
    """The first task fails, the others last for ever."""
    if task.number:
        time.sleep(1000)
    raise BadInput("not this one")


def test_one_failure_ends_all_workers():
    before = multiprocessing.active_children()
    began = time.monotonic()
    with pytest.raises(BadInput, match="not this one"):
        results(functools.partial(_return, _late), _tasks(4), 3, "")
    assert time.monotonic() - began < 20
    assert multiprocessing.active_children() == before


def _return(function):
    return function


def test_a_worker_that_dies_ends_the_program_with_a_sentence():
    with pytest.raises(Halted, match="A worker process died.*fewer --workers"):
        results(functools.partial(os._exit, 3), _tasks(3), 2, "")
