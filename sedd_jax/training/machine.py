"""Checks of the machines of a run before it: what each found, and how bad it is.

Nothing is trained, and nothing stays written. All processes of a job make the same checks; process
0 prints them.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import sedd_jax
from sedd_jax.data.manifest import check_files
from sedd_jax.data.pipeline import arguments_of, train_batches
from sedd_jax.data.prepared import Dataset, link_prepared, open_data
from sedd_jax.data.sources import pieces
from sedd_jax.data.tokenizer import FITTED_TOKENIZERS, build_tokenizer
from sedd_jax.errors import BadInput, Halted, reason
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.checkpoint_folder import last_saved
from sedd_jax.experiment.config import Config, to_json
from sedd_jax.experiment.run import DATA_FOLDER, LOCK_FILE, check_resumes
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family, check_names
from sedd_jax.system import mirror
from sedd_jax.system.processes import (
    assert_equal_across_processes,
    barrier,
    failure_of_any_process,
)
from sedd_jax.training.step import build_programs
from sedd_jax.training.stopping import size_in_words, write_speed
from sedd_jax.training.throughput import step_memory_gib

OK, WARNING, FAULT = "ok", "warning", "FAULT"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
_CLOCKS_APART = 5.0  # seconds: more, and logs of hosts cannot be read side by side
_PROBE = 8 * 2**20  # bytes
_POSITIONS = 8  # of the data, spread over the run
_ROWS = 4  # of a batch at each of them
_NEARLY_FULL = 0.95  # of the memory: the allocator and the libraries need the rest


class Line(NamedTuple):
    """What a check found.

    Attributes:
      what: was checked.
      found: in words.
      verdict: OK, WARNING or FAULT.
    """

    what: str
    found: str
    verdict: str


class Warned(Exception):
    """What a check found is no fault, but may be one."""


def check_machines(config: Config, run: Path) -> Iterator[Line]:
    """Yields the lines of the checks, the quick ones first; see `Line`.

    Args:
      config: the settings of the run.
      run: its folder, perhaps a mirror, see `mirror.opened`.
    """
    checks = _Checks(config, run)
    for what, check in (
        ("versions", checks.versions),
        ("settings", checks.settings),
        ("clocks", checks.clocks),
        ("devices", checks.devices),
        ("mesh", checks.mesh),
        ("run folder", checks.folder),
        ("data", checks.data),
        ("memory", checks.memory),
    ):
        yield _line(what, check)


def _line(what: str, check: Callable[[], str]) -> Line:
    """Makes a check, which may fail in one process alone: all know of it then.

    So a check that may fail waits for no other process.
    """
    found, warned, failure = "", False, None
    try:
        found = check()
    except Warned as warning:
        found, warned = str(warning), True
    except (BadInput, Halted, OSError, jax.errors.JaxRuntimeError) as error:
        failure = str(error) if isinstance(error, BadInput | Halted) else _reason(error)
    if failure := failure_of_any_process(failure):
        return Line(what, failure, FAULT)
    return Line(what, found, WARNING if warned else OK)


def _reason(error):
    place = getattr(error, "filename", None)
    return f"{place}: {reason(error)}" if place else reason(error)


class _Checks:
    """The checks; later ones use what earlier ones found."""

    def __init__(self, config: Config, run: Path):
        self._config, self._run = config, run
        self._mesh: Mesh | None = None
        self._dataset: Dataset | None = None

    def versions(self) -> str:
        found = {name: version(name) for name in _PACKAGES}
        found |= {"sedd_jax": sedd_jax.__version__, "Python": platform.python_version()}
        assert_equal_across_processes(json.dumps(found), "versions of packages")
        return ", ".join(f"{name} {number}" for name, number in found.items())

    def settings(self) -> str:
        assert_equal_across_processes(to_json(self._config), "settings")
        check_names(self._config)
        return f"the same in {jax.process_count()} process(es)"

    def clocks(self) -> str:
        if jax.process_count() == 1:
            return "one process"
        barrier("clocks")
        now = time.time()
        # in two parts: float32 would know it to two minutes
        parts = np.array([now // 1000, now % 1000 * 1000], np.int32)
        every = multihost_utils.process_allgather(parts).astype(float) @ (1000, 0.001)
        apart = float(np.ptp(every))
        text = f"at most {apart:.2f} s apart, waiting for each other included"
        if apart > _CLOCKS_APART:
            raise Warned(f"{text}: set them by NTP, since logs and objects have these times")
        return text

    def devices(self) -> str:
        own = [device.device_kind for device in jax.local_devices()]
        assert_equal_across_processes(json.dumps(own), "devices")
        return f"{jax.device_count()} {own[0]}, {len(own)} in each of {jax.process_count()}"

    def mesh(self) -> str:
        mesh = meshes.build_mesh(self._config.mesh)
        meshes.check_divisions(self._config, mesh)
        self._mesh = mesh
        sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
        return sizes or "one device"

    def folder(self) -> str:
        """Whether a run may begin or go on there, and how fast this process writes there."""
        mirror.pull(self._run)
        shown = mirror.shown(self._run)
        check_resumes(self._run, self._config)
        speed = size_in_words(_probed(self._run))
        step = last_saved(self._run)
        goes_on = "a new run" if step is None else f"continues after step {step}"
        found = f"{shown}: {goes_on}, written at {speed}/s"
        if self._is_used():
            raise Warned(f"{found}; another process has it, or ended within the last minute")
        return found

    def _is_used(self):
        if mirror.address_of(self._run) is None:
            return False  # a lock file remains after a kill; the start says whether it is held
        return LOCK_FILE in mirror.entries_of(self._run)

    def data(self) -> str:
        """Whether this process can read its rows, at positions spread over the run."""
        config = self._config
        if config.data.prepared:
            with tempfile.TemporaryDirectory() as temporary:
                links = Path(temporary, DATA_FOLDER)
                link_prepared(links, config.data.prepared, config.data, config.model.length)
                hashed = self._opened(links)
        elif (self._run / DATA_FOLDER).exists():
            hashed = self._opened(self._run / DATA_FOLDER)
        else:
            found = pieces(config.data, config.data.corpus)
            size = size_in_words(sum(piece.size for piece in found))
            return f"{size} of {config.data.corpus} will be prepared at the start"
        blocks, train = self._dataset.train, config.train
        mesh = self._mesh or meshes.build_mesh(config.mesh)
        rows = meshes.rows_here(train.batch_size, mesh)
        rows = rows[np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int)]
        steps = np.unique(np.linspace(0, train.steps - 1, _POSITIONS).astype(int)).tolist()
        began = time.monotonic()
        for step in steps:
            with train_batches(
                blocks, batch_size=train.batch_size, rows=rows, seed=config.seed, start_step=step,
                crop=config.data.crop, num_threads=1, buffer=1,
            ) as batches:  # fmt: skip
                tokens = arguments_of(next(batches))[0]
            if tokens.min() < 0 or tokens.max() >= self._dataset.tokenizer.vocab_size:
                raise BadInput(
                    f"The rows of step {step} hold ids up to {tokens.max()}, which the tokenizer "
                    "does not have: prepare the data again."
                )
        seconds = time.monotonic() - began
        read = f"{len(steps) * len(rows)} rows of {len(steps)} steps read in {seconds:.1f} s"
        return f"{len(blocks):,} training blocks; {hashed}{read}"

    def _opened(self, folder):
        """Opens data, and compares this process's share of the files on disk with their hashes."""
        self._dataset = open_data(folder, self._config.model.length)
        whole = check_files(folder, slice(jax.process_index(), None, jax.process_count()))
        return f"{whole} files hold what was written; " if whole else ""

    def memory(self) -> str:
        """What the compiled step holds, and the device has."""
        config = self._config
        if self._mesh is None:
            raise Warned("not known, since the mesh cannot be made")
        if self._dataset is None and config.data.condition:
            raise Warned("not known before the data are prepared")
        vocab_size = self._vocab_size()
        conditions = self._dataset and self._dataset.conditions
        family = build_family(config, vocab_size, meshes.placement(self._mesh), conditions)
        programs = build_programs(family, config, run_keys(config.seed), self._mesh)
        began = time.monotonic()
        step = programs.train_step.lower(programs.abstract, *programs.batch).compile()
        needs, has = step_memory_gib(step) * 2**30, _memory()
        sizes = f"{size_in_words(needs)} of the {size_in_words(has)} of a device"
        found = f"a step holds {sizes}; compiled in {time.monotonic() - began:.0f} s"
        if needs > has:
            raise BadInput(f"{found}: python -m sedd_jax.plan says what helps.")
        if needs > _NEARLY_FULL * has:
            raise Warned(found)
        return found

    def _vocab_size(self):
        data = self._config.data
        if self._dataset is not None:
            return self._dataset.tokenizer.vocab_size
        if data.vocab_size:
            return data.vocab_size
        if data.tokenizer in FITTED_TOKENIZERS and not data.tokenizer_path:
            raise Warned("not known before the tokenizer is made: config.data.vocab_size is 0")
        return build_tokenizer(data).vocab_size


def _probed(run):
    """The bytes per second at which the folder is written; it is left as it was."""
    place = run
    if mirror.address_of(run) is None:
        place = next(each for each in (run, *run.absolute().parents) if each.is_dir())
        if not os.access(place, os.W_OK | os.X_OK):
            raise BadInput(f"{place} is read-only: choose another --workdir.")
    return write_speed(place, _PROBE)


def _memory():
    """The bytes of memory of a device of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [each["bytes_limit"] for each in stats if "bytes_limit" in each]
    if len(limits) == len(stats):
        return min(limits)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # devices that are the host
    return pages / len(stats)
