"""How long a compiled program will take: a prediction from its text, nothing is run.

TPU: the compiler wrote how many cycles it thinks every fusion takes; kernels and collectives it
left out are added here. GPU: every kernel takes as long as its FLOPs or its bytes at a share of the
chip's peak, whichever is longer, and a fixed time.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jax.sharding import Mesh

from sedd_jax.planning.hlo_cost.chips import Chip
from sedd_jax.planning.hlo_cost.collectives import Collective, awaited, collectives, is_collective
from sedd_jax.planning.hlo_cost.hlo import Instruction, Module
from sedd_jax.planning.hlo_cost.kernels import LANES, kernel_flops
from sedd_jax.planning.hlo_cost.products import product_flops
from sedd_jax.planning.hlo_cost.traffic import traffic

PRODUCTS, MEMORY = "matrix products", "memory and elementwise"
ATTENTION, OTHERS = "attention kernels", "other kernels"
STARTS, EXPOSED = "starting kernels and waiting for the host", "collectives not hidden"
# Of the peak that an attention kernel reaches, forward and backward; not measured. The compiler's
# schedules come to 0.99 (rotation and attention in one) and 0.86 (splash) on v5e, without stalls.
TPU_KERNEL_SHARE = 0.8

# From the kernels of one program on an H100: the training step of owt_small, 16 sequences, jax
# 0.11.2. For 12 others, 2 of them compiled there, predictions were 0% to 13% longer than measured.
GPU_PRODUCT_SHARE = 0.7  # of the peak, by cuBLAS and Triton
GPU_KERNEL_SHARE = 0.37  # of the peak, by cuDNN's attention, forward 0.43, backward 0.34
GPU_MEMORY_SHARE = 0.85  # of the bandwidth
GPU_START = 2e-6  # seconds that a kernel takes at least
GPU_WAIT = 36e-6  # seconds until the host has read whether a loop goes on

# what takes no time: names, views, and what starts something in the background
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "copy-start", "slice-start", "async-start",
    "send", "recv", "opt-barrier", "add-dependency",
}  # fmt: skip


class Line(NamedTuple):
    """An instruction and its time.

    Attributes:
      computation: that it is in.
      instruction: itself.
      parts: seconds by class, per run of the program.
      known: whether it is more than a guess from its bytes.
    """

    computation: str
    instruction: Instruction
    parts: dict[str, float]
    known: bool = True

    @property
    def seconds(self) -> float:
        """All its seconds, per run of the program."""
        return sum(self.parts.values())


class Prediction(NamedTuple):
    """How long a run of a program takes, on every chip at once.

    Attributes:
      seconds: in all.
      parts: by class; they sum to `seconds`.
      collectives: every one, also those that are hidden.
      assumptions: what was assumed, a sentence each.
      unknown: names of kernels of which only the bytes were counted.
    """

    seconds: float
    parts: dict[str, float]
    collectives: tuple[Collective, ...]
    assumptions: tuple[str, ...]
    unknown: tuple[str, ...]


def predict(
    module: Module, chip: Chip, mesh: Mesh, dynamic_trips: Callable[[Instruction], float]
) -> Prediction:
    """Returns how long a run of a program takes on the chips that it was compiled for.

    Args:
      module: the program.
      chip: what the mesh is made of.
      mesh: that the program was compiled for.
      dynamic_trips: trips of a loop whose count is not in the program.

    Raises:
      BadInput: the text says things in a way that is not known here.
    """
    runs = module.runs(dynamic_trips)
    lines = list(_lines(module, chip, runs))
    found = collectives(module, runs, chip, mesh)
    parts: Counter[str] = Counter()
    for line in lines:
        parts.update(line.parts)
    parts[EXPOSED] = _exposed(module, runs, found, lines)
    unknown = tuple(sorted({line.instruction.name for line in lines if not line.known}))
    assumptions = (*_ASSUMPTIONS[chip.platform], _OF_COLLECTIVES)
    return Prediction(parts.total(), dict(parts), found, assumptions, unknown)


def _exposed(module, runs, found, lines):
    """The seconds that a program waits for what is sent.

    Line by line: what was started is sent while others run, first come first served; the line that
    wants it waits for the rest.
    """
    seconds: Counter[tuple[str, str]] = Counter()
    for line in lines:
        seconds[line.computation, line.instruction.name] += line.seconds

    def taken(computation, instruction):
        return seconds[computation, instruction.name] + sum(
            taken(name, inner)
            for name in instruction.called
            if name in runs  # not the inside of a fusion
            for inner in module.computations[name].values()
        )

    waited = sum(each.seconds for each in found if not each.hidden)
    for computation in {each.computation for each in found if each.hidden}:
        sending: Counter[str] = Counter()  # a line may start several
        for each in found:
            if each.computation == computation and each.hidden:
                sending[each.name] += each.seconds
        ends = awaited(module, computation)
        wires: dict[str, float] = {}
        for name, instruction in module.computations[computation].items():
            if name in sending:
                wires[name] = sending[name]
            elif ends.get(name) in wires:
                waited += _sent(wires, ends[name])
            else:
                _pass(wires, taken(computation, instruction))
    return waited


def _sent(wires, last):
    """Takes off the wires what is before the last one, and it, and returns how long that takes."""
    names = list(wires)
    return sum(wires.pop(name) for name in names[: names.index(last) + 1])


def _pass(wires, seconds):
    """Sends for some time."""
    for name, left in wires.items():
        wires[name] = max(0.0, left - seconds)
        seconds = max(0.0, seconds - left)


def _lines(module: Module, chip: Chip, runs: dict[str, float]) -> Iterator[Line]:
    """Yields the instructions that take time, without the collectives."""
    parts_of = {"tpu": _on_tpu, "gpu": _on_gpu}[chip.platform]
    for name, calls in runs.items():
        for instruction in module.computations[name].values():
            if instruction.opcode == "while" and chip.platform == "gpu":
                yield _waiting(module, name, instruction, runs)
            free = instruction.opcode in _FREE or instruction.opcode.endswith(("-update", "-done"))
            if free or is_collective(instruction, module):
                continue
            parts, known = parts_of(module, name, instruction, chip)
            times = {kind: calls * seconds for kind, seconds in parts.items()}
            yield Line(name, instruction, times, known)


def _on_tpu(module, computation, instruction, chip):
    cycles = instruction.attribute(r'"estimated_cycles":"(\d+)"')
    if cycles:
        multiplies = product_flops(module, computation, instruction) > 0
        return {PRODUCTS if multiplies else MEMORY: int(cycles) / chip.clock}, True
    if instruction.opcode == "custom-call":
        if "tpu_custom_call" not in instruction.attributes:
            return {}, True  # the compiler's own: room for a result, parts side by side
        return _kernel(module, computation, instruction, chip, TPU_KERNEL_SHARE, 1.0)
    return {MEMORY: traffic(module, computation, instruction) / chip.bandwidth}, True


def _on_gpu(module, computation, instruction, chip):
    start = {STARTS: GPU_START}
    flops = product_flops(module, computation, instruction)
    if instruction.opcode == "custom-call" and not flops:
        share = GPU_KERNEL_SHARE, GPU_MEMORY_SHARE
        parts, known = _kernel(module, computation, instruction, chip, *share)
        return parts | start, known
    moving = traffic(module, computation, instruction) / (chip.bandwidth * GPU_MEMORY_SHARE)
    computing = flops / (chip.peak * GPU_PRODUCT_SHARE)
    return {PRODUCTS if computing > 0 else MEMORY: max(computing, moving)} | start, True


def _waiting(module, computation, loop, runs):
    """A GPU stands still while the host reads whether a loop goes on, if that is not known."""
    turns = runs[loop.called[0]] if module.trips(loop) is None else 0.0
    return Line(computation, loop, {STARTS: turns * GPU_WAIT})


def _kernel(module, computation, instruction, chip, of_peak, of_bandwidth):
    lines = module.computations[computation]
    flops = kernel_flops(instruction, [lines[name] for name in instruction.operands])
    moving = traffic(module, computation, instruction) / (chip.bandwidth * of_bandwidth)
    computing = (flops or 0.0) / (chip.peak * of_peak)
    known = flops is not None
    return {ATTENTION if known else OTHERS: max(computing, moving)}, known


_OF_COLLECTIVES = (
    "Collectives run as rings at the whole bandwidth of the wires, one after the other; what a "
    "program starts early is hidden by what it does until it needs it."
)
_ASSUMPTIONS = {
    "tpu": (
        "The compiler's cycles hold at the clock at which the chip reaches its peak; copies in the "
        "background cost nothing.",
        f"Attention kernels reach {TPU_KERNEL_SHARE:.0%} of the peak, with head dimensions filled "
        f"up to {LANES}.",
        "A side of a slice is a closed ring if it is a multiple of 16 chips (v5e, v6e) or of 4 "
        "(v4, v5p).",
    ),
    "gpu": (
        f"Matrix products reach {GPU_PRODUCT_SHARE:.0%} of the peak, attention kernels "
        f"{GPU_KERNEL_SHARE:.0%}, everything else {GPU_MEMORY_SHARE:.0%} of the bandwidth; "
        f"a kernel takes {GPU_START * 1e6:.0f} us more, and a turn of a loop whose end only the "
        f"program knows {GPU_WAIT * 1e6:.0f} us.",
        "These figures are from one training step on an H100: for 12 others the prediction was 0% "
        "to 13% too long, for samplers 17% to 22%. Nothing was measured on several GPUs, nor on "
        "other kinds.",
    ),
}
