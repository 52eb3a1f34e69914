"""Evaluates a model: `python -m sedd_jax.evaluate --checkpoint=runs/tiny --suite=heldout`.

Likelihoods of data sets, with all that they depend on: `--suite=zeroshot --data=FOLDER` for those
of the paper. Quality of samples: `--suite=quality --judge=FOLDER`, for one sampler setting or many;
at the entropy of real text: `--suite=frontier --judge=FOLDER --reference=heldout`.
DNA, proteins: `--suite=sequences --samples=drawn.fasta --reference=real.fasta`, without a model.
Every figure is written to its own file as soon as it is known; the same command continues from
there.
"""

import contextlib
import tempfile
from pathlib import Path

from absl import flags
from jax.sharding import Mesh

from sedd_jax.display.plot import check_plots
from sedd_jax.display.table import markdown
from sedd_jax.errors import BadInput
from sedd_jax.evaluation import interval, likelihood, quality, sequence_report, summary
from sedd_jax.evaluation.catalog import DatasetCatalog
from sedd_jax.evaluation.protocol import CONVENTIONS, Choices
from sedd_jax.evaluation.quality_flags import FRONTIER, QUALITY, define_quality_flags
from sedd_jax.evaluation.record import FOLDER, Record, log_on_primary
from sedd_jax.evaluation.sequence_flags import SEQUENCES, define_sequence_flags
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.checkpoint_folder import has
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.family import sampling_names
from sedd_jax.inference.likelihood import TIMES
from sedd_jax.inference.load import fetched, load
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system import mirror, processes
from sedd_jax.system.joining import initialize_distributed
from sedd_jax.system.processes import print_on_primary

_MODEL = cli.define_model_flags()
_PROCESSES = cli.define_process_flags()
_MESH = flags.DEFINE_list(
    "mesh", None, "Axes of devices, as in fsdp:4,tensor:2; by default a copy on every device."
)
_SUITES = (*likelihood.SUITES, QUALITY, FRONTIER, SEQUENCES)
_SUITE = flags.DEFINE_list("suite", None, f"What to evaluate: {', '.join(_SUITES)}.")
_OF_SAMPLES = define_quality_flags()
_OF_SEQUENCES = define_sequence_flags()
_DATA = flags.DEFINE_string("data", None, "Folder with the files of data sets, at any depth.")
_SOURCES = flags.DEFINE_list("sources", [], "Files of single data sets, as in ptb=test.txt.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch the data sets that are missing.")
_PROTOCOL = flags.DEFINE_enum("protocol", "sedd", list(CONVENTIONS), "Splits and end-of-text rule.")
_DRAWS = flags.DEFINE_integer("draws", 16, "Draws of (t, x_t) for every block.", lower_bound=1)
_TIMES = flags.DEFINE_enum("times", "low-discrepancy", TIMES, "How t is drawn.")
_COMPLETE = flags.DEFINE_bool(
    "complete", False, "All terms of the bound, not only the published ones."
)
_MAX_BLOCKS = flags.DEFINE_integer(
    "max_blocks",
    None,
    "Score at most this many blocks of a data set, evenly spaced.",
    lower_bound=1,
)
_INTERVAL = flags.DEFINE_integer(
    "interval", None, "Draws for bounds on both sides of a likelihood (absorbing).", lower_bound=2
)
_BLOCK = flags.DEFINE_integer(
    "block", None, "For --interval: tokens drawn in any order, then the next ones.", lower_bound=1
)
_PUBLISHED = flags.DEFINE_enum(
    "published", "comparable", ["comparable", "all"], "Which published figures to print."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all draws.", lower_bound=0, upper_bound=2**32 - 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Blocks or samples at a time.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, f"Folder for the results; RUN/{FOLDER} by default.")
_OF_LIKELIHOODS = (
    _DATA, _SOURCES, _DOWNLOAD, _PROTOCOL, _DRAWS, _TIMES, _COMPLETE, _MAX_BLOCKS, _INTERVAL,
    _BLOCK, _PUBLISHED,
)  # fmt: skip


def main() -> None:
    """Evaluates a model, or sequences, as the flags say."""
    if _SUITE.value == [SEQUENCES]:
        _compare_sequences()
        return
    _MODEL()
    if SEQUENCES in (_SUITE.value or ()):
        raise BadInput(f"--suite={SEQUENCES} compares files and needs no model: give it alone.")
    if given := _given(_OF_SEQUENCES):
        raise BadInput(f"{given} is for --suite={SEQUENCES}, which is not requested.")
    if wrong := [suite for suite in _SUITE.value or [""] if suite not in _SUITES]:
        raise BadInput(f"--suite must be one or more of {', '.join(_SUITES)}, not {wrong[0]!r}.")
    scored = [suite for suite in _SUITE.value if suite not in (QUALITY, FRONTIER)]
    sampled = [suite for suite in _SUITE.value if suite in (QUALITY, FRONTIER)]
    _check_flags(scored, sampled)
    check_plots()
    initialize_distributed(*(flag.value for flag in _PROCESSES))
    choices = _choices()

    def resolve():
        catalog = DatasetCatalog(_DATA.value, cli.named_files(_SOURCES), _DOWNLOAD.value)
        return catalog, *likelihood.resolve_suites(scored, catalog, _PROTOCOL.value)

    catalog, names, missing = processes.run_primary_first(resolve, resolve)
    settings = None
    if sampled:
        settings = _OF_SAMPLES.settings(sampled[0], seed=_SEED.value, batch_size=_BATCH_SIZE.value)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(mirror.opened(_folder(), "--output"))
        processes.on_primary(lambda: stack.enter_context(mirror.synced(folder, "--output")))
        mesh = meshes.build_mesh(cli.mesh_from(_MESH) or MeshConfig())
        checkpoint = load(**_MODEL(), mesh=mesh)
        for suite, words in missing.items():
            log_on_primary("\n  ".join([f"Of {suite} there is no data for:", *words]))
        planned = settings and _planned(checkpoint, settings, mesh)
        records = _likelihoods(checkpoint, names, catalog, choices, folder)
        records += quality.run(planned, folder) if planned else []
        processes.on_primary(lambda: _show(records))
        processes.on_primary(lambda: summary.write(folder))
        print_on_primary(f"\nRecords, summary and plots: {mirror.shown(folder)}")


def _compare_sequences():
    """Prints the figures of drawn and real sequences, and writes them into --output."""
    if flags.FLAGS["checkpoint"].present:
        raise BadInput(
            f"--suite={SEQUENCES} compares files: draw with sedd_jax.sample, give --samples=FILE "
            "and leave --checkpoint out."
        )
    reference = _OF_SAMPLES.reference
    others = [flag for flag in (*_OF_LIKELIHOODS, *_OF_SAMPLES) if flag is not reference]
    if given := _given(others):
        raise BadInput(f"{given} has no meaning for --suite={SEQUENCES}: leave it out.")
    with contextlib.ExitStack() as stack:
        if _OUTPUT.value:
            folder = stack.enter_context(mirror.opened(_OUTPUT.value, "--output"))
            stack.enter_context(mirror.synced(folder, "--output"))
        report = sequence_report.measure(_OF_SEQUENCES.settings(reference.value, _SEED.value))
        print(f"{report.table.title}\n\n{markdown(report.table)}")
        if _OUTPUT.value:
            _open(folder)
            print(f"\nFigures: {mirror.shown(report.save(folder))}")


def _check_flags(scored, sampled):
    """Raises BadInput for flags without effect, or that need others."""
    if not scored and (given := _given(_OF_LIKELIHOODS)):
        raise BadInput(f"{given} is for likelihoods, and --suite={sampled[0]} has none.")
    if not sampled and (given := _given(_OF_SAMPLES)):
        raise BadInput(f"{given} is for --suite={QUALITY} or {FRONTIER}, which is not requested.")
    if len(sampled) > 1:
        raise BadInput(f"--suite={FRONTIER} has all that {QUALITY} has: give one of them, once.")
    if sampled:
        _OF_SAMPLES.check(sampled[0])
    if _BLOCK.value and not _INTERVAL.value:
        raise BadInput("--block is that of --interval=DRAWS, which is not given.")


def _given(several):
    return ", ".join(f"--{flag.name}" for flag in several if flag.present)


def _choices():
    return Choices(
        protocol=_PROTOCOL.value,
        draws=_DRAWS.value,
        times=_TIMES.value,
        complete=_COMPLETE.value,
        seed=_SEED.value,
        max_blocks=_MAX_BLOCKS.value,
    )


def _likelihoods(
    checkpoint: TrainedModel,
    names: list[str],
    catalog: DatasetCatalog,
    choices: Choices,
    folder: Path,
) -> list[Record]:
    """The records of data sets."""

    def load_sets():
        return likelihood.load_sets(checkpoint, names, catalog, choices)

    def load_first():
        sets = load_sets()  # process 0 downloads for all
        _open(folder)
        return sets

    shared = {"averaged": _MODEL()["ema"], "batch_size": _BATCH_SIZE.value}
    enclosing = _INTERVAL.value and interval.Settings(_INTERVAL.value, _BLOCK.value, _SEED.value)
    if enclosing:
        enclosing.check(checkpoint)
    sets = processes.run_primary_first(load_first, load_sets)
    records = likelihood.measure(checkpoint, sets, choices, folder, **shared)
    if enclosing:
        records += interval.measure(checkpoint, sets, enclosing, folder, **shared)
    return records


def _planned(checkpoint: TrainedModel, settings: quality.Settings, mesh: Mesh) -> quality.Plan:
    asked = _OF_SAMPLES
    if not checkpoint.family.infills:
        names = sampling_names(checkpoint.family)
        of_diffusion = (asked.steps, asked.sampler, asked.tempering)
        foreign = [flag for flag in of_diffusion if flag.name not in names]
        cli.refuse_flags_of_others(checkpoint.config.family, {"diffusion": foreign})
    scorer = None
    if asked.judge.value:
        scorer = load(
            asked.judge.value,
            mesh=mesh,
            tokenizer=asked.judge_tokenizer.value,
            trust_code=_MODEL()["trust_code"],
        )
    return quality.plan(
        checkpoint,
        settings,
        averaged=_MODEL()["ema"],
        scorer=scorer,
        reference=asked.reference.value,
    )


def _show(records: list[Record]) -> None:
    """Prints tables of the records."""
    tables = summary.tables(records, all_published=_PUBLISHED.value == "all")
    print("\n\n".join(f"{table.title}\n\n{markdown(table)}" for table in tables))


def _folder():
    """The path or address of the folder of the results."""
    if _OUTPUT.value:
        return _OUTPUT.value
    model = fetched(_MODEL()["path"])
    if not has(model):
        raise BadInput(
            f"{model} is no run folder, here or in a bucket: give --output=FOLDER for the results."
        )
    return mirror.shown(model / FOLDER)


def _open(folder):
    """Creates the folder of the results, and checks that it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be created or written to ({error.strerror}): give another --output."
        ) from error


if __name__ == "__main__":
    cli.run(main)
