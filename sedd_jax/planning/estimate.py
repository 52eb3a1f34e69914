"""What is foreseen of a program on a machine: memory, time and money, and how it is shown."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sedd_jax.display.table import Table
from sedd_jax.planning.hlo_cost import hlo
from sedd_jax.planning.hlo_cost.collectives import totals
from sedd_jax.planning.hlo_cost.cost import Prediction, predict
from sedd_jax.planning.hlo_cost.memory import Memory, largest_carried, memory_of, refusal
from sedd_jax.planning.hlo_cost.target import Target
from sedd_jax.planning.lower import Program

_GIB = 2**30
_ASSUMED = (
    "The vocabulary head passes over as many positions as count on average; data, checkpoints and "
    "the host keep no chip waiting.",
    "Peak, bandwidths and price of a chip are those that makers and hosts tell.",
)


class Outlook(NamedTuple):
    """A prediction: nothing was run.

    Attributes:
      program: what was compiled.
      target: for which machine.
      price: US dollars an hour of a chip.
      memory: of a chip.
      prediction: of the time of a run; None where the compiler refused.
      text: what the compiler made of the program, empty where it refused.
    """

    program: Program
    target: Target
    price: float
    memory: Memory
    prediction: Prediction | None
    text: str

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was assumed of the time, a sentence each."""
        return _ASSUMED + self.prediction.assumptions

    @property
    def tokens_per_second(self) -> float:
        """Over all chips."""
        return self.program.tokens / self.prediction.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: the share of the chips' peak that they come to, in [0, 1]."""
        peak = self.target.devices_count * self.target.chip.peak
        return self.program.model_flops / (self.prediction.seconds * peak)

    @property
    def dollars_per_billion_tokens(self) -> float:
        """What the chips cost meanwhile, in US dollars."""
        return 1e9 / self.tokens_per_second * self._dollars_per_second

    @property
    def run_seconds(self) -> float:
        """Of all steps of a training run."""
        return self.program.steps * self.prediction.seconds

    @property
    def run_dollars(self) -> float:
        """What the chips cost meanwhile, in US dollars."""
        return self.run_seconds * self._dollars_per_second

    @property
    def _dollars_per_second(self):
        return self.target.devices_count * self.price / 3600


def foresee(program: Program, target: Target, price: float | None = None) -> Outlook:
    """Compiles a program and returns what is foreseen of it.

    Args:
      program: for the devices of the target.
      target: the machine.
      price: US dollars an hour of a chip; what is assumed of it by default.
    """
    price = target.chip.price if price is None else price
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = refusal(error, sum(program.kept.values()), target.chip)
        if not memory.largest:  # the compiler names them only where it has tried to place them
            carried = largest_carried(program.lowered.as_text(), program.mesh.size)
            memory = memory._replace(largest=carried)
        return Outlook(program, target, price, memory, None, "")
    text = compiled.as_text()
    module = hlo.read(text)
    return Outlook(
        program,
        target,
        price,
        memory_of(compiled, module, target.chip),
        predict(module, target.chip, program.mesh, program.dynamic_trips),
        text,
    )


def tables(outlook: Outlook) -> list[Table]:
    """Returns one screen of what is foreseen."""
    columns = ("predicted", "", "")
    rows = [("parameters", f"{outlook.program.parameters:,}", ""), *_memory(outlook)]
    if outlook.prediction is None:
        return [Table("", columns, rows)]
    rows += [*_time(outlook)]
    return [Table("", columns, rows), _collectives(outlook.prediction)]


def _memory(outlook):
    memory = outlook.memory
    if memory.fits:
        verdict = f"fits, {1 - memory.needed / memory.capacity:.0%} free"
    else:
        verdict = "does NOT fit" + (": the compiler refused" if memory.refused else "")
    needed = f"{'at least ' if memory.refused else ''}{gib(memory.needed)}"
    yield "HBM of a chip", f"{needed} of {gib(memory.capacity)} GiB", verdict
    notes = {"arguments": _listed(outlook.program.kept), "temporaries": _listed(memory.largest)}
    for name, size in memory.parts.items():
        yield f"- {name}", f"{gib(size)} GiB", notes.get(name, "")


def _time(outlook):
    program, prediction = outlook.program, outlook.prediction
    devices, peak = outlook.target.devices_count, outlook.target.chip.peak
    yield "time", f"{_ms(prediction.seconds)} ms", ""
    for name, seconds in sorted(prediction.parts.items(), key=lambda part: -part[1]):
        yield f"- {name}", f"{_ms(seconds)} ms", f"{seconds / prediction.seconds:.0%}"
    yield (
        "model FLOPs",
        f"{program.model_flops / 1e12:,.4g} TFLOP",
        f"MFU {outlook.mfu:.1%} of {peak / 1e12:,.0f} TFLOP/s a chip",
    )
    yield (
        "tokens a second",
        f"{outlook.tokens_per_second:,.0f}",
        f"{outlook.tokens_per_second / devices:,.0f} a chip",
    )
    yield (
        "a billion tokens",
        f"${outlook.dollars_per_billion_tokens:,.2f}",
        f"at ${outlook.price:.2f} an hour of a chip",
    )
    if program.steps:
        yield (
            f"the run, {program.steps:,} steps",
            _duration(outlook.run_seconds),
            f"${outlook.run_dollars:,.2f}, without evaluations",
        )


def _collectives(prediction):
    columns = ("collective", "axes", "calls", "sent by a chip", "time", "")
    rows = [
        (
            each.kind,
            " x ".join(each.axes),
            f"{each.calls:,.4g}",
            f"{each.nbytes / 1e6:,.1f} MB",
            f"{_ms(each.seconds)} ms",
            "meanwhile" if each.hidden else "waited for",
        )
        for each in totals(prediction.collectives)
    ]
    return Table("", columns, rows)


def as_json(outlook: Outlook, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all that is foreseen and the facts of what was planned, for `table.to_json`.

    Of the program, unless a name says otherwise; bytes are those of a chip.
    """
    program, memory, target = outlook.program, outlook.memory, outlook.target
    found = {
        "prediction": "nothing was run",
        **facts,
        "topology": target.text,
        "devices": target.devices_count,
        "device_kind": target.chip.device_kind,
        "mesh": dict(program.mesh.shape),
        "parameters": program.parameters,
        "tokens": program.tokens,
        "model_flops": program.model_flops,
        "memory": {
            "fits": memory.fits,
            "refused": memory.refused,
            "hbm_bytes": memory.capacity,
            "needed_bytes": memory.needed,
            "bytes_by_part": memory.parts,
            "argument_bytes": program.kept,
            "largest_temporaries_bytes": memory.largest,
        },
        "chip": {
            "name": target.chip.name,
            "flops_per_second": target.chip.peak,
            "hbm_bytes_per_second": target.chip.bandwidth,
            "link_bytes_per_second": target.chip.link,
            "network_bytes_per_second": target.chip.network,
            "dollars_per_hour": outlook.price,
        },
    }
    if outlook.prediction is None:
        return found
    prediction = outlook.prediction
    if program.steps:
        found |= {
            "run_steps": program.steps,
            "run_seconds": outlook.run_seconds,
            "run_dollars": outlook.run_dollars,
        }
    return found | {
        "seconds": prediction.seconds,
        "seconds_by_part": prediction.parts,
        "mfu": outlook.mfu,
        "tokens_per_second": outlook.tokens_per_second,
        "dollars_per_billion_tokens": outlook.dollars_per_billion_tokens,
        "collectives": [
            {
                "kind": each.kind,
                "axes": each.axes,
                "calls": each.calls,
                "bytes_sent": each.nbytes,
                "seconds": each.seconds,
                "hidden": each.hidden,
            }
            for each in totals(prediction.collectives)
        ],
        "assumptions": outlook.assumptions,
        "unknown": prediction.unknown,
    }


def in_words(mesh: Mesh) -> str:
    """Returns the axes of a mesh that split something, as in "data=8 fsdp=8"."""
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    return sizes or "one chip"


def gib(nbytes: float) -> str:
    """Returns bytes in GiB, without the unit."""
    return f"{nbytes / _GIB:,.2f}"


def _listed(sizes):
    """The sizes that show, by name."""
    return ", ".join(f"{name} {gib(size)}" for name, size in sizes.items() if size >= _GIB / 200)


def _duration(seconds):
    """In the largest unit of which there are two."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _ms(seconds):
    return f"{seconds * 1e3:,.2f}"
