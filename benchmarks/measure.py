"""Timing and reports of the benchmarks: programs alternate in one process."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

import sedd_jax
from sedd_jax.system.files import check_output_path


def alternate(programs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds that each program reports, over `rounds` rounds of all of them.

    A first round is not counted. Programs alternate, so that other load on the machine affects all
    of them alike.
    """
    seconds = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, program in programs.items():
            taken = program()
            if turn:
                seconds[name].append(taken)
    return seconds


def timed(f: Callable, *args) -> Callable[[], float]:
    """Returns a program for `alternate`: calls f with fixed arguments and waits for the result."""

    def program():
        began = time.perf_counter()
        jax.block_until_ready(f(*args))
        return time.perf_counter() - began

    return program


def temporaries(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes of a program's temporaries, without arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def product_rate() -> float:
    """Returns the best FLOP/s of one matrix product of a size that transformers have."""
    x, y = jnp.ones((4096, 256)), jnp.ones((256, 1024))
    product = jax.jit(jnp.dot).lower(x, y).compile()
    taken = alternate({"product": timed(product, x, y)}, 200)["product"]
    return 2 * 4096 * 256 * 1024 / min(taken)


def cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine() -> dict[str, str | int]:
    """Returns the facts of the machine and the software that a figure depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": jax.devices()[0].device_kind,
        "processor": models[0] if models else platform.processor(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "sedd_jax": sedd_jax.__version__,
    }


def report(rows: list[dict], output: str | None) -> None:
    """Prints rows as a table, and writes them with `machine()` as JSON to a new file.

    Raises:
      FileExistsError: the file exists; see `check_output`.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_text(row.get(name, "")) for name in columns) + " |")
    print("on", ", ".join(f"{name} {value}" for name, value in machine().items()))
    if output:
        with Path(output).open("x") as file:
            file.write(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def check_output(output: str | None) -> None:
    """Raises BadInput if the results cannot be written; call it before measuring."""
    if output:
        check_output_path(Path(output))


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
