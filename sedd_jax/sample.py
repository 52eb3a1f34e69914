"""Draws samples: `python -m sedd_jax.sample --checkpoint=runs/tiny`.

Prints text, or writes a file with --output, in the format of its ending: JSON lines, text, CSV, npz
or FASTA. `--template="Once[MASK:12] the end."` fills in.
`--input=prompts.jsonl --output=out.jsonl` draws a row for every line, on all devices and hosts; the
same command resumes it. `--trace` shows one sample being denoised, `--html=FILE` writes a page that
replays all of them. `--temperature` and `--top_p` depart from the model's distribution.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from sedd_jax.diffusion.guidance import RATIOS
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.experiment import cli
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.classifier import with_classifier
from sedd_jax.inference.conditions import check_guided, conditions_of, told_prompt
from sedd_jax.inference.family import sampling_names
from sedd_jax.inference.generate import generate, split_overlap
from sedd_jax.inference.guidance import CONSTRAINTS
from sedd_jax.inference.load import load
from sedd_jax.inference.sampling import CONDITIONINGS, SAMPLERS, TEMPERINGS, sampler_named
from sedd_jax.inference.stream import generate_stream
from sedd_jax.inference.template import max_tokens, pad, row_between, row_from_template
from sedd_jax.jobs import job
from sedd_jax.jobs.formats import FORMATS, JSON_LINES, check_format
from sedd_jax.jobs.output import read_records, write_new
from sedd_jax.jobs.page import write_page
from sedd_jax.system import mirror, processes
from sedd_jax.system.files import check_output_path
from sedd_jax.system.joining import initialize_distributed
from sedd_jax.system.outputs import opened_file, output_file
from sedd_jax.system.registry import is_dotted

_MODEL = cli.define_model_flags()
_MESH = flags.DEFINE_list(
    "mesh", None, "Axes of devices, as in fsdp:4,tensor:2; one, or with --input a copy on each."
)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Number of samples.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Samples drawn at a time.")
_LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens per sample; the trained length by default, or the template's own."
)
_STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Evaluations before the final one; 128, or up to one per token where each is drawn once.",
)
_SAMPLER = flags.DEFINE_string(
    "sampler", "tweedie", f"{', '.join(SAMPLERS.names)}, or the path module:class of your own."
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Not 1: departs from the model's distribution; 0 draws the likeliest token."
)
_TOP_P = flags.DEFINE_float(
    "top_p",
    1.0,
    "Below 1: departs from it too; draws from the fewest tokens of this mass.",
)
_TEMPERING = flags.DEFINE_enum(
    "tempering",
    "token",
    TEMPERINGS,
    "What both act on: the token of a changing position, or (uniform graph) that given all others.",
)
_CONDITIONING = flags.DEFINE_enum(
    "conditioning",
    "clamp",
    CONDITIONINGS,
    "Uniform graph: how samples are conditioned on given tokens.",
)
_PARTICLES = flags.DEFINE_integer("particles", 1, "Copies of a row for --conditioning=resample.")
_GUIDANCE = flags.DEFINE_float(
    "guidance",
    1.0,
    "Power of the evidence for the condition and the classifier; 0: unconditional, 2: exaggerated.",
)
_CLASSIFIER = flags.DEFINE_string(
    "classifier",
    None,
    "Run folder of config.family=classifier, whose class --condition tells; or the path "
    "module:function(option=value) of log p(c | noised tokens).",
)
_CLASSIFIER_RATIOS = flags.DEFINE_enum(
    "classifier_ratios", "exact", RATIOS, "Every neighbour evaluated, or one gradient."
)
_CONSTRAINT = flags.DEFINE_string(
    "constraint",
    None,
    f"{', '.join(CONSTRAINTS.names)} with options: count(tokens=(1, 2), at_least=20), or a path.",
)
_OVERLAP = flags.DEFINE_integer(
    "overlap", None, "Tokens shared by the windows of longer rows; half the trained length."
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "A sample is a function of the seed and its number; with --input, its id.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_PREFIX = flags.DEFINE_string("prefix", "", "Text that every sample begins with.")
_SUFFIX = flags.DEFINE_string("suffix", "", "Text that every sample ends with.")
_TEMPLATE = flags.DEFINE_string(
    "template", None, "Text with holes: [MASK:12] is one of 12 tokens, [MASK:*] fills up."
)
_CONDITION = flags.DEFINE_string(
    "condition",
    None,
    "What the model is told, with values as in the data: class=EI,activity=0.3; else nothing.",
)
_INPUT = flags.DEFINE_string("input", None, "File of JSON lines, each a row to draw.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    f"New file in the format of its ending, {', '.join(FORMATS)}; with --input, {JSON_LINES} may "
    "have some of its rows.",
)
_TRACE = flags.DEFINE_bool(
    "trace", False, "Show the denoising of one sample, instead of --num_samples."
)
_FRAMES = flags.DEFINE_integer("frames", 8, "Moments shown by --trace.", lower_bound=2)
_HTML = flags.DEFINE_string("html", None, "Page that replays the sampling; a new file.")
_PROCESSES = cli.define_process_flags()
_PLAIN = "plain samples"
# modes: the flags that have an effect in these alone
_FLAGS_OF_MODES = {
    ("--input",): _PROCESSES,
    ("--trace",): (_FRAMES,),
    (_PLAIN, "--input"): (_OUTPUT, _BATCH_SIZE),
    (_PLAIN, "--html"): (_NUM_SAMPLES,),
    (_PLAIN, "--html", "--trace"): (_LENGTH, _PREFIX, _SUFFIX, _TEMPLATE, _CONDITION),
}
_GUIDING = (_GUIDANCE, _CLASSIFIER, _CLASSIFIER_RATIOS, _CONSTRAINT)
_OF_DIFFUSION = (_STEPS, _SAMPLER, _TEMPERING, _CONDITIONING, _PARTICLES, _OVERLAP, *_GUIDING)
_SETTINGS = (*_OF_DIFFUSION, _TEMPERATURE, _TOP_P)
_DIFFUSION_FLAGS = (*_OF_DIFFUSION, _TRACE, _FRAMES, _HTML)


def main() -> None:
    """Samples as the flags say."""
    _MODEL()
    _check_flags()
    if _INPUT.value is None:
        _draw_samples()
    else:
        _run_job()


def _check_flags():
    """Raises BadInput for a flag that has no effect, and for an unknown sampler."""
    if _SAMPLER.present:
        sampler_named(_SAMPLER.value)
    modes = [flag for flag in (_INPUT, _TRACE, _HTML) if flag.value not in (None, False)]
    if len(modes) > 1:
        names = " and ".join(f"--{flag.name}" for flag in modes)
        raise BadInput(f"{names} show samples in different ways: give one of them.")
    mode = f"--{modes[0].name}" if modes else _PLAIN
    for allowed, flags_of_modes in _FLAGS_OF_MODES.items():
        for flag in flags_of_modes:
            if flag.present and mode not in allowed:
                raise BadInput(f"--{flag.name} is for {' or '.join(allowed)}, and not for {mode}.")


def _run_job():
    """Draws a row for every line of --input."""
    if not _OUTPUT.value:
        raise BadInput("--input needs --output=FILE, where its rows are written.")
    # rows are appended to JSON lines; a file of another format is written from them at the end
    is_appended = Path(_OUTPUT.value).suffix == JSON_LINES
    beside = "" if is_appended else JSON_LINES
    with opened_file(_OUTPUT.value, "--output", beside) as output:
        records = output if is_appended else output.with_name(output.name + JSON_LINES)
        _fill_in(output, records)


def _fill_in(output, records):
    """Draws the rows that `records` lacks, and writes them to `output` as well if it is another."""
    is_appended = output == records

    def check_output():
        mirror.pull(output.parent, "--output")
        check_output_path(output, must_be_new=not is_appended)
        check_format(output)
        check_output_path(records, must_be_new=False)

    def check_source():
        source = mirror.local_file(_INPUT.value, "--input")
        if not (source.is_file() and source.stat().st_size):
            raise BadInput(
                f"--input={source} is no file, or empty: it must hold a JSON line for a row."
            )
        return source

    # before anything that may fail on one host alone
    initialize_distributed(*(flag.value for flag in _PROCESSES))
    processes.on_primary(check_output)
    source = processes.run_primary_first(check_source, check_source)
    resumption = f"the same command continues with the rows not in {mirror.shown(records)}."
    with processes.end_on_signal(), processes.abort_with_peers(resumption):
        model = _model(meshes.build_mesh(cli.mesh_from(_MESH) or MeshConfig()))
        check_format(output, model.tokenizer, loaded=True)
        settings = _settings(model)
        processes.print_on_primary(f"A signal ends the job at once; {resumption}")
        job.run(
            model,
            source,
            records,
            seed=_SEED.value,
            batch_size=_BATCH_SIZE.value,
            settings=settings,
        )
        if not is_appended:
            processes.on_primary(lambda: write_new(output, read_records(records)))
            processes.print_on_primary(f"They are in {mirror.shown(output)} too.")


def _draw_samples():
    """Draws --num_samples from the same prompt."""
    with contextlib.ExitStack() as stack:
        output, page = (
            None if it.value is None else stack.enter_context(output_file(it.value, f"--{it.name}"))
            for it in (_OUTPUT, _HTML)
        )
        _draw_into(output, page)


def _draw_into(output, page):
    """Writes the samples to a file, or a page about them, or prints them."""
    if output:
        check_output_path(output)
        check_format(output)
    if page:
        check_output_path(page, "--html")
    model = _model(cli.mesh_from(_MESH))
    if output:
        check_format(output, model.tokenizer, loaded=True)
    settings = _settings(model)
    told, prompt = _told(model), _prompt(model)
    key = jax.random.key(_SEED.value)
    options = settings | {"batch_size": _BATCH_SIZE.value}
    started = time.monotonic()
    if _TRACE.value:
        tokens, diagnostics = generate(key, model, prompt=prompt, trace=True, **options)
        evaluations = diagnostics.evaluations
        per_step = model.family.sampling(**settings).method.evaluations_per_step
        _show_trace(model, diagnostics.trace[:, 0], per_step)
    elif page:
        facts = {"model": model.name or "", "step": model.step, "seed": _SEED.value} | settings
        facts["condition"] = _CONDITION.value
        facts = {name: str(value) for name, value in facts.items() if value is not None}
        snapshots = generate_stream(key, model, prompt, **settings)
        last = write_page(page, model, prompt, snapshots, facts)
        tokens, evaluations = last.tokens, last.evaluations
    else:
        tokens, diagnostics = generate(key, model, prompt=prompt, **options)
        evaluations = diagnostics.evaluations
    seconds = time.monotonic() - started
    if output:
        rows = zip(evaluations.tolist(), np.asarray(prompt.held), tokens, strict=True)
        records = [
            {"index": index, "seed": _SEED.value, **settings, **told, "evaluations": nfe}
            | job.decode(model.tokenizer, held, row)
            for index, (nfe, held, row) in enumerate(rows)
        ]
        write_new(output, records)
    elif not _TRACE.value and not page:
        for row in tokens:
            print(f"--- sample ---\n{_text(model.tokenizer, row)}")
    num_samples, length = tokens.shape
    print(
        f"{num_samples} x {length} tokens, {evaluations.mean():g} network evaluations, "
        f"{seconds:.1f} s with compilation.",
        file=sys.stderr,
    )


def _model(mesh):
    """The model, with the trained classifier that guides it."""
    model, name = load(**_MODEL(), mesh=mesh), _CLASSIFIER.value
    if name is None or is_dotted(name):
        return model
    trust_code = _MODEL()["trust_code"]
    return with_classifier(model, load(name, mesh=model.mesh, trust_code=trust_code))


def _settings(model):
    """The settings of `generate` that the flags give."""
    if not model.family.infills:
        names = sampling_names(model.family)
        foreign = [flag for flag in _DIFFUSION_FLAGS if flag.name not in names]
        cli.refuse_flags_of_others(model.config.family, {"diffusion": foreign})
    given = {flag.name: flag.value for flag in _SETTINGS if flag.present}
    sampling = model.family.sampling(**given)
    check_guided(model, sampling)
    split_overlap(sampling, model.config.model.length)
    return dataclasses.asdict(sampling)


def _prompt(model):
    """The prompt that all samples share."""
    num_samples = 1 if _TRACE.value else _NUM_SAMPLES.value
    check_positive(num_samples=num_samples)
    tokenizer, length = model.tokenizer, _LENGTH.value
    limit = max_tokens(model, length)
    if _TEMPLATE.value is None:
        row = row_between(_PREFIX.value, _SUFFIX.value, tokenizer, length, limit)
    elif _PREFIX.present or _SUFFIX.present:
        raise BadInput("--template holds all the text: write --prefix and --suffix into it.")
    else:
        row = row_from_template(_TEMPLATE.value, tokenizer, length, limit)
    prompt = pad([row] * num_samples, len(row.tokens))
    return told_prompt(model, prompt, _told(model).get("condition"))


def _told(model):
    """What the model is told, as a field of a record."""
    if _CONDITION.value is not None:
        conditions = conditions_of(model)
        return {"condition": conditions.every(conditions.parse(_CONDITION.value))}
    return {"condition": model.conditions.every({})} if model.conditions else {}


def _text(tokenizer, row):
    return " ".join(map(str, row)) if tokenizer is None else tokenizer.decode(row)


def _show_trace(model, path, per_step):
    """Prints frames of the path [S + 1, L], evenly spaced, the first and the last included."""
    nfe = per_step * np.arange(len(path))
    nfe[-1] = nfe[-2] + 1  # the final step
    for frame in np.unique(np.linspace(0, len(path) - 1, _FRAMES.value).round().astype(int)):
        print(f"--- after {nfe[frame]} of {nfe[-1]} network evaluations ---")
        print(_text(model.tokenizer, path[frame]), flush=True)


if __name__ == "__main__":
    cli.run(main)
