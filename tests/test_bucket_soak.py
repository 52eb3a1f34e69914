"""A run in a bucket that is killed again and again ends where the undisturbed one on a disk does.

python -m pytest -m slow -n 0 -s tests/test_bucket_soak.py
"""

import re
import time

import pytest

from sedd_jax.experiment.checkpoint_folder import COMMITTED, FOLDER
from sedd_jax.experiment.metrics import FILE
from sedd_jax.experiment.run import LOCK_FILE
from sedd_jax.system import bucket
from tests.test_soak import Folder, soak


class InBucket(Folder):
    """A run folder in a bucket; every fifth start waits for the lease of the killed one."""

    longest, saves, pause = 14, 1, 0.05

    def __init__(self, address):
        super().__init__(address)
        self._address = bucket.parse(address)

    def _names(self):
        return set(bucket.entries(self._address / FOLDER))

    def complete_steps(self):
        names = self._names()
        return [int(step) for name in names if (step := _step(name, COMMITTED))]

    def saving(self):
        names = self._names()
        return any(f"{name.split('/')[0]}/{COMMITTED}" not in names for name in names)

    def rows(self):
        return bucket.read(self._address / FILE)[0].decode()

    def killed(self, kills):
        time.sleep(0.3)  # a request that has left is still answered
        if kills % 5:
            bucket.delete(self._address / LOCK_FILE)


def _step(name, file):
    found = re.fullmatch(rf"(\d+)/{file}", name)
    return found and found[1]


@pytest.mark.slow
@pytest.mark.unsteady
def test_killed_at_any_moment_a_run_in_a_bucket_ends_the_same(binary, cloud, tmp_path):
    soak(binary, InBucket(f"{cloud.address}/killed"), 1200, tmp_path / "straight")
