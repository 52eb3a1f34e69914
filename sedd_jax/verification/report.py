"""The settings of `sedd_jax.exact`, and its report: claims, tables and plots, by section."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sedd_jax.data.columns import parse_columns
from sedd_jax.diffusion.hold import NONE
from sedd_jax.display.plot import Plot, image
from sedd_jax.display.table import Table, cell, markdown, markdown_lines, to_json
from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import build_graph
from sedd_jax.experiment.config import Config
from sedd_jax.system.files import atomic_write
from sedd_jax.system.settings import setting

MAX_STATES = 4096
FILES = ("report.md", "report.json", "*.png")


@dataclasses.dataclass(frozen=True)
class ExactSettings:
    """The size of the check."""

    # share of the clean sequences that have a probability above 0, at most 1
    support: float = setting(1.0, above=0)
    # samplers take 1, 2, 4, ... steps up to this power of 2
    max_steps: int = setting(256, at_least=64)
    # drawn to confirm a computed distribution
    num_samples: int = setting(65_536, at_least=4096)
    # conditional draws for every figure on rare tokens
    num_draws: int = setting(1_048_576, at_least=2**18)
    # of every estimate of the bound, to measure its variance
    repeats: int = setting(128, at_least=16)


@dataclasses.dataclass(frozen=True)
class ExactConfig(Config):
    """A run on an enumerable space: data.vocab_size tokens, model.length positions."""

    exact: ExactSettings = ExactSettings()


def check_settings(config: ExactConfig) -> None:
    """Refuses settings that cannot be enumerated.

    Raises:
      BadInput: too many or too few sequences; the message holds the dotted key.
    """
    exact, tokens, length = config.exact, config.data.vocab_size, config.model.length
    columns = parse_columns(config.data.condition)
    num_states = build_graph(config.graph, max(tokens, 2)).num_states
    rules = (
        (config.family == "diffusion", "config.family must be diffusion: its maths is checked."),
        (tokens >= 2, f"config.data.vocab_size must be at least 2, got {tokens}."),
        (
            num_states**length <= MAX_STATES,
            f"config.data.vocab_size={tokens} and config.model.length={length} make "
            f"{num_states}^{length} sequences; at most {MAX_STATES} can be enumerated.",
        ),
        (length >= 2, f"config.model.length must be at least 2, got {length}."),
        (
            exact.support * tokens**length >= 2,
            f"config.exact.support={exact.support} leaves less than 2 sequences.",
        ),
        (exact.support <= 1, f"config.exact.support must be at most 1, got {exact.support}."),
        (
            exact.max_steps.bit_count() == 1,
            f"config.exact.max_steps must be a power of 2, got {exact.max_steps}.",
        ),
        (
            [column.kind for column in columns] in ([], ["label"]),
            f"config.data.condition={config.data.condition} must name one label, as in class.",
        ),
        (
            not columns or config.train.hold == NONE,
            "config.data.condition and config.train.hold are checked apart: leave out one.",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise BadInput(message)


class Claim(NamedTuple):
    """A statement that holds if its figure is within the limit.

    Attributes:
      statement: what is claimed, in one line.
      figure: what was computed; a claim on NaN never holds.
      relation: between the figure and the limit.
      limit: the stated tolerance.
    """

    statement: str
    figure: float
    relation: Literal["<=", ">="]
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds."""
        if self.relation == "<=":
            return bool(self.figure <= self.limit)
        return bool(self.figure >= self.limit)


class Section(NamedTuple):
    """One part of the report."""

    title: str
    claims: list[Claim]
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


def render(section: Section) -> str:
    """Returns the section as Markdown: every table, then every claim with its figure and limit."""
    lines = [f"## {section.title}", ""]
    for table in section.tables:
        lines += [table.title, "", markdown(table), ""]
    rows = [
        (c.statement, c.figure, f"{c.relation} {cell(c.limit)}", "yes" if c.holds else "NO")
        for c in section.claims
    ]
    if rows:
        lines += markdown_lines(("claim", "figure", "limit", "holds"), rows)
    return "\n".join(lines) + "\n"


def write(sections: Sequence[Section], folder: Path, about: dict[str, Any] | None = None) -> None:
    """Writes `report.md` as rendered, all figures to `report.json`, and every plot to a PNG file.

    Args:
      sections: the report.
      folder: an existing folder.
      about: further entries of `report.json`: settings and versions.
    """
    report = [
        {
            "title": section.title,
            "claims": [claim._asdict() | {"holds": claim.holds} for claim in section.claims],
            "tables": [table._asdict() for table in section.tables],
        }
        for section in sections
    ]
    atomic_write(folder / "report.md", "\n".join(map(render, sections)))
    atomic_write(folder / "report.json", to_json((about or {}) | {"sections": report}))
    for plot in (plot for section in sections for plot in section.plots):
        atomic_write(folder / f"{plot.name}.png", image(plot))
