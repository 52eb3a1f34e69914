"""The model card: what a model is and how it was trained, from the files of its run.

It is a README.md for the Hugging Face hub, of facts only; the same files give the same card.
"""

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import sedd_jax
from sedd_jax.data import account, round_trip
from sedd_jax.data.account import Fact
from sedd_jax.data.corpus_statistics import SPLITS
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.display.table import markdown_lines
from sedd_jax.experiment import metrics
from sedd_jax.experiment.config import Config, NoiseConfig
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.model.settings_file import read_json
from sedd_jax.system.files import atomic_write
from sedd_jax.system.processes import print_on_primary

FILE = "README.md"
RECORDS = ("manifest.json", metrics.FILE)  # an exported model has them too, in its root
_MARK = "<!-- Made by sedd_jax from the files of the run;"
_MADE = f"{_MARK} remove this line to protect it from being replaced. -->"
_WRITTEN = "This card was written by"
_SHOWN = 5  # files of a corpus
_CORPORA = {"corpus": "Source", "heldout_corpus": "Source of what is held out"}
# the folders of a path, also of tfds:/a/b, not of gs://a/b
_PLACE = re.compile(r"(^|:(?!//)|,)[/.~][^:,\[]*/")
_EXPLAINED = {
    "bound": "The bound is on the negative log-likelihood, in nats per token, by Monte Carlo over "
    "the noise, of the averaged weights; beside it its standard error.",
    "nll": "The negative log-likelihood is in nats per token, of the averaged weights; beside it "
    "its standard error over sequences.",
    "cross_entropy": "The cross-entropy of the class is in nats per sequence, at times uniform on "
    "[t_min, 1], of the averaged weights; beside it its standard error over sequences.",
}
_BESIDE = {"cross_entropy": ("accuracy",)}  # figures that go with it; of others the following
_OF_TOKENS = ("perplexity", "bits_per_byte")


class RunFacts(NamedTuple):
    """The known facts about a model.

    Attributes:
      config: its settings.
      parameters: their number, the padding of the vocabulary included; None if unknown.
      tokenizer: None if it is not known.
      step: the last step of training.
      manifest: of the data, or those of several folders; None if it is not known.
      rows: of the metrics up to `step`; empty if the training is not known.
      weights: which weights these are, in words.
    """

    config: Config
    parameters: int | None
    tokenizer: Tokenizer | None
    step: int | None
    manifest: Any
    rows: list[dict[str, Any]]
    weights: str = "averaged, and as trained"


def write_card(folder: Path, facts: RunFacts, name: str) -> None:
    """Writes the card into `folder`, replacing an earlier one; any other README.md is kept.

    Args:
      folder: of the model.
      facts: about the model.
      name: a folder or a repository of the hub, from which the model can be loaded.
    """
    path = folder / FILE
    if path.exists() and _MARK not in path.read_text(errors="replace"):
        print_on_primary(f"{path} was not written by sedd_jax, and is kept.")
    else:
        atomic_write(path, card(facts, name))


def read_versions(folder: Path) -> dict[str, str]:
    """Returns the versions in the card of a finished run, by package; none without a card."""
    path = folder / FILE
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    written = next((line for line in reversed(lines) if line.startswith(_WRITTEN)), "")
    return dict(re.findall(r"(\w+) (\d[\w.+-]*\w)", written))


def find_records(folder: Path) -> dict[str, Path]:
    """Returns the paths of the `RECORDS` of a run folder or an exported model, by name."""
    places = [(name, place / name) for place in (folder, folder / DATA_FOLDER) for name in RECORDS]
    return {name: path for name, path in places if path.is_file()}


def read_history(records: Mapping[str, Path], step: int | None) -> dict[str, Any]:
    """Returns the fields `step`, `manifest` and `rows` of a `RunFacts`, from those files.

    Raises:
      BadInput: the manifest is not JSON.
    """
    manifest, rows = map(records.get, RECORDS)
    return {
        "step": step,
        "manifest": read_json(manifest) if manifest else None,
        "rows": metrics.read_rows(rows, step) if rows and step is not None else [],
    }


def card(facts: RunFacts, name: str) -> str:
    """Returns the text of the card; arguments as in `write_card`."""
    sections = [
        _front_matter(facts.config),
        _MADE,
        f"# {PurePath(name).name}",
        _table("Model", model_facts(facts)),
        _table("Data", data_facts(facts.manifest)),
        _table("Training", training_facts(facts)),
        _figures(facts.rows),
        _usage(facts.config, name),
        f"{_WRITTEN} sedd_jax {sedd_jax.__version__} with "
        + " and ".join(f"{it} {importlib.metadata.version(it)}" for it in ("jax", "flax"))
        + ".",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


_KINDS = {  # by config.model.output; a classifier has none
    "classifier": "classifier of noised tokens",
    "ratio": "score entropy discrete diffusion (SEDD)",
    "denoiser": "discrete diffusion, a softmax as denoiser",
    "leave_one_out": "discrete diffusion, a softmax that leaves its position out",
}


def model_facts(facts: RunFacts) -> list[Fact]:
    """Returns what the model is."""
    config, model, tokenizer = facts.config, facts.config.model, facts.tokenizer
    if config.uses_noise:
        words = _KINDS["classifier" if config.family == "classifier" else model.output]
        kind = f"{words}, graph {config.graph}"
        noise = [("Noise", describe_noise(config.noise))]
    else:
        words = {"gaussian": "Gaussian diffusion of embeddings (PLAID)"}
        kind, noise = words.get(config.family, f"{config.family} transformer"), []
    return [
        ("Kind", kind),
        *noise,
        *(
            [("Parameters", f"{facts.parameters:,}, the padding of the vocabulary included")]
            if facts.parameters is not None
            else []
        ),
        *([("Weights", facts.weights)] if facts.rows else []),
        ("Length", f"{model.length:,} tokens"),
        (
            "Network",
            f"{model.num_blocks} {_layers(model)}, hidden size "
            f"{model.hidden_size}, dropout {model.dropout:g}",
        ),
        *([("Conditions", config.data.condition)] if config.data.condition else []),
        *(
            [("Tokenizer", f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens")]
            if tokenizer
            else []
        ),
    ]


def _layers(model):
    if model.trunk == "convolution":
        return f"convolutions of width {model.kernel_width}, dilations {model.dilations} in turn"
    return f"blocks of {model.num_heads} heads"


def data_facts(manifest: Any) -> list[Fact]:
    """Returns what a manifest says of the data: of one folder, or of several."""
    manifest = without_folders(manifest or {})
    if "prepared" in manifest:
        return [
            fact
            for entry in manifest["prepared"]
            for fact in [
                ("Prepared data", f"{entry['folder']}, weight {entry['weight']:g}"),
                *data_facts(entry["manifest"]),
            ]
        ]
    corpora: dict[str, list[dict[str, Any]]] = {}
    for piece in manifest.get("sources", []):
        corpora.setdefault(piece["corpus"], []).append(piece)
    recipe = manifest.get("recipe", {})
    return [
        *((_CORPORA[corpus], _source(pieces)) for corpus, pieces in corpora.items()),
        *(
            [("Held out", f"{recipe['heldout_fraction']:g} of the text, whole documents")]
            if "heldout_fraction" in recipe
            else []
        ),
        *(
            [("Blocks", "documents in a row" if recipe["wrap"] else "a document each")]
            if "wrap" in recipe
            else []
        ),
        *(
            (f"Split {name}" if name in SPLITS else name.capitalize(), text)
            for name, text in account.facts(manifest)
        ),
        *(("Warning", text) for text in account.warnings(manifest)),
    ]


def _source(pieces):
    # a large file is several pieces, which are named by their range
    files = list(dict.fromkeys(re.sub(r"\[.*\]$", "", piece["name"]) for piece in pieces))
    shown = ", ".join(files[:_SHOWN])
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return shown + more


def without_folders(value: Any) -> Any:
    """Returns settings or a manifest with paths on this machine cut to the names of their files."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return _PLACE.sub(r"\1", value) if isinstance(value, str) else value


def training_facts(facts: RunFacts) -> list[Fact]:
    """Returns how the model was trained; empty if that is not known."""
    train, optim = facts.config.train, facts.config.optim
    if not facts.rows or facts.step is None:
        return []
    tokens = facts.step * train.batch_size * facts.config.model.length
    began = [("Started from", without_folders(train.initial))] if train.initial else []
    return [
        *began,
        ("Steps", f"{facts.step:,} of {train.batch_size} sequences, {tokens:,} tokens in all"),
        (
            "Optimizer",
            f"AdamW, beta {optim.beta1:g} and {optim.beta2:g}, eps {optim.eps:g}, weight decay "
            f"{optim.weight_decay:g}, gradient clipped to {optim.clip_norm:g}",
        ),
        (
            "Learning rate",
            f"{optim.learning_rate:g}, {optim.decay} after {optim.warmup_steps:,} steps of warm-up",
        ),
        ("Average of the weights", f"decay {optim.ema_decay:g}"),
        ("Seed", str(facts.config.seed)),
    ]


def _front_matter(config):
    generates = config.family != "classifier"
    kind = "discrete-diffusion" if config.uses_noise and generates else config.family
    is_text = generates and config.data.tokenizer not in ("dna", "integers")
    text = ["text-generation"] if is_text else []
    tags = "".join(f"\n- {tag}" for tag in (*text, "jax", "sedd", kind))
    return f"---\nlibrary_name: sedd_jax\n# license: yours to choose\ntags:{tags}\n---"


def describe_noise(noise: NoiseConfig) -> str:
    """Returns the schedule and its settings."""
    words = {
        "loglinear": f"loglinear, eps {noise.eps:g}",
        "geometric": f"geometric, sigma from {noise.sigma_min:g} to {noise.sigma_max:g}",
    }
    return words.get(noise.schedule, noise.schedule)


def _figures(rows: list[dict[str, Any]]):
    kind = next((kind for kind in _EXPLAINED if any(kind in row for row in rows)), None)
    if kind is None:
        return ""
    measured = [row for row in rows if kind in row]
    beside = _BESIDE.get(kind, _OF_TOKENS)
    names = (kind, f"{kind}_stderr", *beside)
    best = min(measured, key=lambda row: row[kind])
    table = [
        (which, row["step"], *(f"{row[it]:.4f}" if it in row else "" for it in names))
        for which, row in (("last", measured[-1]), ("best", best))
    ]
    columns = ("", "step", kind, "standard error", *beside)
    columns = tuple(column.replace("_", " ") for column in columns)
    about, mark = _EXPLAINED[kind], round_trip.caveat(measured[-1].get("lost_characters"))
    about += f" Bits per byte{mark} are no code length." if mark else ""
    title = ["## Held-out figures\n", f"{about}\n"]
    return "\n".join([*title, *markdown_lines(columns, table)])


def _table(title, facts):
    return "\n".join([f"## {title}\n", *markdown_lines(("", ""), facts)]) if facts else ""


def flags_of_use(config: Config, name: str | PurePath) -> str:
    """Returns the flags with which `sample` uses a model.

    Args:
      config: its settings.
      name: a folder or a repository of the hub, from which it can be loaded.
    """
    if config.family != "classifier":
        return f"--checkpoint={name}"
    column, _, _ = config.data.condition.partition(":")
    return f"--checkpoint=MODEL --classifier={name} --condition={column}=CLASS --guidance=1"


def _usage(config, name):
    load = f"""model = sedd.load("{name}")
tokens, diagnostics = sedd.generate(jax.random.key(0), model, num_samples=4)"""
    if config.family == "classifier":
        column, _, _ = config.data.condition.partition(":")
        load = f"""model, classifier = sedd.load("MODEL"), sedd.load("{name}")
tokens, diagnostics = sedd.generate(
    jax.random.key(0), model, 4, classifier=classifier, condition={{"{column}": "CLASS"}}
)"""
    return f"""## Use

```
python -m sedd_jax.sample {flags_of_use(config, name)}
```

```python
import jax
import sedd_jax as sedd

{load}
```"""
