"""The settings of a comparison: what its rows share, and in what each differs.

A config file changes `default_comparison()`: its settings of a run hold for all rows, and
`config.rows.NAME` has what is different in a row, in the same groups. Three keys of a row are
no settings of a run: `title`, its name in tables; `published`, the name of the same model in the
paper's Table 1; `config`, a config file to take in place of the shared settings.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sedd_jax.display.table import to_json
from sedd_jax.errors import BadInput, first_line
from sedd_jax.evaluation.protocol import Choices
from sedd_jax.evaluation.published_results import paper_table_1
from sedd_jax.evaluation.quality import Settings
from sedd_jax.experiment.config import Config, default_config, differences, from_saved, parse
from sedd_jax.experiment.config_files import config_module, find_config
from sedd_jax.inference.build import check_names
from sedd_jax.inference.family import Family, sampling_names
from sedd_jax.model.settings_file import read_json
from sedd_jax.system.files import atomic_write
from sedd_jax.system.settings import marked, setting

FILE, LOCK = "config.json", "lock"  # in the folder of a comparison
_NAME = re.compile(r"[a-z0-9_]+")
_OF_ROW = re.compile(r"--?(?:no)?config\.rows\.(\w+)\.([\w.]+)")  # a flag for a row
_ABOUT = ("title", "published", "config")
# how a text is cut into tokens; the rest of `data` says which text it is
_OF_TOKENS = ("tokenizer", "tokenizer_path", "vocab_size", "max_lost", "split_at_unknown")


@dataclasses.dataclass(frozen=True)
class ComparisonSettings:
    """How every row is repeated and scored."""

    seeds: int = setting(1, above=0)  # runs of a row: config.seed, config.seed + 1, ...
    draws: int = setting(16, above=0)  # of (t, x_t) for every held-out block
    max_blocks: int = setting(0, at_least=0)  # held-out blocks, evenly spaced; 0: all
    draw_seed: int = setting(0, at_least=0)  # of draws and samples, the same for every row
    samples: int = setting(64, at_least=0)  # at each temperature; 0: none are drawn
    sampler: str = "tweedie"  # of diffusion models
    # of the network, for a sample of a diffusion model; 0: as many as it has tokens, which is what
    # an autoregressive model takes
    evaluations: int = setting(0, at_least=0)
    # with commas; quality is interpolated between them, at the entropy of real text
    temperatures: str = "0.85,1,1.15"
    reference: str = ""  # the row that the others are compared with; empty: the first one

    @property
    def each_temperature(self) -> tuple[float, ...]:
        """The temperatures. Raises BadInput for a text that is not numbers with commas."""
        try:
            return tuple(dict.fromkeys(float(each) for each in self.temperatures.split(",")))
        except ValueError as error:
            raise BadInput(
                f"config.comparison.temperatures must be numbers with commas, as in 0.8,1, got "
                f"{self.temperatures!r}."
            ) from error

    @property
    def choices(self) -> Choices:
        """The choices for likelihoods: complete bounds."""
        return Choices(
            draws=self.draws, complete=True, seed=self.draw_seed, max_blocks=self.max_blocks or None
        )

    def quality(self, steps: int, temperature: float = 1.0) -> Settings:
        """Returns what to sample."""
        return Settings(
            num_samples=self.samples,
            steps=(steps,),
            samplers=(self.sampler,),
            temperatures=(temperature,),
            seed=self.draw_seed,
        )

    def qualities(self, family: Family, length: int) -> list[Settings]:
        """Returns what to sample of a row: at every temperature, or once if it has none.

        Args:
          family: of the row.
          length: of its samples, in tokens.
        """
        wanted = self.evaluations or length
        (sampling,) = self.quality(wanted).sweep(family)
        # some samplers take one more for their final step
        steps = max(1, wanted - max(0, family.max_nfe(sampling, length) - wanted))
        if "temperature" not in sampling_names(family):
            return [self.quality(steps)]
        return [self.quality(steps, temperature) for temperature in self.each_temperature]


@dataclasses.dataclass(frozen=True)
class ComparisonConfig(Config):
    """A comparison: the settings that its rows share, and its rows."""

    comparison: ComparisonSettings = ComparisonSettings()
    rows: dict = dataclasses.field(default_factory=dict)  # by name, see above


def default_comparison():
    """Returns the defaults of a `ComparisonConfig` as a ConfigDict, without rows.

    Its rows stay in the order in which they are set, one by one.
    """
    from ml_collections import ConfigDict  # at the command-line edge only

    config = default_config(ComparisonConfig)
    config.rows = ConfigDict(sort_keys=False)
    return config


def open_rows(config: Any, arguments: Sequence[str]) -> None:
    """Gives rows the shared value of every setting that a flag `--config.rows.NAME.KEY=` changes.

    A flag changes only what is there, and a row holds only what differs.

    Args:
      config: the settings of a comparison, a ConfigDict; changed.
      arguments: the command line.
    """
    shared = config.to_dict() | dict.fromkeys(_ABOUT, "")
    for found in filter(None, map(_OF_ROW.match, arguments)):
        own, values = config.rows.get(found[1]), shared
        for key in found[2].split("."):
            if not hasattr(own, "to_dict") or not isinstance(values, dict) or key not in values:
                break  # what is no setting stays out, and the flag is refused
            values = values[key]
            if key not in own:
                own[key] = {} if isinstance(values, dict) else values
            own = own[key]


class Row(NamedTuple):
    """A row: a model that is trained with one or more seeds.

    Attributes:
      name: of its folder.
      title: in tables.
      published: the name of the model in the paper's Table 1; "" if it is not there.
      config: its settings with the first seed.
    """

    name: str
    title: str
    published: str
    config: Config

    def seeded(self, seed: int) -> Config:
        """Returns the settings of run number `seed`, from 0."""
        return dataclasses.replace(self.config, seed=self.config.seed + seed)


class Comparison(NamedTuple):
    """What to compare, checked.

    Attributes:
      settings: how rows are repeated and scored.
      rows: in the order of the table.
    """

    settings: ComparisonSettings
    rows: tuple[Row, ...]

    @property
    def own_judge(self) -> Row | None:
        """The first autoregressive row, which can score the samples of all; None without one."""
        return next((row for row in self.rows if row.config.family == "autoregressive"), None)

    @property
    def reference(self) -> Row:
        """The row that the others are compared with."""
        name = self.settings.reference or self.rows[0].name
        return next(row for row in self.rows if row.name == name)

    @property
    def one_tokenizer(self) -> bool:
        """Whether all rows have the same tokens, so that figures per token are comparable."""
        return len({_tokens_of(row.config) for row in self.rows}) == 1


def _tokens_of(config):
    return tuple(getattr(config.data, name) for name in _OF_TOKENS)


def comparison_from(config: ComparisonConfig) -> Comparison:
    """Returns the comparison that settings describe.

    Raises:
      BadInput: no row, a row with a setting that does not exist or that does not fit, other text
        than the first, or scoring that is not possible; the message holds the dotted key.
    """
    if not config.rows:
        raise BadInput("config.rows is empty: name at least one row, as in configs/compare_*.py.")
    shared = dataclasses.asdict(config)
    del shared["comparison"], shared["rows"]
    rows = tuple(_row(name, values, shared) for name, values in config.rows.items())
    titles = [row.title for row in rows]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise BadInput(f"Two of config.rows have the title {twice[0]!r}; give each its own.")
    settings, first = config.comparison, rows[0]
    temperatures = settings.each_temperature
    settings.choices  # noqa: B018 - its construction checks
    if settings.reference and settings.reference not in config.rows:
        raise BadInput(
            f"config.comparison.reference={settings.reference!r} is none of config.rows: "
            f"{', '.join(config.rows)}."
        )
    for row in rows:
        if text := _another_text(first.config, row.config):
            raise BadInput(
                f"config.rows.{row.name} has other text than {first.name} ({text}): rows are "
                "compared on the same text; make a comparison of its own for it."
            )
        for temperature in temperatures if settings.samples else ():
            settings.quality(settings.evaluations or 1, temperature).check()
    return Comparison(settings, rows)


def _row(name, values, shared):
    where = f"config.rows.{name}"
    if not _NAME.fullmatch(name):
        raise BadInput(f"{where} names a folder: use a-z, 0-9 and _.")
    if not isinstance(values, dict):
        raise BadInput(f"{where} must be a group of settings, got {values!r}.")
    about = {key: values.get(key, "") for key in _ABOUT}
    if wrong := next((key for key, it in about.items() if not isinstance(it, str)), None):
        raise BadInput(f"{where}.{wrong} must be a text, got {about[wrong]!r}.")
    models = [result.model for result in paper_table_1()]
    if about["published"] and about["published"] not in models:
        raise BadInput(
            f"{where}.published must be a row of the paper's Table 1 ({', '.join(models)}), got "
            f"{about['published']!r}."
        )
    own = {key: value for key, value in values.items() if key not in _ABOUT}
    base = _settings_of(about["config"], where) if about["config"] else shared
    try:
        config = parse(_merged(base, own, "config."))
        check_names(config)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    return Row(name, about["title"] or name.replace("_", " "), about["published"], config)


def _settings_of(file, where):
    """The settings of another config file."""
    try:
        return config_module(find_config(file)).get_config().to_dict()
    except BadInput as error:
        raise BadInput(f"{where}.config: {error}") from error
    except Exception as error:  # whatever the file does
        raise BadInput(
            f"{where}.config={file} fails with {type(error).__name__}: {first_line(error)}."
        ) from error


def _merged(base: dict[str, Any], changes: dict[str, Any], path: str) -> dict[str, Any]:
    """The settings of `base`, with those of nested groups in `changes`."""
    found = dict(base)
    for name, value in changes.items():
        if name not in base:
            raise BadInput(f"{path}{name} is not a setting; there are: {', '.join(base)}.")
        is_group = isinstance(base[name], dict) and isinstance(value, dict)
        found[name] = _merged(base[name], value, f"{path}{name}.") if is_group else value
    return found


def _another_text(first, other):
    """How the text of a row differs from that of the first one, apart from its tokens."""
    if first.data.prepared or other.data.prepared:
        same = _tokens_of(first) != _tokens_of(other) or first.data.prepared == other.data.prepared
        return "" if same else f"data.prepared: {first.data.prepared!r}, {other.data.prepared!r}"
    keys = ("corpus", "format", "field", "separator", "heldout_corpus", "heldout_fraction", "wrap")
    pairs = [(key, getattr(first.data, key), getattr(other.data, key)) for key in keys]
    return "; ".join(f"data.{key}: {a!r}, {b!r}" for key, a, b in pairs if a != b)


def keep_settings(folder: Path, comparison: Comparison) -> None:
    """Writes the settings into the folder, or checks that it holds this comparison.

    Rows and seeds may be added to an existing one.

    Raises:
      BadInput: the folder holds something else, or a comparison with other settings.
    """
    path = folder / FILE
    if path.is_file():
        _check_same(folder, read_json(path), comparison)
    elif others := [it.name for it in folder.iterdir() if it.name != LOCK]:
        raise BadInput(f"{folder} holds {min(others)} and no comparison; choose another --workdir.")
    values = {
        "comparison": dataclasses.asdict(comparison.settings),
        "rows": {
            row.name: {"title": row.title, "published": row.published}
            | {"config": dataclasses.asdict(row.config)}
            for row in comparison.rows
        },
    }
    atomic_write(path, to_json(values))


def _check_same(folder, old, comparison):
    if not _is_comparison(old):
        raise BadInput(f"{folder / FILE} holds no comparison; choose another --workdir.")
    now = dataclasses.asdict(comparison.settings)
    changed = [
        f"comparison.{key}: {old['comparison'].get(key)!r} -> {value!r}"
        for key, value in now.items()
        if old["comparison"].get(key) != value and key not in ("seeds", "reference")
    ]
    if old["comparison"].get("seeds", 0) > now["seeds"]:
        changed.append(f"comparison.seeds: {old['comparison']['seeds']} -> {now['seeds']}")
    for row in comparison.rows:
        if before := old["rows"].get(row.name):
            lines = differences(from_saved(before["config"]), row.config)
            changed += [f"{row.name}: {line}" for line in lines if not _may_change(line)]
    if changed:
        shown = "; ".join(changed[:3]) + (f" and {len(changed) - 3} more" if changed[3:] else "")
        raise BadInput(
            f"{folder} holds a comparison with other settings ({shown}); choose another --workdir, "
            "or go back to those settings."
        )


def _is_comparison(values):
    """Whether a file holds what `keep_settings` writes."""
    return (
        isinstance(values, dict)
        and set(values) == {"comparison", "rows"}
        and all(isinstance(group, dict) for group in values.values())
        and all(
            isinstance(row, dict) and isinstance(row.get("config"), dict)
            for row in values["rows"].values()
        )
    )


def _may_change(line):
    """Whether a difference leaves the figures as they are; more steps would not."""
    key = line.partition(":")[0]
    return key != "train.steps" and key in marked(Config, "may_change")
