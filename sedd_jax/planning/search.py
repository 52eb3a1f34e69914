"""The settings that train fastest on a machine, by prediction: one choice after the other, not all.

First the mesh, then what the backward pass makes again, each with as many sequences at a time as
fit and with a few, then attention. The batch of a step stays what the config says. A mesh whose
chips cannot keep the state is not compiled for.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sedd_jax.display.table import Table
from sedd_jax.errors import BadInput, first_line
from sedd_jax.experiment.config import Config, MeshConfig
from sedd_jax.experiment.mesh import build_mesh, check_divisions
from sedd_jax.model.sharding import num_batch_shards
from sedd_jax.model.transformer import REMAT
from sedd_jax.planning.estimate import Outlook, foresee, gib, in_words
from sedd_jax.planning.hlo_cost.target import Target, target_devices
from sedd_jax.planning.lower import state_per_chip, train_program

_ROWS = 8  # sequences of a chip at a time, with which meshes are compared
_MOST_ROWS = 32  # that are tried
# libtpu brings together what one axis splits over 64 chips by sums, not by gathers
MOST_FSDP = 32


class Found(NamedTuple):
    """Settings, and what is foreseen of a step with them."""

    config: Config
    mesh: Mesh
    outlook: Outlook

    @property
    def seconds(self) -> float:
        """Of a step; infinite if it does not fit."""
        return self.outlook.prediction.seconds if self.outlook.memory.fits else float("inf")

    @property
    def rows(self) -> int:
        """Sequences that a chip, or group of `tensor` chips, works on at a time."""
        return _rows(self.config, self.mesh)

    def __str__(self) -> str:
        memory = self.outlook.memory
        result = f"{self.seconds:.3g} s a step, {gib(memory.needed)} GiB"
        settings = _settings(self.config, self.mesh)
        return f"{settings}: {result if memory.fits else 'does not fit'}"


class Search:
    """A search; nothing is compiled twice.

    Attributes:
      ended: what ended it before all was tried, None if nothing did.
      skipped: programs that the compiler gave up for another reason than their size.
    """

    def __init__(
        self,
        config: Config,
        target: Target,
        vocab_size: int,
        *,
        price: float | None = None,
        limit: int = 24,
        tell: Callable[[str], None] = print,
    ):
        """Compiles nothing yet.

        Args:
          config: the settings to start from.
          target: the machine.
          vocab_size: tokens of the tokenizer.
          price: US dollars an hour of a chip; what is assumed of it by default.
          limit: programs that are compiled at most.
          tell: called with a line about every program.
        """
        self._config, self._target, self._vocab_size = config, target, vocab_size
        self._price, self._limit, self._tell = price, limit, tell
        self._devices = target_devices(target)
        self._found: dict[Config, Found | None] = {}
        self._programs: dict[tuple[MeshConfig, str], Found] = {}  # by their text
        self.ended: str | None = None
        self.skipped = 0

    def run(self) -> list[Found]:
        """Returns what was compiled and fits, the fastest step first.

        An interrupt from the keyboard ends it, as soon as the compiler is done.

        Raises:
          BadInput: there is no mesh to try.
        """
        configs = list(self._on_meshes())
        if not configs:
            raise BadInput(
                f"No mesh of {self._target.text} both keeps the state of the model and divides "
                "config.train.batch_size, config.eval.batch_size and the heads: take a larger "
                "machine or another batch."
            )
        try:
            self._choose(configs)
        except KeyboardInterrupt:
            self.ended = "Ctrl-C"
        fitting = [found for found in self._programs.values() if found.outlook.memory.fits]
        return sorted(fitting, key=lambda found: found.seconds)

    def _choose(self, configs):
        """Compiles one choice after the other."""
        best = self._fastest(self._with_rows(config, _ROWS) for config in configs)
        if best is None:  # the least that a step can hold
            least = (_with(config, "model", remat="blocks") for config in configs)
            best = self._fastest(self._with_rows(config, 1) for config in least)
        if best is not None:
            best = self._fastest([best, *self._rows_and_remat(best)])
            self._fastest(_with(best, "model", attention=name) for name in ("auto", "xla"))

    def _on_meshes(self) -> Iterator[Config]:
        """The config on every mesh that divides its batches and heads, and can keep its state."""
        target, chips = self._target, self._target.devices_count // self._target.slices
        for tensor, fsdp in itertools.product((1, 2), divisors(chips)):
            if chips % (tensor * fsdp) or fsdp > MOST_FSDP:
                continue
            sizes = MeshConfig(target.slices, chips // (tensor * fsdp), fsdp, tensor)
            config = _with(dataclasses.replace(self._config, mesh=sizes), "train", microbatches=1)
            mesh = self._mesh(config)
            try:
                check_divisions(config, mesh)
            except BadInput:
                continue
            if state_per_chip(config, self._vocab_size, mesh) < target.chip.memory:
                yield config

    def _rows_and_remat(self, config: Config) -> Iterator[Config]:
        """For every policy the most sequences at a time that fit, and a few."""
        for remat in REMAT:
            kept = _with(config, "model", remat=remat)
            tried = (self._with_rows(kept, rows) for rows in reversed(self._numbers_of_rows(kept)))
            yield from itertools.islice(filter(self._fits, tried), 1)
            yield self._with_rows(kept, _ROWS)

    def _with_rows(self, config, most):
        """The config with so many sequences at a time, or the next fewer that divide the batch."""
        share = config.train.batch_size // num_batch_shards(self._mesh(config))
        rows = max(rows for rows in self._numbers_of_rows(config) if rows <= most)
        return _with(config, "train", microbatches=share // rows)

    def _numbers_of_rows(self, config):
        share = config.train.batch_size // num_batch_shards(self._mesh(config))
        return [rows for rows in divisors(share) if rows <= _MOST_ROWS]

    def _fastest(self, configs: Iterable[Config]) -> Config | None:
        """The config whose step is the fastest; None if none fits."""
        fitting = [config for config in configs if self._fits(config)]
        return min(fitting, key=lambda each: self._found[each].seconds, default=None)

    def _fits(self, config: Config) -> bool:
        """Whether it does, as far as more may be compiled."""
        if config not in self._found:
            if len(self._programs) + self.skipped == self._limit:
                self.ended = f"--limit={self._limit}"
                return False
            self._found[config] = self._foreseen(config)
        found = self._found[config]
        return found is not None and found.outlook.memory.fits

    def _foreseen(self, config):
        """What is foreseen of a config, or was of another that makes the same program."""
        mesh = self._mesh(config)
        number = f"{len(self._programs) + self.skipped + 1}/{self._limit}"
        try:
            program = train_program(config, self._vocab_size, mesh)
            key = config.mesh, program.lowered.as_text()
            if key not in self._programs:
                outlook = foresee(program, self._target, self._price)
                self._programs[key] = Found(config, mesh, outlook._replace(text=""))
                self._tell(f"{number}  {self._programs[key]}")
            return self._programs[key]
        except (BadInput, jax.errors.JaxRuntimeError) as error:  # of this program alone
            self.skipped += 1
            why = first_line(error)
            self._tell(f"{number}  {_settings(config, mesh)}: skipped, {why}")
            return None

    def _mesh(self, config):
        return build_mesh(config.mesh, self._devices)


def table(found: list[Found], most: int = 10) -> Table:
    """Returns the best of what was found."""
    columns = (
        "mesh", "microbatches", "sequences a chip", "remat", "attention", "HBM, GiB", "s a step",
        "tokens a second", "MFU", "$ a billion tokens",
    )  # fmt: skip
    rows = []
    for each in found[:most]:
        config, outlook = each.config, each.outlook
        rows.append(
            (
                in_words(each.mesh),
                config.train.microbatches,
                each.rows,
                config.model.remat,
                config.model.attention,
                gib(outlook.memory.needed),
                each.seconds,
                f"{outlook.tokens_per_second:,.0f}",
                f"{outlook.mfu:.1%}",
                f"{outlook.dollars_per_billion_tokens:.2f}",
            )
        )
    return Table("", columns, rows)


def _rows(config, mesh):
    return config.train.batch_size // config.train.microbatches // num_batch_shards(mesh)


def _settings(config, mesh):
    model, rows = config.model, _rows(config, mesh)
    return f"{in_words(mesh)}, {rows} at a time, remat {model.remat}, attention {model.attention}"


def _with(config: Config, group: str, **settings: Any) -> Config:
    """The config with other settings of a group."""
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **settings)}
    )


def divisors(number: int) -> list[int]:
    """Returns what divides a number evenly, smallest first."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
