"""The estimate of a program on a topology: memory, time and price, as tables and as JSON."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sedd_jax.display.table import Table, duration
from sedd_jax.errors import BadInput
from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.collectives import totals
from sedd_jax.planning.hlo_cost.cost import Prediction, predict
from sedd_jax.planning.hlo_cost.memory import (
    Memory,
    largest_carried,
    memory_of,
    memory_of_refused,
)
from sedd_jax.planning.lower import Program
from sedd_jax.planning.topology import Topology

_GIB = 2**30
_ASSUMPTIONS = (
    "The vocabulary head computes as many positions as count on average; data, checkpoints and the "
    "host keep no chip waiting.",
    "Peak, bandwidths and price of a chip are those that makers and hosts publish.",
)


class Estimate(NamedTuple):
    """What a program needs and costs on a topology; nothing was run.

    Attributes:
      program: that was compiled.
      topology: that it was compiled for.
      price: US dollars per hour of a chip; NaN if it is not known.
      memory: of a chip.
      prediction: the time of a run of the program; None if the compiler refused it.
      hlo_text: of the compiled program, empty if the compiler refused it.
    """

    program: Program
    topology: Topology
    price: float
    memory: Memory
    prediction: Prediction | None
    hlo_text: str

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the time assumes, a sentence each."""
        chip = self.topology.chip
        shared = (
            f"What is called a chip is one of the {chip.devices} devices of a {chip.device_kind}, "
            "with its share of peak, memory, links and price.",
        )
        of_program = self.program.assumptions + self.prediction.assumptions
        return _ASSUMPTIONS + shared * (chip.devices > 1) + of_program

    @property
    def tokens_per_second(self) -> float:
        """Over all chips."""
        return self.program.tokens / self.prediction.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization in [0, 1] (Chowdhery et al. 2022, arXiv 2204.02311)."""
        peak = self.topology.num_devices * self.topology.chip.flops_per_second
        return self.program.model_flops / (self.prediction.seconds * peak)

    @property
    def dollars_per_billion_tokens(self) -> float:
        """Price of all chips."""
        return 1e9 / self.tokens_per_second * self._dollars_per_second

    @property
    def run_seconds(self) -> float:
        """Time of all steps of a training run."""
        return self.program.steps * self.prediction.seconds

    @property
    def run_dollars(self) -> float:
        """Price of all chips for all steps of a training run."""
        return self.run_seconds * self._dollars_per_second

    @property
    def _dollars_per_second(self):
        return self.topology.num_devices * self.price / 3600


def estimate(program: Program, topology: Topology, price: float | None = None) -> Estimate:
    """Compiles a program and returns its estimate.

    Args:
      program: for the devices of the topology.
      topology: the machine.
      price: US dollars per hour of a chip; that of `topology.chip` by default.

    Raises:
      BadInput: the compiled program is in an unknown form.
    """
    chip = topology.chip
    price = chip.dollars_per_hour if price is None else price
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = memory_of_refused(error, sum(program.argument_bytes.values()), chip)
        if not memory.largest_temporaries_bytes:  # the error does not always name them
            carried = largest_carried(program.lowered.as_text(), program.mesh.size)
            memory = memory._replace(largest_temporaries_bytes=carried)
        return Estimate(program, topology, price, memory, None, "")
    text = compiled.as_text()
    try:
        module = hlo.parse(text)
        prediction = predict(module, chip, program.mesh, program.dynamic_trips)
    except hlo.HloError as error:
        raise BadInput(str(error)) from error
    memory = memory_of(compiled, module, chip)
    return Estimate(program, topology, price, memory, prediction, text)


def as_tables(found: Estimate) -> list[Table]:
    """Returns an estimate as tables that fill one screen."""
    columns = ("predicted", "", "")
    rows = [("parameters", f"{found.program.parameters:,}", ""), *_memory_rows(found)]
    if found.prediction is None:
        return [Table("", columns, rows)]
    communication = [
        (
            each.kind,
            " x ".join(each.axes),
            f"{each.calls:,.4g}",
            f"{each.bytes_sent / 1e6:,.1f} MB",
            _ms(each.seconds),
            "overlapped" if each.overlapped else "exposed",
        )
        for each in totals(found.prediction.collectives)
    ]
    headings = ("collective", "axes", "calls", "sent by a chip", "time", "")
    return [
        Table("", columns, rows + list(_time_rows(found))),
        Table("", headings, communication),
    ]


def _memory_rows(found):
    memory = found.memory
    needed = f"{'at least ' if memory.refused else ''}{gib(memory.needed_bytes)}"
    verdict = f"fits, {1 - memory.needed_bytes / memory.hbm_bytes:.0%} free"
    if not memory.fits:
        verdict = "does NOT fit" + (": the compiler refused" if memory.refused else "")
    yield "HBM of a chip", f"{needed} of {gib(memory.hbm_bytes)} GiB", verdict
    notes = {
        "arguments": _listed(found.program.argument_bytes),
        "temporaries": _listed(memory.largest_temporaries_bytes),
    }
    for name, size in memory.bytes_by_part.items():
        yield f"- {name}", f"{gib(size)} GiB", notes.get(name, "")


def _time_rows(found):
    program, prediction = found.program, found.prediction
    devices, peak = found.topology.num_devices, found.topology.chip.flops_per_second
    yield "time", _ms(prediction.seconds), ""
    for name, seconds in sorted(prediction.seconds_by_part.items(), key=lambda part: -part[1]):
        yield f"- {name}", _ms(seconds), f"{seconds / prediction.seconds:.0%}"
    yield (
        "model FLOPs",
        f"{program.model_flops / 1e12:,.4g} TFLOP",
        f"MFU {found.mfu:.1%} of {peak / 1e12:,.0f} TFLOP/s a chip",
    )
    tokens = found.tokens_per_second
    yield "tokens a second", f"{tokens:,.0f}", f"{tokens / devices:,.0f} a chip"
    priced = not math.isnan(found.price)
    at, dollars = "no price of a chip is known: --price gives one", None
    if priced:
        at, dollars = f"at ${found.price:.2f} an hour of a chip", found.dollars_per_billion_tokens
    yield "a billion tokens", f"${dollars:,.2f}" if priced else "-", at
    if program.steps:
        dollars = f"${found.run_dollars:,.2f}, without evaluations" if priced else ""
        yield f"the run, {program.steps:,} steps", duration(found.run_seconds), dollars


def as_json(found: Estimate, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an estimate for `table.to_json`; bytes are those of a chip.

    Args:
      found: the estimate.
      facts: what was planned, which comes first.
    """
    program, memory, topology = found.program, found.memory, found.topology
    values = {
        "prediction": "nothing was run",
        **facts,
        "topology": topology.name,
        "devices": topology.num_devices,
        "device_kind": topology.chip.device_kind,
        "mesh": dict(program.mesh.shape),
        "parameters": program.parameters,
        "tokens": program.tokens,
        "model_flops": program.model_flops,
        "memory": {
            "fits": memory.fits,
            "needed_bytes": memory.needed_bytes,
            "argument_bytes": program.argument_bytes,
            **memory._asdict(),
        },
        "chip": topology.chip._replace(dollars_per_hour=found.price)._asdict(),
    }
    prediction = found.prediction
    if prediction is None:
        return values
    if program.steps:
        values["run_steps"] = program.steps
        values |= {key: getattr(found, key) for key in ("run_seconds", "run_dollars")}
    results = ("mfu", "tokens_per_second", "dollars_per_billion_tokens", "assumptions")
    shown = ("kind", "axes", "calls", "bytes_sent", "seconds", "overlapped")
    return values | {
        "seconds": prediction.seconds,
        "seconds_by_part": prediction.seconds_by_part,
        **{key: getattr(found, key) for key in results},
        "collectives": [
            {key: getattr(each, key) for key in shown} for each in totals(prediction.collectives)
        ],
        "unknown": prediction.unknown,
    }


def in_words(mesh: Mesh) -> str:
    """Returns the axes of a mesh that are longer than 1, as in "data=8 fsdp=8"."""
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    return sizes or "one chip"


def gib(nbytes: float) -> str:
    """Returns bytes in GiB, without the unit."""
    return f"{nbytes / _GIB:,.2f}"


def _listed(sizes):
    """Sizes by name, without those that round to 0."""
    return ", ".join(f"{name} {gib(size)}" for name, size in sizes.items() if size >= _GIB / 200)


def _ms(seconds):
    return f"{seconds * 1e3:,.2f} ms"
