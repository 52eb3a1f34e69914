"""How long a compiled program takes: a prediction from its text, without running it.

TPU: the compiler writes the cycles that it expects of every fusion; custom calls and collectives,
which it leaves out, are added here. GPU: every kernel is a roofline (Williams et al. 2009), its
FLOPs or its bytes at a share of the chip's peak, whichever takes longer, and a launch.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jax.sharding import Mesh

from sedd_jax.planning.hlo_cost import Chip
from sedd_jax.planning.hlo_cost.collectives import (
    Collective,
    collectives,
    is_collective,
    starts_by_end,
)
from sedd_jax.planning.hlo_cost.hlo import Instruction, Module
from sedd_jax.planning.hlo_cost.instructions import (
    LANES,
    bytes_accessed,
    custom_call_flops,
    matmul_flops,
)

MATMULS, MEMORY = "matrix products", "memory and elementwise"
ATTENTION, OTHERS = "attention kernels", "other kernels"
LAUNCHES, EXPOSED = "kernel launches and host waits", "exposed communication"
# Of the peak that an attention kernel reaches, forward and backward; not measured. The compiler's
# schedules come to 0.99 (rotation and attention in one) and 0.86 (splash) on v5e, without stalls.
TPU_ATTENTION_SHARE = 0.8

# From the kernels of one program on an H100: the training step of owt_small, 16 sequences, jax
# 0.11.2. For 12 others, 2 of them compiled there, predictions were 0% to 13% longer than measured.
GPU_MATMUL_SHARE = 0.7  # of the peak, by cuBLAS and Triton
GPU_ATTENTION_SHARE = 0.37  # of the peak, by cuDNN's attention, forward 0.43, backward 0.34
GPU_MEMORY_SHARE = 0.85  # of the bandwidth
GPU_LAUNCH = 2e-6  # seconds that a kernel takes at least
GPU_HOST_WAIT = 36e-6  # seconds until the host has read whether a loop continues

# take no time: names, views, and starts of asynchronous operations
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "copy-start", "slice-start", "async-start",
    "call-start",
    "send", "recv", "opt-barrier", "add-dependency",
}  # fmt: skip


class Prediction(NamedTuple):
    """How long a run of a program takes, on all chips at once.

    Attributes:
      seconds: in all.
      seconds_by_part: by class; they sum to `seconds`.
      collectives: all, overlapped or exposed.
      assumptions: a sentence each.
      unknown: names of custom calls whose bytes alone count.
    """

    seconds: float
    seconds_by_part: dict[str, float]
    collectives: tuple[Collective, ...]
    assumptions: tuple[str, ...]
    unknown: tuple[str, ...]


def predict(
    module: Module, chip: Chip, mesh: Mesh, dynamic_trips: Callable[[Instruction], float]
) -> Prediction:
    """Returns how long a run of a program takes on the chips that it was compiled for.

    Args:
      module: the program.
      chip: the chips of the mesh.
      mesh: that the program was compiled for.
      dynamic_trips: returns the trips of a loop whose count is not in the program.

    Raises:
      HloError: the text is in an unknown form.
    """
    counts = module.execution_counts(dynamic_trips)
    parts: Counter[str] = Counter()
    own: Counter[tuple[str, str]] = Counter()  # seconds by computation and instruction
    unknown = set()
    for computation, name, times, known in _timed(module, chip, counts):
        parts.update(times)
        own[computation, name] += sum(times.values())
        if not known:
            unknown.add(name)
    found = collectives(module, counts, chip, mesh)
    parts[EXPOSED] = _exposed(module, counts, found, own)
    return Prediction(parts.total(), dict(parts), found, _assumptions(chip), tuple(sorted(unknown)))


def _exposed(module, counts, found, own):
    """The seconds that a program waits for communication.

    Asynchronous collectives are sent in the order of their starts, beside the instructions that
    follow; the instruction that needs the result waits for what is left.
    """

    def seconds(computation, instruction):
        return own[computation, instruction.name] + sum(
            seconds(name, inner)
            for name in instruction.called
            if name in counts  # not the inside of a fusion
            for inner in module.computations[name].values()
        )

    exposed = sum(each.seconds for each in found if not each.overlapped)
    for computation in {each.computation for each in found if each.overlapped}:
        started: Counter[str] = Counter()  # one instruction may start several
        for each in found:
            if each.computation == computation and each.overlapped:
                started[each.name] += each.seconds
        ends = starts_by_end(module, computation)
        queue: dict[str, float] = {}  # seconds left to send
        for name, instruction in module.computations[computation].items():
            if name in started:
                queue[name] = started[name]
            elif ends.get(name) in queue:
                names = list(queue)
                exposed += sum(queue.pop(each) for each in names[: names.index(ends[name]) + 1])
            else:
                _send(queue, seconds(computation, instruction))
    return exposed


def _send(queue, seconds):
    """Sends for some time, first come first served."""
    for name, left in queue.items():
        queue[name] = max(0.0, left - seconds)
        seconds = max(0.0, seconds - left)


def _timed(
    module: Module, chip: Chip, counts: dict[str, float]
) -> Iterator[tuple[str, str, dict[str, float], bool]]:
    """Yields the instructions that take time, without the collectives.

    Each: its computation, its name, its seconds by class per run of the program, and whether they
    are more than a guess from its bytes.
    """
    seconds_of = {"tpu": _on_tpu, "gpu": _on_gpu}[chip.platform]
    for name, calls in counts.items():
        for instruction in module.computations[name].values():
            opcode = instruction.opcode
            if opcode == "while" and chip.platform == "gpu" and module.trips(instruction) is None:
                waits = counts[instruction.called[0]]  # the GPU idles until the host has read it
                yield name, instruction.name, {LAUNCHES: waits * GPU_HOST_WAIT}, True
            free = opcode in _FREE or opcode.endswith(("-update", "-done"))
            if not free and not is_collective(instruction, module):
                parts, known = seconds_of(module, name, instruction, chip)
                times = {part: calls * seconds for part, seconds in parts.items()}
                yield name, instruction.name, times, known


def _on_tpu(module, computation, instruction, chip):
    cycles = instruction.attribute(r'"estimated_cycles":"(\d+)"')
    if cycles:
        multiplies = matmul_flops(module, computation, instruction) > 0
        return {MATMULS if multiplies else MEMORY: int(cycles) / chip.clock}, True
    if instruction.opcode != "custom-call":
        accessed = bytes_accessed(module, computation, instruction)
        return {MEMORY: accessed / chip.hbm_bytes_per_second}, True
    if "tpu_custom_call" not in instruction.attributes:
        return {}, True  # the compiler's own: buffers, concatenations
    return _kernel(module, computation, instruction, chip, (TPU_ATTENTION_SHARE, 1.0))


def _on_gpu(module, computation, instruction, chip):
    flops = matmul_flops(module, computation, instruction)
    if instruction.opcode == "custom-call" and not flops:
        shares = GPU_ATTENTION_SHARE, GPU_MEMORY_SHARE
        parts, known = _kernel(module, computation, instruction, chip, shares)
    else:
        accessed = bytes_accessed(module, computation, instruction)
        moving = accessed / (chip.hbm_bytes_per_second * GPU_MEMORY_SHARE)
        computing = flops / (chip.flops_per_second * GPU_MATMUL_SHARE)
        parts, known = {MATMULS if flops else MEMORY: max(computing, moving)}, True
    return parts | {LAUNCHES: GPU_LAUNCH}, known


def _kernel(module, computation, kernel, chip, shares):
    """A custom call at its shares of the peak and of the bandwidth."""
    flops = custom_call_flops(module, computation, kernel)
    computing = (flops or 0.0) / (chip.flops_per_second * shares[0])
    accessed = bytes_accessed(module, computation, kernel)
    moving = accessed / (chip.hbm_bytes_per_second * shares[1])
    return {OTHERS if flops is None else ATTENTION: max(computing, moving)}, flops is not None


def _assumptions(chip):
    on_platform = {
        "tpu": (
            "The compiler's cycles hold at the clock at which the chip reaches its peak; "
            "asynchronous copies take no time.",
            f"Attention kernels reach {TPU_ATTENTION_SHARE:.0%} of the peak, with head dimensions "
            f"padded to {LANES}.",
            f"A side of a slice is a closed ring if it is a multiple of {chip.ring} chips.",
        ),
        "gpu": (
            f"Matrix products reach {GPU_MATMUL_SHARE:.0%} of the peak, attention kernels "
            f"{GPU_ATTENTION_SHARE:.0%}, everything else {GPU_MEMORY_SHARE:.0%} of the bandwidth; "
            f"a kernel takes {GPU_LAUNCH * 1e6:.0f} us more, and an iteration of a loop whose end "
            f"only the program knows {GPU_HOST_WAIT * 1e6:.0f} us.",
            "These figures are from one training step on an H100: for 12 others the prediction was "
            "0% to 13% too long, for samplers 17% to 22%. Nothing was measured on several GPUs, "
            "nor on other kinds.",
        ),
    }
    return (
        *on_platform[chip.platform],
        "Collectives run as rings at the full bandwidth of the links, one after the other; an "
        "asynchronous one overlaps with what the program does until it needs the result.",
    )
