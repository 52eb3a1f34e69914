"""Batch jobs: a file of prompts in, a file of samples out, however often they are stopped.

A row is a function of the seed, its id, its line and the settings. Rows are drawn in arrays of a
few widths, which a row's length alone decides, so that few programs are compiled and it does not
matter which rows are drawn together.
"""

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import Halted, check_positive
from sedd_jax.inference.generate import generate
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.template import pad, width_of
from sedd_jax.jobs.input import Line, read_lines
from sedd_jax.jobs.output import open_ledger
from sedd_jax.system import processes
from sedd_jax.system.processes import print_on_primary
from sedd_jax.system.progress import progress
from sedd_jax.system.rounding import round_up


class Batch(NamedTuple):
    """Rows that are drawn together.

    Attributes:
      lines: of the rows, the missing ones.
      prompt: what is given, [N, width] with N the same for all batches of this shape.
      numbers: of the rows, [N]; the last one again where lines are fewer.
    """

    lines: list[Line]
    prompt: Prompt
    numbers: Int[np.ndarray, "N"]


def run(
    checkpoint: TrainedModel,
    source: Path,
    output: Path,
    *,
    seed: int,
    batch_size: int,
    settings: Mapping[str, Any],
) -> None:
    """Draws the rows of a file that another file lacks, and appends them to it as they finish.

    All processes of a job call this and read `source`; the lead writes.

    Args:
      checkpoint: the model.
      source: JSON lines, see docs/sampling.md.
      output: what `serving.ledger` keeps; made if it does not exist.
      seed: of the randomness.
      batch_size: rows at a time; on a mesh, rounded up to fill it.
      settings: how to draw, of `generate` or `generate_autoregressive`; they stand in the records.

    Raises:
      BadInput: no input, or an output of something else; see `read_lines` and `open_ledger`.
      FloatingPointError: the network gave what is not finite; what was drawn before is kept.
      Halted: all is drawn that can be, and some lines are malformed.
    """
    check_positive(batch_size=batch_size)

    def read():
        return read_lines(source, checkpoint)

    lines = processes.run_primary_first(read, read)
    facts = {"seed": seed, **settings, "model": checkpoint.identity.digest}
    digests = [line.digest for line in lines]
    processes.assert_equal_across_processes(
        json.dumps([facts, batch_size, digests]), "input or settings"
    )
    errors = [
        {"index": line.index, "id": line.id, "error": line.error} for line in lines if line.error
    ]
    with contextlib.ExitStack() as stack:
        ledger = processes.on_primary(
            lambda: stack.enter_context(open_ledger(output, lines, facts))
        )
        there = ledger.done if ledger else ()  # known to the lead alone
        done = processes.broadcast_from_primary(np.array([line.index in there for line in lines]))
        print_on_primary(f"{len(lines)} rows: {done.sum()} drawn before, {len(errors)} malformed.")
        processes.on_primary(lambda: ledger.append(errors))
        wanted = np.array([line.row is not None for line in lines]) & ~done
        drawn, missing = 0, int(wanted.sum())
        with progress("Rows", unit="row") as advance:
            for batch in batched(checkpoint, lines, done, batch_size):
                records = _draw_batch(checkpoint, batch, facts, seed, settings)
                processes.on_primary(lambda records=records: ledger.append(records))
                drawn += len(batch.lines)
                advance(drawn, missing)
    print_on_primary(f"{missing} rows drawn; all that can be are in {output}.")
    if errors:
        raise Halted(
            f"{len(errors)} of {len(lines)} rows are malformed: their records in {output} say why; "
            "mend their lines and give the same command again."
        )


def batched(
    checkpoint: TrainedModel, lines: list[Line], done: Bool[np.ndarray, "N"], batch_size: int
) -> Iterator[Batch]:
    """Yields the rows that are not done, in batches of few shapes, the narrowest first.

    The shapes are those of the whole input, so that a job that goes on runs the same programs.
    Rows with as many positions to fill are drawn together: they need as many evaluations.
    """
    trained, parts = checkpoint.config.model.length, checkpoint.num_batch_shards
    groups = defaultdict(list)
    for line, is_done in zip(lines, done, strict=True):
        if line.row is not None:
            length = len(line.row.tokens)
            # rows of the trained length are many, and quicker without a word on their padding
            groups[width_of(length, trained), length != trained].append((line, is_done))
    for (width, padded), group in sorted(groups.items()):
        size = round_up(min(batch_size, len(group)), parts)
        left = [line for line, is_done in group if not is_done]
        left.sort(key=lambda line: (np.sum(~line.row.held), line.index))
        for first in range(0, len(left), size):
            some = left[first : first + size]
            filled = some + some[-1:] * (size - len(some))
            prompt = pad([line.row for line in filled], width)
            if padded and prompt.lengths is None:
                prompt = prompt._replace(lengths=np.full(size, width, np.int32))
            numbers = np.array([line.number for line in filled], np.uint32)
            yield Batch(some, prompt, numbers)


def _draw_batch(checkpoint, batch, facts, seed, settings):
    """The records of a batch."""
    began, size = time.monotonic(), len(batch.numbers)
    try:
        tokens, found = generate(
            jax.random.key(seed),
            checkpoint,
            prompt=batch.prompt,
            batch_size=size,
            rows=batch.numbers,
            **settings,
        )
    except FloatingPointError as error:  # it knows the numbers, not the names
        names = ", ".join(repr(line.id) for line in batch.lines)
        raise FloatingPointError(f"Among the rows {names}: {error}") from error
    cost = {"seconds": round(time.monotonic() - began, 3), "batch": size}
    rows = zip(batch.lines, tokens, found.evaluations.tolist(), strict=False)  # the rest fills up
    return [
        {"index": line.index, "id": line.id, "line": line.digest}
        | facts
        | {"evaluations": calls}
        | cost
        | shown(checkpoint.tokenizer, line.row.held, row[: len(line.row.tokens)])
        for line, row, calls in rows
    ]


def shown(
    tokenizer: Tokenizer | None, held: Bool[np.ndarray, "L"], tokens: Int[np.ndarray, "L"]
) -> dict[str, Any]:
    """Returns what a record shows of a row: the tokens, their text, and that of every hole."""
    text, holes = None, None
    if tokenizer is not None:
        text = tokenizer.decode(tokens)
        edges = np.flatnonzero(np.diff(~held, prepend=False, append=False))
        holes = [tokenizer.decode(tokens[slice(*hole)]) for hole in edges.reshape(-1, 2)]
    return {"tokens": tokens.tolist(), "text": text, "holes": holes}
