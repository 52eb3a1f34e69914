"""Likelihoods of data sets under a stated protocol, one record for each."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sedd_jax.data.round_trip import caveat
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.catalog import DatasetCatalog
from sedd_jax.evaluation.datasets import TEXT_SETS, ZEROSHOT
from sedd_jax.evaluation.protocol import (
    BOUNDS,
    COMPLETE,
    CONVENTIONS,
    EXACT,
    BlockFormat,
    Blocks,
    Choices,
    Protocol,
    of_heldout,
    of_text,
)
from sedd_jax.evaluation.record import Record, describe_model, find_or_measure, log_on_primary
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.inference.likelihood import NLLEstimate, nll_bound
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system import processes
from sedd_jax.system.progress import progress

HELDOUT = "heldout"
GROUPS = {"zeroshot": ZEROSHOT}
SUITES = (*GROUPS, HELDOUT, *TEXT_SETS)


class EvalSet(NamedTuple):
    """The blocks of a data set and the protocol by which they are scored."""

    name: str
    blocks: Blocks
    protocol: Protocol


def resolve_suites(
    suites: Sequence[str], catalog: DatasetCatalog, protocol: str
) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the data sets of suites, and for each group its missing sets, in words.

    Args:
      suites: members of `SUITES`.
      catalog: the data sets that are available.
      protocol: key of `CONVENTIONS`, which determines the splits.

    Raises:
      BadInput: no such suite, a single data set that is missing, or a group without data.
    """
    names, missing_of = [], {}
    for suite in suites:
        if suite not in SUITES:
            raise BadInput(f"There is no suite {suite!r}; there are {', '.join(SUITES)}.")
        members = GROUPS.get(suite, (suite,))
        texts = [name for name in members if name != HELDOUT]
        splits = {name: TEXT_SETS[name].split(protocol) for name in texts}
        missing = [name for name in texts if not catalog.find(name, splits[name])]
        words = [catalog.missing(name, splits[name]) for name in missing]
        if len(missing) == len(members):
            raise BadInput(f"There is no data for --suite={suite}. Looked for {'; '.join(words)}.")
        if missing:
            missing_of[suite] = words
        names += [name for name in members if name not in (*missing, *names)]
    return names, missing_of


def load_sets(
    checkpoint: TrainedModel, names: Sequence[str], catalog: DatasetCatalog, choices: Choices
) -> list[EvalSet]:
    """Reads and encodes data sets.

    Args:
      checkpoint: the model, with the tokenizer that encodes them.
      names: of the data sets.
      catalog: where they are.
      choices: of the protocol.

    Raises:
      BadInput: a data set is missing or unreadable, the checkpoint has no tokenizer or one without
        ids for a text, or it has no held-out split.
    """
    return [_load_set(checkpoint, name, catalog, choices) for name in names]


def _load_set(checkpoint, name, catalog, choices):
    config = checkpoint.config
    drawn, length = not checkpoint.family.exact_likelihood, config.model.length
    cut = not checkpoint.family.complete_bound
    bound = BOUNDS[choices.complete] if cut else COMPLETE if drawn else EXACT

    def format_for(tokenizer: Tokenizer) -> BlockFormat:
        return CONVENTIONS[choices.protocol](length, tokenizer.eod_id, not drawn)

    if name == HELDOUT:
        folder = checkpoint.folder
        if folder is None or not (folder / DATA_FOLDER).is_dir():
            raise BadInput(
                f"{folder} has no {DATA_FOLDER}/ of a run, whose held-out split is scored."
            )
        blocks = of_heldout(folder, length, format_for)
    else:
        tokenizer = checkpoint.tokenizer
        if tokenizer is None:
            raise BadInput(
                f"{name} is text, and the checkpoint has no tokenizer: give --tokenizer."
            )
        text = catalog.read(name, TEXT_SETS[name].split(choices.protocol))
        try:
            blocks = of_text(text, tokenizer, format_for(tokenizer))
        except BadInput as error:
            raise BadInput(f"{name}, {text.source}: {error}") from error
    blocks = blocks.spaced(choices.max_blocks)
    protocol = Protocol(
        protocol=choices.protocol,
        **blocks.provenance,
        length=length,
        t=choices.times if drawn else None,
        draws=choices.draws if drawn else None,
        t_min=config.train.t_min if cut else None,
        bound=bound,
        seed=choices.seed if drawn else None,
        tokenizer=blocks.tokenizer.fingerprint(),
    )
    return EvalSet(name, blocks, protocol)


def measure(
    checkpoint: TrainedModel,
    sets: Sequence[EvalSet],
    choices: Choices,
    folder: Path,
    *,
    averaged: bool = True,
    batch_size: int = 32,
) -> list[Record]:
    """Returns the records of data sets, read from `folder` or else computed and saved there.

    All processes of a job call this with the same sets and compute; process 0 reads and writes.

    Args:
      checkpoint: the model.
      sets: the data sets.
      choices: those given to `load_sets`.
      folder: of records.
      averaged: whether the weights are averages, for the record.
      batch_size: rows at a time; it does not affect the figures.

    Raises:
      BadInput: processes of a job have different data or settings, or a file is not a record.
      FloatingPointError: a loss is not finite.
    """
    # each process computes its share of the rows from its own copy
    facts = [*map(_checksums, sets), choices, averaged, batch_size]
    processes.assert_equal_across_processes(repr(facts), "data or settings")
    model = describe_model(checkpoint, averaged=averaged) if sets else {}
    return [_measure(checkpoint, model, each, choices, folder, batch_size) for each in sets]


def _checksums(eval_set):
    arrays = eval_set.blocks.tokens, eval_set.blocks.lengths
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    return eval_set.name, eval_set.protocol, digests


def _measure(checkpoint, model, eval_set, choices, folder, batch_size):
    name, blocks = eval_set.name, eval_set.blocks
    query = Record("likelihood", name, model, dataclasses.asdict(eval_set.protocol))

    def compute():
        with progress(name) as advance:
            bound = nll_bound(
                jax.random.key(choices.seed),
                checkpoint,
                blocks.tokens,
                lengths=blocks.lengths,
                condition=blocks.told,
                batch_size=batch_size,
                draws=choices.draws,
                times=choices.times,
                complete=choices.complete,
                progress=advance,
            )
        if math.isnan(bound.stderr) and math.isfinite(bound.nats_per_token):
            log_on_primary(
                f"{name}: one block has no standard error with one draw or with quadrature: raise "
                "--draws, with --times=low-discrepancy."
            )
        return _figures(blocks, bound) | _losses(blocks)

    record = find_or_measure(folder, query, compute)
    return dataclasses.replace(record, figures=record.figures | _losses(blocks))


def _figures(blocks: Blocks, bound: NLLEstimate) -> dict[str, Any]:
    tokens, size = int(np.sum(bound.tokens)), blocks.utf8_bytes
    bits_per_token = bound.nats_per_token / math.log(2)
    return {
        "tokens": tokens,
        "blocks": len(blocks.tokens),
        "documents": blocks.documents or None,  # unknown for a part of a text
        "bytes": size,
        "exact": bound.times == "exact",
        "nats_per_token": bound.nats_per_token,
        "stderr": bound.stderr,
        "data_stderr": bound.data_stderr,
        "bits_per_token": bits_per_token,
        "bits_per_byte": bits_per_token * tokens / size if size else math.nan,
        "perplexity": bound.perplexity,
        "perplexity_stderr": bound.perplexity_stderr,
        "by_t": bound.by_t,
        # what two models on the same blocks are compared by
        "nats_by_block": [round(float(nats), 4) for nats in bound.nats.mean(0)],
        **_by_class(blocks, bound),
    }


def _by_class(blocks: Blocks, bound: NLLEstimate) -> dict[str, Any]:
    """The figures of the blocks of every class: (name=class, blocks, nats per token, its error)."""
    labels = [name for name, it in (blocks.told or [{}])[0].items() if isinstance(it, str)]
    rows = []
    for name in labels:
        classes = np.array([each[name] for each in blocks.told])
        for label in np.unique(classes).tolist():
            own = classes == label
            part = NLLEstimate(bound.nats[:, own], bound.tokens[own], bound.times)
            error = part.data_stderr if own.sum() > 1 else None
            rows.append((f"{name}={label}", int(own.sum()), part.nats_per_token, error))
    return {"by_class": rows} if rows else {}


def _losses(blocks: Blocks) -> dict[str, Any]:
    """The figures of a text that the tokenizer changes; none of a text that comes back."""
    if blocks.lost is None:
        return {}
    note = f"bits/byte{caveat(blocks.lost)} is no code length."
    share = {} if math.isnan(blocks.lost) else {"lost_characters": blocks.lost}
    return {"notes": [note], **share}
