"""Settings for a topology: a greedy search for those that train fastest, and advice on one config.

The search chooses the mesh first, then what the backward pass recomputes, each with as many
sequences at a time as fit and with a few, then attention. The batch size of a step is kept. A
mesh whose chips cannot hold the state is not compiled for.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sedd_jax.display.table import Table
from sedd_jax.errors import BadInput, first_line
from sedd_jax.experiment.config import Config, MeshConfig
from sedd_jax.experiment.mesh import build_mesh, check_divisions
from sedd_jax.model.sharding import num_batch_shards
from sedd_jax.model.transformer import REMAT
from sedd_jax.planning.estimate import Estimate, estimate, gib, in_words
from sedd_jax.planning.lower import state_per_chip, train_program
from sedd_jax.planning.topology import Topology, topology_devices
from sedd_jax.system.settings import flatten

_ROWS = 8  # sequences of a chip at a time, with which meshes are compared
_MOST_ROWS = 32  # that are tried
# over 64 chips of one axis libtpu gathers parameters by sums in place of all-gathers
_MOST_FSDP = 32
_FILLED = 0.9  # share of the HBM that advice fills at most
_IDLE = 0.5  # share of the HBM in use below which more sequences at a time are advised


class Candidate(NamedTuple):
    """A config on its mesh, and the estimate of its training step."""

    config: Config
    mesh: Mesh
    estimate: Estimate

    @property
    def seconds(self) -> float:
        """Of a step; infinite if it does not fit."""
        return self.estimate.prediction.seconds if self.estimate.memory.fits else float("inf")

    def __str__(self) -> str:
        memory = self.estimate.memory
        result = f"{self.seconds:.3g} s a step, {gib(memory.needed_bytes)} GiB"
        settings = _settings(self.config, self.mesh)
        return f"{settings}: {result if memory.fits else 'does not fit'}"


class Search:
    """A search, which compiles no program twice.

    Attributes:
      ended: what ended it before all was tried, None if nothing did.
      skipped: programs that the compiler refused for another reason than their size.
    """

    def __init__(
        self,
        config: Config,
        topology: Topology,
        vocab_size: int,
        *,
        price: float | None = None,
        limit: int = 24,
        report: Callable[[str], None] = print,
    ):
        """Compiles nothing yet.

        Args:
          config: the settings to start from.
          topology: the machine.
          vocab_size: tokens of the tokenizer.
          price: US dollars per hour of a chip; that of `topology.chip` by default.
          limit: programs that are compiled at most.
          report: called with a line about every program.
        """
        self._config, self._topology, self._vocab_size = config, topology, vocab_size
        self._price, self._limit, self._report = price, limit, report
        self._devices = topology_devices(topology)
        self._tried: dict[Config, Candidate | None] = {}
        self._programs: dict[tuple[MeshConfig, str], Candidate] = {}  # by their text
        self.ended: str | None = None
        self.skipped = 0

    def run(self) -> list[Candidate]:
        """Returns what was compiled and fits, the fastest step first.

        Ctrl-C ends the search as soon as the compiler returns.

        Raises:
          BadInput: there is no mesh to try.
        """
        configs = list(self._on_meshes())
        if not configs:
            raise BadInput(
                f"No mesh of {self._topology.name} both keeps the state of the model and divides "
                "config.train.batch_size, config.eval.batch_size and the heads: take a larger "
                "machine or another batch."
            )
        try:
            self._choose(configs)
        except KeyboardInterrupt:
            self.ended = "Ctrl-C"
        fitting = [each for each in self._programs.values() if each.estimate.memory.fits]
        return sorted(fitting, key=lambda each: each.seconds)

    def _choose(self, configs):
        """Compiles one choice after the other."""
        best = self._fastest(self._with_rows(config, _ROWS) for config in configs)
        if best is None:  # the least memory that a step can need
            least = (_with(config, "model", remat="blocks") for config in configs)
            best = self._fastest(self._with_rows(config, 1) for config in least)
        if best is not None:
            best = self._fastest([best, *self._rows_and_remat(best)])
            self._fastest(_with(best, "model", attention=name) for name in ("auto", "xla"))

    def _on_meshes(self) -> Iterator[Config]:
        """The config on every mesh that divides its batches and heads, and can hold its state."""
        topology = self._topology
        chips = topology.num_devices // topology.slices
        for tensor, fsdp in itertools.product((1, 2), _divisors(chips)):
            if chips % (tensor * fsdp) or fsdp > _MOST_FSDP:
                continue
            sizes = MeshConfig(topology.slices, chips // (tensor * fsdp), fsdp, tensor)
            config = _with(dataclasses.replace(self._config, mesh=sizes), "train", microbatches=1)
            mesh = self._mesh(config)
            try:
                check_divisions(config, mesh)
            except BadInput:
                continue
            if state_per_chip(config, self._vocab_size, mesh) < topology.chip.hbm_bytes:
                yield config

    def _rows_and_remat(self, config: Config) -> Iterator[Config]:
        """For every policy the most sequences at a time that fit, and a few."""
        for remat in REMAT:
            kept = _with(config, "model", remat=remat)
            rows = reversed(self._numbers_of_rows(kept))
            fitting = filter(self._fits, (self._with_rows(kept, each) for each in rows))
            yield from itertools.islice(fitting, 1)
            yield self._with_rows(kept, _ROWS)

    def _with_rows(self, config, most):
        """The config with as many sequences at a time as divide the batch, up to `most`."""
        rows = max(rows for rows in self._numbers_of_rows(config) if rows <= most)
        share = config.train.batch_size // num_batch_shards(self._mesh(config))
        return _with(config, "train", microbatches=share // rows)

    def _numbers_of_rows(self, config):
        share = config.train.batch_size // num_batch_shards(self._mesh(config))
        return [rows for rows in _divisors(share) if rows <= _MOST_ROWS]

    def _fastest(self, configs: Iterable[Config]) -> Config | None:
        """The config whose step is the fastest; None if none fits."""
        fitting = [config for config in configs if self._fits(config)]
        return min(fitting, key=lambda each: self._tried[each].seconds, default=None)

    def _fits(self, config: Config) -> bool:
        """Whether a config fits; False beyond the limit of programs."""
        if config not in self._tried:
            if len(self._programs) + self.skipped == self._limit:
                self.ended = f"--limit={self._limit}"
                return False
            self._tried[config] = self._candidate(config)
        found = self._tried[config]
        return found is not None and found.estimate.memory.fits

    def _candidate(self, config):
        """The candidate of a config, or of an earlier one with the same program."""
        mesh = self._mesh(config)
        number = f"{len(self._programs) + self.skipped + 1}/{self._limit}"
        try:
            program = train_program(config, self._vocab_size, mesh)
            key = config.mesh, program.lowered.as_text()
            if key not in self._programs:
                found = estimate(program, self._topology, self._price)
                self._programs[key] = Candidate(config, mesh, found._replace(hlo_text=""))
                self._report(f"{number}  {self._programs[key]}")
            return self._programs[key]
        except (BadInput, jax.errors.JaxRuntimeError) as error:  # of this program alone
            self.skipped += 1
            why = first_line(error)
            self._report(f"{number}  {_settings(config, mesh)}: skipped, {why}")
            return None

    def _mesh(self, config):
        return build_mesh(config.mesh, self._devices)


def as_table(found: list[Candidate], most: int = 10) -> Table:
    """Returns the best candidates."""
    columns = (
        "mesh", "microbatches", "sequences a chip", "remat", "attention", "HBM, GiB", "s a step",
        "tokens a second", "MFU", "$ a billion tokens",
    )  # fmt: skip
    rows = [
        (
            in_words(each.mesh),
            each.config.train.microbatches,
            _rows(each.config, each.mesh),
            each.config.model.remat,
            each.config.model.attention,
            gib(each.estimate.memory.needed_bytes),
            each.seconds,
            f"{each.estimate.tokens_per_second:,.0f}",
            f"{each.estimate.mfu:.1%}",
            f"{each.estimate.dollars_per_billion_tokens:.2f}".replace("nan", "-"),
        )
        for each in found[:most]
    ]
    return Table("", columns, rows)


def train_command(file: str, config: Config, own: Mapping[str, Any]) -> str:
    """Returns the command that trains with a config.

    Args:
      file: the config file, as `--config` takes it.
      config: the settings.
      own: the settings of the file itself, by their dotted keys.
    """
    changed = [
        f"--config.{key}={value}"
        for key, value in flatten(dataclasses.asdict(config)).items()
        if key not in own or value != own[key]
    ]
    words = ["python", "-m", "sedd_jax.train", f"--config={file}", *changed, "--workdir=FOLDER"]
    return shlex.join(words)


def to_fit(config: Config, found: Estimate, *, training: bool) -> str:
    """Returns what makes a program smaller, starting with its larger part.

    Args:
      config: the settings.
      found: their estimate.
      training: whether the program is a training step.
    """
    program, made = found.program, found.memory.bytes_by_part["temporaries"]
    state = sum(size for name, size in program.argument_bytes.items() if name != "batch")
    data, fsdp = program.mesh.shape["data"], program.mesh.shape["fsdp"]
    more = max(n for n in _divisors(data) if n * fsdp <= max(fsdp, _MOST_FSDP))
    for_state = [
        f"--config.mesh.data={data // more} --config.mesh.fsdp={fsdp * more} divides the "
        f"{gib(state)} GiB of state on a chip by {more}"
    ]
    for_state = for_state if more > 1 else []
    for_temporaries = [] if training else ["--per_chip takes fewer sequences"]
    if training:
        fewest = _fewest_microbatches(config, found)
        if fewest > config.train.microbatches:
            for_temporaries.append(_with_microbatches(fewest, config, found))
        if config.model.remat != "blocks":
            for_temporaries.append("--config.model.remat=blocks keeps less of a block")
    ways = for_temporaries + for_state if made > state else for_state + for_temporaries
    return "; ".join([*ways, *["--search tries them"] * training]) + "."


def for_idle_memory(config: Config, found: Estimate) -> str | None:
    """Returns what uses the HBM that a training step leaves free; None if it leaves little."""
    used = found.memory.needed_bytes / found.memory.hbm_bytes
    fewest = _fewest_microbatches(config, found)
    if used > _IDLE or fewest >= config.train.microbatches:
        return None
    return (
        f"{1 - used:.0%} of the HBM is free: {_with_microbatches(fewest, config, found)}: try it."
    )


def _fewest_microbatches(config, found):
    """The fewest with which the temporaries, in proportion to the sequences, should fit."""
    memory, train = found.memory, config.train
    temporaries = memory.bytes_by_part["temporaries"]
    spare = _FILLED * memory.hbm_bytes - (memory.needed_bytes - temporaries)
    share = train.batch_size // num_batch_shards(found.program.mesh)
    made = temporaries * train.microbatches
    return next((number for number in _divisors(share) if made / number <= spare), share)


def _with_microbatches(number, config, found):
    rows = config.train.batch_size // number // num_batch_shards(found.program.mesh)
    held = "1 sequence" if rows == 1 else f"{rows} sequences"
    return f"--config.train.microbatches={number} would hold {held} of a chip at a time"


def _rows(config, mesh):
    """Sequences that a chip, or a group of `tensor` chips, computes at a time."""
    return config.train.batch_size // config.train.microbatches // num_batch_shards(mesh)


def _settings(config, mesh):
    model, rows = config.model, _rows(config, mesh)
    return f"{in_words(mesh)}, {rows} at a time, remat {model.remat}, attention {model.attention}"


def _with(config: Config, group: str, **settings: Any) -> Config:
    """The config with other settings of a group."""
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **settings)}
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
