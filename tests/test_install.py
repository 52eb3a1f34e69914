"""What pip installs: a wheel without a checkout, its commands, its image."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sedd_jax.experiment.config_files import SHIPPED
from sedd_jax.system import console

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "configs", "sedd_jax")


@pytest.fixture
def declared(monkeypatch):
    """What setup.py tells setuptools."""
    kept = {}
    setuptools = SimpleNamespace(find_packages=lambda **_: [], setup=kept.update)
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
    return kept


def test_the_configs_are_installed_with_the_package(declared):
    assert "sedd_jax.configs" in declared["packages"]
    assert ROOT / declared["package_dir"]["sedd_jax.configs"] == SHIPPED


def test_every_binary_is_a_command(declared):
    paths = [*(ROOT / "sedd_jax").glob("*.py"), *(ROOT / "sedd_jax").glob("*/__main__.py")]
    binaries = {
        path.parent.stem if path.stem == "__main__" else path.stem
        for path in paths
        if 'if __name__ == "__main__":' in path.read_text()
    }
    commands = dict(line.split(" = ") for line in declared["entry_points"]["console_scripts"])
    assert commands == {
        f"sedd-{name.replace('_', '-')}": f"sedd_jax.system.console:{name}" for name in binaries
    }
    assert all(getattr(console, name).args == (name,) for name in binaries)


def test_commands_are_told_as_the_user_types_them(monkeypatch):
    text = "Next: python -m sedd_jax.lm_eval run, or python -m\n  sedd_jax.train"
    assert console.as_typed(text) == text
    monkeypatch.setattr(console, "_is_command", True)
    assert console.as_typed(text) == "Next: sedd-lm-eval run, or sedd-train"


def copy(folder):
    """Copies what a wheel is built from: setuptools writes beside it."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


class Environment:
    """A virtual environment that has the libraries of this one, and nothing of the checkout."""

    def __init__(self, folder):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.scripts = folder / "bin"
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "tested.pth").write_text(sysconfig.get_path("purelib"))  # not its own .pth files
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        path = f"{self.scripts}:{os.environ['PATH']}"
        # --no-deps, since pip sees nothing of the libraries
        self.variables = kept | {"PATH": path, "JAX_PLATFORMS": "cpu", "PIP_NO_DEPS": "1"}

    def run(self, *command, cwd, code=0):
        done = subprocess.run(command, cwd=cwd, env=self.variables, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    build = [sys.executable, "-m", "build", "--outdir", folder / "dist", copy(folder / "source")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (source,), (wheel,) = folder.glob("dist/*.tar.gz"), folder.glob("dist/*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory, distributions):
    """An environment with the wheel."""
    environment = Environment(tmp_path_factory.mktemp("environments") / "wheel")
    environment.run("pip", "install", distributions[1], cwd="/")
    return environment


@pytest.mark.slow
def test_the_distributions_hold_every_file(distributions):
    source, wheel = distributions
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in copy(wheel.parent / "again").rglob("*") if path.is_file()]
    files = {str(path.relative_to(wheel.parent / "again")) for path in files}
    of_package = {name for name in files if name.startswith("sedd_jax/")}
    configs = {f"sedd_jax/{name}" for name in files if name.startswith("configs/")}
    assert "sedd_jax/py.typed" in of_package and len(configs) > 20
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == of_package | configs
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert files <= packed


@pytest.mark.slow
def test_the_commands_train_and_sample_in_any_folder(installed, tmp_path):
    (tmp_path / "own.py").write_text(
        "from sedd_jax.diffusion.noise import loglinear\n\n\n"
        "def schedule(config):\n    return loglinear(config.eps)\n"
    )
    flags = ["--workdir=run", "--config.noise.schedule=own:schedule", "--config.train.steps=2"]
    flags += ["--config.eval.max_blocks=64", "--config.eval.num_samples=1"]
    out = installed.run("sedd-train", "--config=smoke", *flags, cwd=tmp_path).stdout
    assert "Done: step 2" in out
    (command,) = (line.partition("Next:")[2] for line in out.splitlines() if "Next:" in line)
    words = shlex.split(command)
    assert words[:2] == ["sedd-sample", "--checkpoint=run"]
    drawn = installed.run(*words, "--steps=2", "--frames=2", cwd=tmp_path)
    assert "after 3 of 3 network evaluations" in drawn.stdout


@pytest.mark.slow
def test_a_command_starts_processes_of_its_own(installed, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("A line of text.\n" * 5000)
    flags = ["--config.data.corpus=*.txt", "--workers=2", "--output=data"]
    out = installed.run("sedd-prepare", "--config=configs/smoke.py", *flags, cwd=tmp_path).stdout
    assert "Next:     sedd-train --config=configs/smoke.py" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "flags", "code"),
    [
        ("train", ["--help"], 1),  # absl's exit code
        ("train", ["--nonsense"], 2),
        ("demo", ["--checkpoint=absent"], 2),
        ("lm_eval", ["run", "--help"], 0 if importlib.util.find_spec("lm_eval") else 2),
    ],
)
def test_a_command_is_its_module(installed, tmp_path, module, flags, code):
    command = f"sedd-{module.replace('_', '-')}"
    done = installed.run(command, *flags, cwd=tmp_path, code=code)
    other = installed.run("python", "-m", f"sedd_jax.{module}", *flags, cwd=tmp_path, code=code)
    for mine, theirs in (done.stdout, other.stdout), (done.stderr, other.stderr):
        assert mine == theirs.replace(f"python -m sedd_jax.{module}", command)
    assert command in done.stdout or (module, flags) != ("train", ["--help"])


DOCKERFILE = ROOT / "launch" / "Dockerfile"


def instructions():
    """Those of the Dockerfile: pairs of a word and what follows it."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="there is no hadolint here")
def test_the_dockerfile_is_clean():
    done = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_pinned_and_does_not_run_as_root(declared):
    texts = DOCKERFILE.read_text(), DOCKERFILE.with_name("README.md").read_text()
    extras = [
        name
        for text in texts
        for found in re.findall(r"EXTRAS=([\w,]+)", text)
        for name in found.split(",")
    ]
    assert "tpu" in extras and set(extras) <= set(declared["extras_require"])
    names = dict(instructions())  # the last of each
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+", instructions()[0][1])
    assert (names["FROM"], names["USER"]) == ("${BASE}", "1000")


@pytest.mark.slow
def test_the_steps_of_the_image_install_the_commands(tmp_path):
    """Without a container: each stage is a folder, and all of pip is one environment's."""
    environment = Environment(tmp_path / "venv")
    stages, skipped = {}, []
    for word, rest in instructions():
        if word == "FROM":
            stages[rest.rpartition(" ")[2]] = stage = tmp_path / f"stage{len(stages)}"
        elif word == "ARG" and stages:
            name, _, value = rest.partition("=")
            environment.variables[name] = value
        elif word == "WORKDIR":
            folder = stage / rest.lstrip("/")
            folder.mkdir(parents=True)
        elif word == "COPY":
            *sources, target = rest.split()
            source = stages[sources.pop(0)[7:]] if rest.startswith("--from=") else ROOT
            for name in sources:
                environment.run("cp", "-r", source / name.lstrip("/"), folder / target, cwd=ROOT)
        elif word == "RUN" and rest.startswith("pip "):
            environment.run("sh", "-c", rest, cwd=folder)
        elif word == "RUN":
            skipped.append(rest.split()[0])
    assert skipped == ["useradd"] and not list(folder.iterdir())
    start = json.loads(dict(instructions())["ENTRYPOINT"])
    said = environment.run(*start, "sample", "--nonsense=a b", cwd=tmp_path, code=2)
    assert said.stderr.startswith("error: Unknown command line flag 'nonsense'")
    assert (
        "Trains a model: `sedd-train"
        in environment.run(
            *start, *json.loads(dict(instructions())["CMD"]), cwd=tmp_path, code=1
        ).stdout
    )
