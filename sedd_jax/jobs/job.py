"""Batch jobs: a file of prompts in, a file of samples out, resumed by the same command.

A row is a function of the seed, its id, its line and the settings. Rows are drawn in arrays of a
few widths, which depend on the length of the row alone: few programs are compiled, and a row does
not depend on those it is drawn with.
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
from sedd_jax.inference.template import pad, padded_length
from sedd_jax.jobs.input import InputRow, read_rows
from sedd_jax.jobs.output import open_output
from sedd_jax.system import mirror, processes
from sedd_jax.system.processes import print_on_primary
from sedd_jax.system.progress import progress
from sedd_jax.system.rounding import round_up


class Batch(NamedTuple):
    """Rows that are drawn together.

    Attributes:
      rows: those to write.
      prompt: the given tokens, [N, width] with the same N for all batches of this shape.
      numbers: of the rows, [N]; the last one is repeated if there are fewer rows.
    """

    rows: list[InputRow]
    prompt: Prompt
    numbers: Int[np.ndarray, "N"]


def run(
    checkpoint: TrainedModel,
    source: Path,
    path: Path,
    *,
    seed: int,
    batch_size: int,
    settings: Mapping[str, Any],
) -> None:
    """Draws the rows of a file that another file lacks, and appends them to it as they finish.

    All processes of a job call this and read `source`; process 0 writes.

    Args:
      checkpoint: the model.
      source: JSON lines, see docs/sampling.md.
      path: the output, a `JobOutput`; made if it does not exist.
      seed: of the randomness.
      batch_size: rows at a time; on a mesh, rounded up to divide over it.
      settings: how to draw, see `generate`; they are part of the records.

    Raises:
      BadInput: no input, or an output of something else; see `read_rows` and `open_output`.
      FloatingPointError: the network produced NaN or Inf; rows drawn before are kept.
      Halted: all valid rows are drawn, and some lines are malformed.
    """
    check_positive(batch_size=batch_size)
    is_guided = settings.get("guidance", 1) != 1
    sampling = checkpoint.family.sampling(**settings) if is_guided else None

    def read():
        return read_rows(source, checkpoint, sampling)

    rows = processes.run_primary_first(read, read)
    facts = {"seed": seed, **settings, "model": checkpoint.identity.digest}
    digests = [row.digest for row in rows]
    processes.assert_equal_across_processes(
        json.dumps([facts, batch_size, digests]), "input or settings"
    )
    errors = [{"index": row.index, "id": row.id, "error": row.error} for row in rows if row.error]
    with contextlib.ExitStack() as stack:
        output = processes.on_primary(lambda: stack.enter_context(open_output(path, rows, facts)))
        written = output.done if output else ()  # known to process 0 alone
        done = processes.broadcast_from_primary(np.array([row.index in written for row in rows]))
        print_on_primary(f"{len(rows)} rows: {done.sum()} drawn before, {len(errors)} malformed.")
        processes.on_primary(lambda: output.append(errors))
        drawn, missing = 0, len(rows) - len(errors) - int(done.sum())
        with progress("Rows", unit="row") as advance:
            for batch in batches(checkpoint, rows, done, batch_size):
                records = _draw_batch(checkpoint, batch, facts, seed, settings)
                processes.on_primary(lambda records=records: output.append(records))
                drawn += len(batch.rows)
                advance(drawn, missing)
    print_on_primary(f"{missing} rows drawn; all valid ones are in {mirror.shown(path)}.")
    if errors:
        raise Halted(
            f"{len(errors)} of {len(rows)} rows are malformed: their records in {path} say why; "
            "correct their lines and give the same command again."
        )


def batches(
    checkpoint: TrainedModel, rows: list[InputRow], done: Bool[np.ndarray, "N"], batch_size: int
) -> Iterator[Batch]:
    """Yields the rows that are not done in batches of few shapes, the narrowest first.

    The shapes are those of the whole input, so a resumed job runs the same programs. Rows with as
    many holes are drawn together: they need as many network evaluations.

    Args:
      checkpoint: the model.
      rows: of the input; malformed ones are left out.
      done: rows that are drawn already.
      batch_size: rows of a batch at most, before rounding up to divide over the mesh.
    """
    trained, groups = checkpoint.config.model.length, defaultdict(list)
    for row, is_done in zip(rows, done, strict=True):
        if row.prompt is not None:
            length = len(row.prompt.tokens)
            # rows of the trained length are common, and faster without lengths
            groups[padded_length(length, trained), length != trained].append((row, is_done))
    for (width, is_padded), group in sorted(groups.items()):
        size = round_up(min(batch_size, len(group)), checkpoint.num_batch_shards)
        left = [row for row, is_done in group if not is_done]
        left.sort(key=lambda row: (np.sum(~row.prompt.held), row.index))
        for first in range(0, len(left), size):
            some = left[first : first + size]
            filled = some + some[-1:] * (size - len(some))
            prompt = pad([row.prompt for row in filled], width)
            if checkpoint.conditions:
                told = checkpoint.conditions.encode([row.condition for row in filled])
                prompt = prompt._replace(condition=told)
            if is_padded and prompt.lengths is None:
                prompt = prompt._replace(lengths=np.full(size, width, np.int32))
            yield Batch(some, prompt, np.array([row.number for row in filled], np.uint32))


def _draw_batch(checkpoint, batch, facts, seed, settings):
    """The records of a batch."""
    began, size = time.monotonic(), len(batch.numbers)
    options = settings | {"batch_size": size, "rows": batch.numbers, "prompt": batch.prompt}
    try:
        tokens, diagnostics = generate(jax.random.key(seed), checkpoint, **options)
    except FloatingPointError as error:  # it names the numbers, not the ids
        names = ", ".join(repr(row.id) for row in batch.rows)
        raise FloatingPointError(f"Among the rows {names}: {error}") from error
    cost = {"seconds": round(time.monotonic() - began, 3), "batch": size}
    return [
        {"index": row.index, "id": row.id, "line": row.digest, **facts}
        | ({"condition": row.condition} if row.condition else {})
        | {"evaluations": int(diagnostics.evaluations[i]), **cost}
        | decode(checkpoint.tokenizer, row.prompt.held, tokens[i, : len(row.prompt.tokens)])
        for i, row in enumerate(batch.rows)
    ]


def decode(
    tokenizer: Tokenizer | None, held: Bool[np.ndarray, "L"], tokens: Int[np.ndarray, "L"]
) -> dict[str, Any]:
    """Returns the fields of a record that show a row: tokens, text, and the text of every hole.

    Args:
      tokenizer: None for null in the place of text.
      held: where tokens were given, [L].
      tokens: of the row, [L].
    """
    text, holes = None, None
    if tokenizer is not None:
        text = tokenizer.decode(tokens)
        edges = np.flatnonzero(np.diff(~held, prepend=False, append=False))
        holes = [
            tokenizer.decode(tokens[start:stop], first=not start)
            for start, stop in edges.reshape(-1, 2)
        ]
    return {"tokens": tokens.tolist(), "text": text, "holes": holes}
