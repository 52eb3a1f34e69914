import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from sedd_jax.data.pipeline import TrainBatches, heldout_batches, train_batches
from sedd_jax.data.token_blocks import TokenBlocks
from sedd_jax.errors import BadInput

LENGTH = 6


@pytest.fixture
def blocks(tmp_path):
    return _blocks(tmp_path, 10)


def _blocks(folder, count):
    """Blocks whose tokens are all different: token t stands at position t of the stream."""
    np.arange(count * LENGTH, dtype=np.uint16).tofile(folder / f"{count}.bin")
    return TokenBlocks(folder / f"{count}.bin", LENGTH, "uint16")


def _take(blocks, count, **options):
    with train_batches(blocks, **{"batch_size": 4, "seed": 3, **options}) as batches:
        return np.stack(list(itertools.islice(batches, count)))


@pytest.mark.parametrize("crop", ["blocks", "random"])
def test_a_batch_is_a_pure_function_of_seed_and_step(blocks, crop):
    whole = _take(blocks, 12, crop=crop)
    assert whole.dtype == np.int32 and whole.shape == (12, 4, LENGTH)
    for start in (1, 5, 11):
        late = _take(blocks, 12 - start, crop=crop, start_step=start, num_threads=1, buffer=1)
        np.testing.assert_array_equal(late, whole[start:])
    assert not np.array_equal(_take(blocks, 12, crop=crop, seed=4), whole)


def test_starting_late_reads_nothing_before(blocks):
    # A billion steps could not be read and thrown away.
    batch = _take(blocks, 1, start_step=10**9)
    assert batch.shape == (1, 4, LENGTH)


def test_every_epoch_visits_every_block_once_in_another_order(blocks):
    # 10 blocks in batches of 4: the batches run across the borders of epochs.
    rows = _take(blocks, 10).reshape(40, LENGTH)
    firsts = rows[:, 0].reshape(4, 10)
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(LENGTH))
    for epoch in firsts:
        assert sorted(epoch) == list(range(0, 60, LENGTH))
    assert len({tuple(epoch) for epoch in firsts}) == 4


def test_random_crop_keeps_every_token_once_an_epoch_on_a_moving_grid(blocks):
    epochs = _take(blocks, 20, crop="random").reshape(8, 10, LENGTH)
    offsets = set()
    for epoch in epochs:
        assert sorted(epoch.ravel()) == list(range(60))
        np.testing.assert_array_equal(np.diff(epoch, axis=1) % 60, 1)
        (offset,) = set(epoch[:, 0] % LENGTH)
        offsets.add(offset)
    assert len(offsets) > 2


def test_random_crop_can_draw_every_offset(blocks):
    epochs = _take(blocks, 150, crop="random").reshape(60, 10, LENGTH)
    assert {int(epoch[0, 0]) % LENGTH for epoch in epochs} == set(range(LENGTH))


def test_fewer_blocks_than_a_batch_still_fill_it(tmp_path):
    rows = _take(_blocks(tmp_path, 3), 3).reshape(12, LENGTH)
    assert sorted(rows[:, 0].tolist()) == sorted([0, 6, 12] * 4)
    assert _take(_blocks(tmp_path, 1), 2, crop="random").shape == (2, 4, LENGTH)


def test_the_largest_seed_is_accepted(blocks):
    assert _take(blocks, 1, seed=2**32 - 1).shape == (1, 4, LENGTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**32}, r"data seed is 4294967296, it must lie in \[0, 2\*\*32\)"),
        ({"seed": -1}, "data seed is -1"),
        ({"batch_size": 0}, "batch_size is 0, it must be at least 1"),
        ({"start_step": -1}, "start_step is -1, it must be at least 0"),
        ({"num_threads": 0}, "num_threads is 0, it must be at least 1"),
        ({"buffer": 0}, "buffer is 0, it must be at least 1"),
        ({"crop": "centre"}, "Unknown crop 'centre'; choose one of blocks, random"),
    ],
)
def test_arguments_out_of_range_are_named(blocks, options, message):
    with pytest.raises(BadInput, match=message):
        train_batches(blocks, **{"batch_size": 4, "seed": 0, **options})


def test_closed_batches_say_so(blocks):
    batches = train_batches(blocks, batch_size=2, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="These training batches are closed"):
        next(batches)


def test_batches_left_open_close_themselves():
    calls = []
    batches = TrainBatches(iter(()), lambda: calls.append("closed"))
    assert not calls
    del batches
    assert calls == ["closed"]
    # At the exit of the interpreter too.
    code = (
        "from sedd_jax.data.pipeline import TrainBatches\n"
        "batches = TrainBatches(iter(()), lambda: print('closed'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "closed"


def test_closing_stops_the_reading_threads(blocks):
    before = set(threading.enumerate())
    batches = train_batches(blocks, batch_size=2, seed=0)
    next(batches)
    readers = set(threading.enumerate()) - before
    assert readers
    batches.close()
    for thread in readers:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("batch_size", "max_blocks", "first_blocks"),
    [
        (5, None, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        (4, None, [[0, 1, 2, 3], [5, 6, 7, 8]]),
        (2, 5, [[0, 2], [5, 7]]),
        (5, 5, [[0, 2, 4, 6, 8]]),
        (4, 1000, [[0, 1, 2, 3], [5, 6, 7, 8]]),
        (8, 3, [[0, 3, 6]]),
        (64, None, [list(range(10))]),
    ],
)
def test_heldout_batches_are_full_and_evenly_spaced(blocks, batch_size, max_blocks, first_blocks):
    batches = list(heldout_batches(blocks, batch_size=batch_size, max_blocks=max_blocks))
    assert [(batch[:, 0] // LENGTH).tolist() for batch in batches] == first_blocks
    for batch in batches:
        assert batch.dtype == np.int32
        np.testing.assert_array_equal(batch, batch[:, :1] + np.arange(LENGTH))


def test_heldout_batches_check_their_arguments_at_once(blocks):
    with pytest.raises(BadInput, match="batch_size is 0"):
        heldout_batches(blocks, batch_size=0)
    with pytest.raises(BadInput, match="max_blocks is 0"):
        heldout_batches(blocks, batch_size=1, max_blocks=0)
