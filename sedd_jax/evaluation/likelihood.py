"""How likely a model finds texts, by a stated protocol, one record for each data set."""

import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.blocks import Blocks, of_heldout, of_text
from sedd_jax.evaluation.datasets import TEXT_SETS, ZEROSHOT
from sedd_jax.evaluation.protocol import BOUNDS, CONVENTIONS, EXACT, Choices, Frame, Protocol
from sedd_jax.evaluation.record import Record, answered, identity, save
from sedd_jax.evaluation.texts import Library
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.inference.likelihood import NLLEstimate, nll_bound
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system import processes
from sedd_jax.system.processes import is_primary
from sedd_jax.system.progress import progress

HELDOUT = "heldout"
GROUPS = {"zeroshot": ZEROSHOT}
SUITES = (*GROUPS, HELDOUT, *TEXT_SETS)


class Subject(NamedTuple):
    """A text, ready to be scored."""

    name: str
    blocks: Blocks
    protocol: Protocol


def names_of(
    suites: Sequence[str], library: Library, protocol: str
) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the data sets of suites, and for each group what it lacks, in words.

    Raises:
      BadInput: no such suite, one named by itself that is missing, or a group without data.
    """
    names, lacking = [], {}
    for suite in suites:
        if suite not in SUITES:
            raise BadInput(f"There is no suite {suite!r}; there are {', '.join(SUITES)}.")
        members = GROUPS.get(suite, (suite,))
        texts = [name for name in members if name != HELDOUT]
        splits = {name: TEXT_SETS[name].split(protocol) for name in texts}
        missing = [name for name in texts if not library.find(name, splits[name])]
        words = [library.missing(name, splits[name]) for name in missing]
        if len(missing) == len(members):
            raise BadInput(f"There is no data for --suite={suite}. Looked for {'; '.join(words)}.")
        if missing:
            lacking[suite] = words
        names += [name for name in members if name not in (*missing, *names)]
    return names, lacking


def gather(
    checkpoint: TrainedModel, names: Sequence[str], library: Library, choices: Choices
) -> list[Subject]:
    """Reads and encodes the data sets.

    Raises:
      BadInput: one is missing or cannot be read, the checkpoint has no tokenizer, or one that has
        no ids for a text, or it has no held-out split.
    """
    return [_gather(checkpoint, name, library, choices) for name in names]


def _gather(checkpoint, name, library, choices):
    config = checkpoint.config
    drawn, length = not checkpoint.family.exact_likelihood, config.model.length

    def frame_for(tokenizer: Tokenizer) -> Frame:
        return CONVENTIONS[choices.protocol](length, tokenizer.eod_id, not drawn)

    if name == HELDOUT:
        blocks = of_heldout(_run_folder(checkpoint), length, frame_for)
    else:
        blocks = _blocks_of(checkpoint, name, library, choices.protocol, frame_for)
    blocks = blocks.spaced(choices.max_blocks)
    protocol = Protocol(
        protocol=choices.protocol,
        **blocks.story,
        length=length,
        t=choices.times if drawn else None,
        draws=choices.draws if drawn else None,
        t_min=config.train.t_min if drawn else None,
        bound=BOUNDS[choices.complete] if drawn else EXACT,
        seed=choices.seed if drawn else None,
        tokenizer=blocks.tokenizer.fingerprint(),
    )
    return Subject(name, blocks, protocol)


def _run_folder(checkpoint):
    folder = checkpoint.folder
    if folder is None or not (folder / DATA_FOLDER).is_dir():
        raise BadInput(f"{folder} has no {DATA_FOLDER}/ of a run, whose held-out split is scored.")
    return folder


def _blocks_of(checkpoint, name, library, protocol, frame_for):
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        raise BadInput(f"{name} is text, and the checkpoint has no tokenizer: give --tokenizer.")
    text = library.read(name, TEXT_SETS[name].split(protocol))
    try:
        return of_text(text, tokenizer, frame_for(tokenizer))
    except BadInput as error:
        raise BadInput(f"{name}, {text.source}: {error}") from error


def measure(
    checkpoint: TrainedModel,
    subjects: Sequence[Subject],
    choices: Choices,
    folder: Path,
    *,
    averaged: bool = True,
    batch_size: int = 32,
) -> list[Record]:
    """Returns the records of texts, from `folder` if they are there, else computed and saved there.

    All processes of a job call this with the same texts and compute; the lead reads and writes.

    Args:
      checkpoint: the model.
      subjects: the texts.
      choices: as they were given to `gather`.
      folder: of records.
      averaged: whether the weights are averages, for the record.
      batch_size: rows at a time; it makes no difference to the figures.

    Raises:
      BadInput: processes of a job have different texts or settings, or a record is none.
      FloatingPointError: a loss is not finite.
    """
    # each process computes the rows that fall to it from its own copy
    facts = [*map(_facts, subjects), choices, averaged, batch_size]
    processes.assert_equal_across_processes(repr(facts), "data or settings")
    model = identity(checkpoint, averaged=averaged) if subjects else {}
    return [
        _measure(checkpoint, model, subject, choices, folder, batch_size) for subject in subjects
    ]


def _facts(subject):
    arrays = subject.blocks.tokens, subject.blocks.lengths
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    return subject.name, subject.protocol, digests


def _measure(checkpoint, model, subject, choices, folder, batch_size):
    protocol = dataclasses.asdict(subject.protocol)
    question = Record("likelihood", subject.name, model, protocol)
    known = processes.on_primary(lambda: answered(folder, question))
    if processes.broadcast_from_primary(known is not None):
        if is_primary():
            print(f"{subject.name}: known from {question.file}", file=sys.stderr, flush=True)
        return known or question
    started = time.monotonic()
    with progress(subject.name) as advance:
        bound = nll_bound(
            jax.random.key(choices.seed),
            checkpoint,
            subject.blocks.tokens,
            lengths=subject.blocks.lengths,
            batch_size=batch_size,
            draws=choices.draws,
            times=choices.times,
            complete=choices.complete,
            progress=advance,
        )
    figures = _figures(subject, bound) | {"seconds": time.monotonic() - started}
    record = dataclasses.replace(question, figures=figures)
    processes.on_primary(lambda: save(folder, record))
    if math.isnan(bound.stderr) and math.isfinite(bound.nats_per_token) and is_primary():
        print(
            f"{subject.name}: the error of one block cannot be told from one draw or by quadrature:"
            " raise --draws, --times=low-discrepancy.",
            file=sys.stderr,
            flush=True,
        )
    return record


def _figures(subject: Subject, bound: NLLEstimate) -> dict[str, Any]:
    tokens, blocks = int(np.sum(bound.tokens)), subject.blocks
    bits_per_token = bound.nats_per_token / math.log(2)
    return {
        "tokens": tokens,
        "blocks": len(blocks.tokens),
        "documents": blocks.documents or None,  # a part has parts of them
        "bytes": blocks.utf8_bytes,
        "exact": bound.times == "exact",
        "nats_per_token": bound.nats_per_token,
        "stderr": bound.stderr,
        "data_stderr": bound.data_stderr,
        "bits_per_token": bits_per_token,
        "bits_per_byte": bits_per_token * tokens / blocks.utf8_bytes
        if blocks.utf8_bytes
        else math.nan,
        "perplexity": bound.perplexity,
        "perplexity_stderr": bound.perplexity_stderr,
        "by_t": bound.by_t,
    }
