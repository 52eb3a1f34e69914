"""Evaluates a model: `python -m sedd_jax.evaluate --checkpoint=runs/tiny --suite=heldout`.

Likelihoods of data sets, with all that they depend on: `--suite=zeroshot --data=FOLDER` for those
of the paper. Quality of samples: `--suite=quality --judge=FOLDER`, for one sampler setting or many.
DNA, proteins: `--suite=sequences --samples=drawn.fasta --reference=real.fasta`, without a model.
Every figure is written to its own file as soon as it is known; the same command continues from
there.
"""

import tempfile
from pathlib import Path

from absl import flags
from jax.sharding import Mesh

from sedd_jax.display.plot import check_plots
from sedd_jax.display.table import markdown
from sedd_jax.errors import BadInput
from sedd_jax.evaluation import likelihood, quality, sequence_report, summary
from sedd_jax.evaluation.catalog import DatasetCatalog
from sedd_jax.evaluation.protocol import CONVENTIONS, Choices
from sedd_jax.evaluation.record import FOLDER, Record, log_on_primary
from sedd_jax.experiment import checkpoint as checkpoints
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.family import sampling_names
from sedd_jax.inference.likelihood import TIMES
from sedd_jax.inference.load import load
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.oracle import ORACLES
from sedd_jax.inference.sampling import SAMPLERS, TEMPERINGS
from sedd_jax.system import processes
from sedd_jax.system.files import check_local
from sedd_jax.system.joining import initialize_distributed
from sedd_jax.system.processes import print_on_primary

_MODEL = cli.define_model_flags()
_PROCESSES = cli.define_process_flags()
_MESH = flags.DEFINE_list(
    "mesh", None, "Axes of devices, as in fsdp:4,tensor:2; by default a copy on every device."
)
_QUALITY = "quality"
_SEQUENCES = "sequences"
_SUITES = (*likelihood.SUITES, _QUALITY, _SEQUENCES)
_SUITE = flags.DEFINE_list("suite", None, f"What to evaluate: {', '.join(_SUITES)}.")
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
_PUBLISHED = flags.DEFINE_enum(
    "published", "comparable", ["comparable", "all"], "Which published figures to print."
)
_JUDGE = flags.DEFINE_string(
    "judge", None, "A causal model that scores the samples: a run, a GPT-2, or OWNER/NAME."
)
_JUDGE_TOKENIZER = flags.DEFINE_string(
    "judge_tokenizer", None, "The tokenizer of --judge, if it is not beside it."
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "Real text to compare samples with: a file, or heldout."
)
_MAUVE = flags.DEFINE_bool("mauve", False, "Measure MAUVE; it needs --judge and --reference.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "Samples.", lower_bound=2)
_LENGTH = flags.DEFINE_integer("length", None, "Tokens per sample; the trained length by default.")
_STEPS = flags.DEFINE_list(
    "steps",
    ["default"],
    "Evaluations before the final one; several make a sweep: 16,64,256. By default 128, or up to "
    "one per token where each is drawn once.",
)
_SAMPLERS = flags.DEFINE_multi_string(
    "sampler",
    ["tweedie"],
    f"{', '.join(SAMPLERS.names)}, or the path module:class of your own; repeat it for a sweep.",
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Below 1 sharpens the distribution; 0 is greedy."
)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the smallest set of tokens with this mass.")
_TEMPERING = flags.DEFINE_enum(
    "tempering",
    "token",
    TEMPERINGS,
    "What both act on: the token of a changing position, or (uniform graph) that given all others.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all draws.", lower_bound=0, upper_bound=2**32 - 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Blocks or samples at a time.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, f"Folder for the results; RUN/{FOLDER} by default.")
_SAMPLES = flags.DEFINE_string("samples", None, "File of drawn sequences: FASTA, CSV and others.")
_TRAINING = flags.DEFINE_string("training", None, "File of the sequences that were trained on.")
_JUDGE_DATA = flags.DEFINE_string(
    "judge_data", None, "File of real sequences from which a classifier learns the classes."
)
_FIELD = flags.DEFINE_string("field", "text", "The column of sequences, in files with columns.")
_LABEL = flags.DEFINE_string("label", None, "The column of their classes.")
_KMERS = flags.DEFINE_list("kmer", ["3", "6"], "Lengths of the k-mers whose spectra are compared.")
_MOTIFS = flags.DEFINE_multi_string(
    "motif", [], "A rule POSITION:REGEX, as in 30:GT after 30 letters; may be repeated."
)
_ORACLE = flags.DEFINE_string(
    "oracle", None, f"{', '.join(ORACLES.names)}, or the path module:function of your own."
)
_TARGET = flags.DEFINE_string("target", None, "The column with what the oracle should give.")
_OF_SEQUENCES = (
    _SAMPLES, _TRAINING, _JUDGE_DATA, _FIELD, _LABEL, _KMERS, _MOTIFS, _ORACLE, _TARGET,
)  # fmt: skip
_OF_LIKELIHOODS = (
    _DATA, _SOURCES, _DOWNLOAD, _PROTOCOL, _DRAWS, _TIMES, _COMPLETE, _MAX_BLOCKS, _PUBLISHED,
)  # fmt: skip
_OF_QUALITY = (
    _JUDGE, _JUDGE_TOKENIZER, _REFERENCE, _MAUVE, _NUM_SAMPLES, _LENGTH, _STEPS, _SAMPLERS,
    _TEMPERATURE, _TOP_P, _TEMPERING,
)  # fmt: skip


def main() -> None:
    """Evaluates a model, or sequences, as the flags say."""
    if _SUITE.value == [_SEQUENCES]:
        _compare_sequences()
        return
    _MODEL()
    if _SEQUENCES in (_SUITE.value or ()):
        raise BadInput(f"--suite={_SEQUENCES} compares files and needs no model: give it alone.")
    if given := _given(_OF_SEQUENCES):
        raise BadInput(f"{given} is for --suite={_SEQUENCES}, which is not requested.")
    if wrong := [suite for suite in _SUITE.value or [""] if suite not in _SUITES]:
        raise BadInput(f"--suite must be one or more of {', '.join(_SUITES)}, not {wrong[0]!r}.")
    scored = [suite for suite in _SUITE.value if suite != _QUALITY]
    _check_flags(scored)
    check_plots()
    initialize_distributed(*(flag.value for flag in _PROCESSES))
    choices = _choices()

    def resolve():
        catalog = DatasetCatalog(
            _DATA.value and Path(_DATA.value), cli.named_files(_SOURCES), _DOWNLOAD.value
        )
        return catalog, *likelihood.resolve_suites(scored, catalog, _PROTOCOL.value)

    catalog, names, missing = processes.run_primary_first(resolve, resolve)
    settings = _sampling() if _QUALITY in _SUITE.value else None
    folder = _folder()
    mesh = meshes.build_mesh(cli.mesh_from(_MESH) or MeshConfig())
    checkpoint = load(**_MODEL(), mesh=mesh)
    for suite, words in missing.items():
        log_on_primary("\n  ".join([f"Of {suite} there is no data for:", *words]))
    planned = settings and _planned(checkpoint, settings, mesh)
    records = _likelihoods(checkpoint, names, catalog, choices, folder)
    records += quality.run(planned, folder) if planned else []
    processes.on_primary(lambda: _show(records))
    processes.on_primary(lambda: summary.write(folder))
    print_on_primary(f"\nRecords, summary and plots: {folder}")


def _compare_sequences():
    """Prints the figures of drawn and real sequences, and writes them into --output."""
    if flags.FLAGS["checkpoint"].present:
        raise BadInput(
            f"--suite={_SEQUENCES} compares files: draw with sedd_jax.sample, give --samples=FILE "
            "and leave --checkpoint out."
        )
    others = [flag for flag in (*_OF_LIKELIHOODS, *_OF_QUALITY) if flag is not _REFERENCE]
    if given := _given(others):
        raise BadInput(f"{given} has no meaning for --suite={_SEQUENCES}: leave it out.")
    if not (_SAMPLES.value and _REFERENCE.value):
        raise BadInput(
            f"--suite={_SEQUENCES} needs --samples=FILE and --reference=FILE: drawn and real "
            "sequences."
        )
    if not all(each.isdigit() for each in _KMERS.value):
        raise BadInput(f"--kmer={','.join(_KMERS.value)} must be whole numbers, as in 3,6.")
    report = sequence_report.measure(
        sequence_report.Settings(
            samples=_SAMPLES.value,
            reference=_REFERENCE.value,
            training=_TRAINING.value,
            judge_data=_JUDGE_DATA.value,
            field=_FIELD.value,
            label=_LABEL.value,
            kmers=tuple(map(int, _KMERS.value)),
            motifs=tuple(_MOTIFS.value),
            oracle=_ORACLE.value,
            target=_TARGET.value,
            seed=_SEED.value,
        )
    )
    print(f"{report.table.title}\n\n{markdown(report.table)}")
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
        check_local(folder, "--output")
        _open(folder)
        print(f"\nFigures: {report.save(folder)}")


def _check_flags(scored):
    """Raises BadInput for flags without effect."""
    if not scored and (given := _given(_OF_LIKELIHOODS)):
        raise BadInput(f"{given} is for likelihoods, and --suite={_QUALITY} has none.")
    if _QUALITY not in _SUITE.value and (given := _given(_OF_QUALITY)):
        raise BadInput(f"{given} is for --suite={_QUALITY}, which is not requested.")
    if _JUDGE_TOKENIZER.value and not _JUDGE.value:
        raise BadInput("--judge_tokenizer is that of --judge, which is not given.")
    if _MAUVE.value and not (_JUDGE.value and _REFERENCE.value):
        raise BadInput(
            "--mauve compares features of samples and of real text: give --judge and --reference."
        )


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

    sets = processes.run_primary_first(load_first, load_sets)
    return likelihood.measure(
        checkpoint,
        sets,
        choices,
        folder,
        averaged=_MODEL()["ema"],
        batch_size=_BATCH_SIZE.value,
    )


def _sampling():
    """The sampling settings of the flags."""
    try:
        steps = tuple(None if each == "default" else int(each) for each in _STEPS.value)
    except ValueError as error:
        raise BadInput(
            f"--steps={','.join(_STEPS.value)} must be numbers or default, as in 16,64,256."
        ) from error
    settings = quality.Settings(
        num_samples=_NUM_SAMPLES.value,
        length=_LENGTH.value,
        steps=tuple(dict.fromkeys(steps)),
        samplers=tuple(dict.fromkeys(_SAMPLERS.value)),
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        tempering=_TEMPERING.value,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
        mauve=_MAUVE.value,
    )
    settings.check()
    return settings


def _planned(checkpoint: TrainedModel, settings: quality.Settings, mesh: Mesh) -> quality.Plan:
    if not checkpoint.family.infills:
        names = sampling_names(checkpoint.family)
        foreign = [flag for flag in (_STEPS, _SAMPLERS, _TEMPERING) if flag.name not in names]
        cli.refuse_flags_of_others(checkpoint.config.family, {"diffusion": foreign})
    scorer = None
    if _JUDGE.value:
        scorer = load(
            _JUDGE.value,
            mesh=mesh,
            tokenizer=_JUDGE_TOKENIZER.value,
            trust_code=_MODEL()["trust_code"],
        )
    return quality.plan(
        checkpoint, settings, averaged=_MODEL()["ema"], scorer=scorer, reference=_REFERENCE.value
    )


def _show(records: list[Record]) -> None:
    """Prints tables of the records."""
    tables = summary.tables(records, all_published=_PUBLISHED.value == "all")
    print("\n\n".join(f"{table.title}\n\n{markdown(table)}" for table in tables))


def _folder():
    """The folder of the results."""
    model = Path(_MODEL()["path"])
    if _OUTPUT.value:
        folder = Path(_OUTPUT.value)
    elif (model / checkpoints.FOLDER).is_dir():
        folder = model / FOLDER
    else:
        raise BadInput(f"{model} is not a local run folder: give --output=FOLDER.")
    check_local(folder, "--output")
    return folder


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
