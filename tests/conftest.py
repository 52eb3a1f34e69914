"""Every test runs on 8 CPU devices; implicit rank promotion is an error."""

import atexit
import dataclasses
import fcntl
import gc
import importlib.metadata
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: a TPU or GPU would change the numbers
# the binaries and the workers of pytest-xdist compile the same programs again and again, small ones
# above all: to keep one costs a tenth of what is saved where it is found
CACHE = "JAX_COMPILATION_CACHE_DIR"
if CACHE not in os.environ:
    os.environ[CACHE] = TEMPORARY_CACHE = tempfile.mkdtemp()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# compiling takes most of the time: without optimisations a quarter of it, and the binaries follow
quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
# half of the rest are LLVM programs made by way of MLIR; a fifth is to split what the other worker
# leaves no second core for. XLA ends at a flag that it does not know
if quick and importlib.metadata.version("jaxlib").startswith("0.10."):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)

# a machine of a cloud may be preempted, but no test that watches for it
os.environ |= {"NO_GCE_CHECK": "true", "AWS_EC2_METADATA_DISABLED": "true"}

import jax  # noqa: E402 - after its environment
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from tests.browser import browser  # noqa: E402, F401 - a fixture
from tests.disturbed import straight  # noqa: E402, F401 - a fixture
from tests.memory_bucket import memory_bucket  # noqa: E402, F401 - a fixture
from tests.one_context import share_contexts  # noqa: E402
from tests.servers import cloud, gcs, gcs_server, s3, s3_server  # noqa: E402, F401 - fixtures

if "TEMPORARY_CACHE" in globals():
    atexit.register(shutil.rmtree, TEMPORARY_CACHE, ignore_errors=True)
share_contexts()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    """Adds --deprecations=error, for the newest versions of the libraries."""
    parser.addoption("--deprecations", choices=("ignore", "error"), default="ignore")


def pytest_configure(config):
    """Makes errors of deprecations that are warned of in our modules, not in those of others."""
    if config.getoption("--deprecations") == "error":
        ours = r"error::DeprecationWarning:(sedd_jax|configs|tests|benchmarks)\b"
        config.addinivalue_line("filterwarnings", ours)


FIRST = "test_measures.py"  # makes `smoke_run`, while the other worker has tests that need it not
LONGEST = ("test_train.py",)  # started early, not when all else is done


def pytest_collection_modifyitems(items):
    """Run the end-to-end tests last, the longest of them first: the others name a fault better."""
    end_to_end = Path(__file__).parent
    items.sort(
        key=lambda item: (
            item.path.name != FIRST,
            item.path.parent == end_to_end,
            item.path.name not in LONGEST,
        )
    )


ALONE = ("diffusion", "model", "training", "verification")  # one program in 15 is found again


def pytest_runtest_setup(item):
    """Keeps programs for the binaries and other workers, not those of tests that share none."""
    here = item.path.relative_to(Path(__file__).parent).parts[0]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9 if here in ALONE else 0)


def pytest_collection_finish():
    """Looks for garbage seldom: 15 % of the time of a test that traces went into it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def smoke_config():
    """The smoke config, shortened to 20 steps."""
    from configs import smoke
    from sedd_jax.experiment.config import parse

    config = parse(smoke.get_config())
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=20, log_every=5),
        eval=dataclasses.replace(config.eval, every=10, sample_every=20, num_samples=1),
        checkpoint=dataclasses.replace(config.checkpoint, every=10),
    )


@pytest.fixture(scope="session")
def tiny(smoke_config):
    """A model of one block over bytes; its random weights make all tokens depend on the others."""
    sizes = {"hidden_size": 16, "num_blocks": 1, "dropout": 0.0, "attention": "xla"}
    from sedd_jax.data.tokenizer import Bytes
    from sedd_jax.inference.build import build_family
    from sedd_jax.inference.model import TrainedModel

    config = dataclasses.replace(
        smoke_config, model=dataclasses.replace(smoke_config.model, **sizes)
    )
    components = build_family(config, Bytes.vocab_size)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(components.model.init, jax.random.key(0)),
    )
    return TrainedModel(components, params, config, Bytes(), None)


@pytest.fixture(scope="session")
def smoke_run(smoke_config, tmp_path_factory):
    """The folder of a finished run of `smoke_config`; read only, one for all workers."""
    from sedd_jax.train import train

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run, finished = folder / "smoke", folder / "smoke.finished"
    with (folder / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            train(smoke_config, run)
            finished.touch()
    return run


PATIENCE = 300  # seconds that a binary may take


class Binary:
    """The binaries as a user runs them: from the root, in a process of their own, on one device."""

    root = Path(__file__).parents[1]

    def __init__(self, folder):
        """Keeps what calls print in `folder`."""
        self._folder = folder
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(["sedd_jax.training.evaluator", "ml_collections"])

    @property
    def environment(self):
        """The environment of this process as it is now: a bucket's fixture adds to it."""
        return os.environ | {"JAX_PLATFORMS": "cpu"}

    def start(self, module, *flags, devices=1, **options):
        """Starts `python -m sedd_jax.MODULE FLAGS` on CPU devices and returns the process."""
        command = [sys.executable, "-m", f"sedd_jax.{module}", *flags]
        environment = self.environment | {"JAX_NUM_CPU_DEVICES": str(devices)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=pipe, stderr=pipe, text=True, **options
        )

    def run(self, module, *flags, devices=1):
        """Returns what a run that must succeed printed; its stderr is in `err`."""
        code, out, self.err = self._finished(module, flags, devices)
        assert code == 0, self.err
        return out

    def refuse(self, module, *flags):
        """Returns the one line that a call with bad input must print."""
        code, _, err = self._finished(module, flags, devices=1)
        assert code == 2, err
        (line,) = err.strip().splitlines()
        assert line.startswith("error: ")
        return line

    def _finished(self, module, flags, devices):
        """The exit code of a call and what it printed; see `as_binary.py`."""
        printed = Path(tempfile.mkdtemp(dir=self._folder))
        out, err = printed / "out", printed / "err"
        request = {"module": module, "flags": flags, "devices": devices, "folder": self.root}
        request["environment"] = dict(self.environment)
        process = self._forks.Process(
            target=runpy.run_path,
            args=(str(Path(__file__).with_name("as_binary.py")),),
            kwargs={"init_globals": {"request": request | {"out": out, "err": err}}},
        )
        process.start()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode, out.read_text(), err.read_text()


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """Runs the binaries."""
    return Binary(tmp_path_factory.mktemp("printed"))
