import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from sedd_jax.data.pipeline import TrainBatches, batch_blocks, heldout_batches, train_batches
from sedd_jax.data.token_blocks import TokenBlocks
from sedd_jax.errors import BadInput

LENGTH = 6


@pytest.fixture
def blocks(tmp_path):
    return _blocks(tmp_path, 10)


def _blocks(folder, count):
    """Blocks whose tokens are all different: token t stands at position t of the stream."""
    np.arange(count * LENGTH, dtype=np.uint16).tofile(folder / f"{count}.bin")
    return TokenBlocks([folder / f"{count}.bin"], LENGTH, "uint16")


def _take(blocks, count, **options):
    with train_batches(blocks, **{"batch_size": 4, "seed": 3, **options}) as batches:
        return np.stack(list(itertools.islice(batches, count)))


# The first tokens of the batches of steps 0 to 2 and 10**9, written down on 2026-11-22 with Grain
# 0.2.18: a run must go on with the data it began with, whatever becomes of this code and of Grain.
RECORDED = {
    "blocks": [[24, 36, 54, 42], [30, 18, 6, 48], [12, 0, 48, 6], [18, 54, 48, 0]],
    "random": [[29, 41, 59, 47], [35, 23, 11, 53], [17, 5, 52, 10], [22, 58, 52, 4]],
}


@pytest.mark.parametrize("crop", ["blocks", "random"])
def test_the_order_of_the_data_stays_what_it_was(blocks, crop):
    batches = [*_take(blocks, 3, crop=crop), *_take(blocks, 1, crop=crop, start_step=10**9)]
    for batch, recorded in zip(batches, RECORDED[crop], strict=True):
        np.testing.assert_array_equal(batch, (np.c_[recorded] + np.arange(LENGTH)) % 60)


@pytest.mark.parametrize("crop", ["blocks", "random"])
def test_processes_read_their_own_rows_of_the_same_batch(blocks, crop):
    whole = _take(blocks, 12, crop=crop)
    for rows in ([0, 1], [1, 3], [2]):
        for start in (0, 7):
            own = _take(blocks, 12 - start, crop=crop, rows=np.array(rows), start_step=start)
            assert own.dtype == np.int32
            np.testing.assert_array_equal(own, whole[start:, rows])


@pytest.fixture
def starts_read(blocks, monkeypatch):
    """The starts of all that is read of `blocks`, in order."""
    starts, read = [], TokenBlocks.read

    def spy(self, at):
        if self is blocks:  # threads of a test before may not have ended
            starts.extend(at.tolist())
        return read(self, at)

    monkeypatch.setattr(TokenBlocks, "read", spy)
    return starts


def test_only_the_rows_asked_for_are_read(blocks, starts_read):
    list(heldout_batches(blocks, batch_size=5, rows=np.array([0, 4])))
    assert starts_read == [block * LENGTH for block in (0, 4, 5, 9)]
    starts_read.clear()
    _take(blocks, 1, rows=np.array([1, 2]), buffer=1, num_threads=1)
    assert starts_read[:2] == [36, 54]  # of 24, 36, 54, 42
    assert len(starts_read) <= 2 * 2  # the next batch may have been read ahead


@pytest.mark.parametrize("crop", ["blocks", "random"])
def test_the_blocks_of_a_batch_can_be_named(blocks, crop):
    whole = _take(blocks, 10, crop=crop)
    found = [batch_blocks(blocks, batch_size=4, seed=3, step=step) for step in range(10)]
    sets, named = np.swapaxes(found, 0, 1)
    assert not sets.any()
    assert named.dtype == np.int64 and named.shape == (10, 4)
    # Block b begins at token b * LENGTH of the stream, moved by what the grid is in that epoch.
    offsets = ((whole[:, :, 0] - named * LENGTH) % 60).reshape(4, 10)
    assert (offsets < LENGTH).all()
    np.testing.assert_array_equal(offsets, offsets[:, :1] + np.zeros(10, int))
    assert (len(set(offsets[:, 0])) > 1) == (crop == "random")
    _, late = batch_blocks(blocks, batch_size=4, seed=3, step=10**9)
    np.testing.assert_array_equal(late, [3, 9, 8, 0])


def test_the_blocks_of_no_batch_are_refused(blocks):
    for options, message in (
        ({"step": -1}, "step must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "data seed is -1"),
    ):
        with pytest.raises(BadInput, match=message):
            batch_blocks(blocks, **{"batch_size": 4, "seed": 0, "step": 0, **options})


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
    epochs = _take(blocks, 50, crop="random").reshape(20, 10, LENGTH)
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
        ({"seed": 2**32}, r"data seed is 4294967296, it must be in \[0, 2\*\*32\)"),
        ({"seed": -1}, "data seed is -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"start_step": -1}, "step must be at least 0, got -1"),
        ({"num_threads": 0}, "num_threads must be at least 1, got 0"),
        ({"buffer": 0}, "buffer must be at least 1, got 0"),
        (
            {"rows": np.array([3, 4])},
            r"rows is \[3, 4\], it must be increasing numbers in \[0, 4\)",
        ),
        ({"rows": np.array([-1, 0])}, r"rows is \[-1, 0\]"),
        ({"rows": np.array([1, 1])}, r"rows is \[1, 1\]"),
        ({"rows": np.array([], int)}, r"rows is \[\]"),
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


@pytest.mark.parametrize("max_blocks", [None, 8])
def test_processes_read_their_own_rows_of_the_heldout_batches(blocks, max_blocks):
    whole = list(heldout_batches(blocks, batch_size=4, max_blocks=max_blocks))
    for rows in ([0, 1], [2, 3], [3]):
        own = heldout_batches(blocks, batch_size=4, max_blocks=max_blocks, rows=np.array(rows))
        np.testing.assert_array_equal(np.stack(list(own)), np.stack(whole)[:, rows])


def test_heldout_batches_check_their_arguments_at_once(blocks):
    with pytest.raises(BadInput, match="batch_size must be at least 1"):
        heldout_batches(blocks, batch_size=0)
    with pytest.raises(BadInput, match="max_blocks must be at least 1"):
        heldout_batches(blocks, batch_size=1, max_blocks=0)
    # The one small batch of 3 blocks has no row 3.
    with pytest.raises(BadInput, match=r"rows is \[2, 3\], .* in \[0, 3\)"):
        heldout_batches(blocks, batch_size=4, max_blocks=3, rows=np.array([2, 3]))
