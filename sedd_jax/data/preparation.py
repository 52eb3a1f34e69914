"""Prepares a corpus once: its statistics, a tokenizer, and the tokens of every document."""

import collections
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sedd_jax.data.account import left_out
from sedd_jax.data.columns import check_condition, condition_text, parse_columns
from sedd_jax.data.corpus_statistics import BINS, SPLITS, Split, Survey, Surveyor, heldout_bins
from sedd_jax.data.documents import PIECE_BYTES, Piece, Recipe
from sedd_jax.data.manifest import FORMAT, MANIFEST, read_manifest, sealed
from sedd_jax.data.prepared import Dataset, open_blocks
from sedd_jax.data.round_trip import check_lost, joined, letters_text
from sedd_jax.data.separators import check_occurs, unescaped
from sedd_jax.data.shards import Shards, id_dtype
from sedd_jax.data.sources import passed_by, pieces, warn_without_effect
from sedd_jax.data.tokenizer import (
    FITTED_TOKENIZERS,
    SIZED_TOKENIZERS,
    Tokenizer,
    build_tokenizer,
    load_tokenizer,
)
from sedd_jax.data.workers import Task, results
from sedd_jax.errors import BadInput, check_positive
from sedd_jax.system import mirror
from sedd_jax.system.files import atomic_move, atomic_write_json, check_local
from sedd_jax.system.staging import check_target, differences, staged, staging_folder

# A tokenizer is fitted on about this much text, spread over the corpus: memory grows in proportion,
# and more text gives no better pieces.
_FITTING_CHARACTERS = 10_000_000
# Small pieces are joined up to _PART_BYTES, or in a large corpus up to one of _PARTS parts (at most
# twice as many result): workers share them, and a preparation that was killed repeats the last.
_PARTS, _PART_BYTES = 50, 2**18
# of what a staging folder holds: work of another number is not continued
_WORK = 5


def prepare_blocks(
    folder: str | os.PathLike[str], recipe: Recipe, length: int, workers: int = 1
) -> Dataset:
    """Prepares the corpus of a recipe, or opens the folder if it holds exactly that.

    The corpus is read twice: for statistics, and to be tokenised, each document whole and followed
    by an end-of-document token (if the tokenizer has one). Unless the recipe wraps, a document
    becomes one block of `length`; otherwise the files do not depend on the length, and the
    remainder below one block is dropped when they are opened. The work is done in a staging folder
    and moved to `folder` in one step. After a kill the same call continues it, to the same bytes,
    which do not depend on the number of workers.

    Args:
      folder: the folder to make.
      recipe: the settings.
      length: tokens of a block.
      workers: the number of processes.

    Returns:
      The data, opened as blocks of `length`.

    Raises:
      BadInput: `folder` holds anything else (nothing is overwritten) or cannot be made, another
        process prepares it, a document is bad and the recipe does not skip those, a split has less
        than one block, or `pieces` or `build_tokenizer` raises it.
    """
    check_positive(length=length, workers=workers)
    if not 0 < recipe.heldout_fraction < 1:
        raise BadInput(
            f"heldout_fraction is {recipe.heldout_fraction}, it must be between 0 and 1, both "
            "excluded."
        )
    check_local(folder, "The folder for prepared data")
    check_condition(recipe)
    folder = Path(folder)
    folder = folder.resolve() if folder.exists() else folder  # the target of a link
    if not _is_occupied(folder):
        check_target(folder)
    tasks = _tasks(recipe)
    settings = _settings(recipe, length, tasks)
    if _is_occupied(folder):
        _check_settings(folder, settings)
    if not _is_occupied(folder) or staging_folder(folder).exists():
        warn_without_effect(recipe, [piece for task in tasks for piece in task.pieces])
        with staged(folder, {"work": _WORK, **settings}) as staging:
            if not _is_occupied(folder):  # or it was finished just now, or killed at the end
                _Preparation(staging, recipe, length, tasks, workers).run(settings)
                atomic_move(staging / "data", folder)
        _check_settings(folder, settings)
    return open_blocks(folder, length)


def check_vocab_size(tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Raises BadInput unless the tokenizer has as many tokens as the recipe asks for."""
    if recipe.vocab_size not in (0, tokenizer.vocab_size):
        raise BadInput(
            f"config.data.vocab_size is {recipe.vocab_size}, but the tokenizer {recipe.tokenizer} "
            f"has {tokenizer.vocab_size} tokens; set it to {tokenizer.vocab_size}, or to 0 for any."
        )


def _tasks(recipe: Recipe) -> list[Task]:
    """Returns all pieces of the corpora, small ones together, as numbered tasks."""
    found = []
    for name, corpus in _corpora(recipe).items():
        own = pieces(recipe, corpus) if corpus else []
        if not own and (corpus or name == "corpus"):
            raise _empty(recipe, name, "there are no documents in it")
        found += [(name, group) for group in _groups(own)]
    return [Task(number, name, group) for number, (name, group) in enumerate(found)]


def _corpora(recipe: Recipe) -> dict[str, str]:
    return {"corpus": recipe.corpus, "heldout_corpus": recipe.heldout_corpus}


def _groups(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Joins small neighbours, so that many small files become few files; by their sizes alone."""
    sizes = [piece.size for piece in pieces]
    most = min(max(sum(sizes) // _PARTS, _PART_BYTES), PIECE_BYTES)
    group, filled = [], 0
    for piece, size in zip(pieces, sizes, strict=True):
        if group and filled + size > most:
            yield tuple(group)
            group, filled = [], 0
        group.append(piece)
        filled += size
    if group:
        yield tuple(group)


def _empty(recipe: Recipe, name: str, reason: str) -> BadInput:
    advice = "give another one"
    if name == "heldout_corpus":
        advice += ", or none, and a part of config.data.corpus is held out"
    return BadInput(f"config.data.{name} ({getattr(recipe, name)}) is empty: {reason}; {advice}.")


def _left_out(skipped: dict[str, int], losses: dict[str, Any] | None = None) -> str:
    """Returns what was skipped, and which letters, as a parenthesis of a sentence."""
    reasons = left_out(skipped)
    if losses:
        split = "config.data.split_at_unknown=True keeps what is between them"
        reasons.append(f"letters lost: {letters_text(losses)}; {split}")
    return f" (left out: {'; '.join(reasons)})" if reasons else ""


def _settings(recipe: Recipe, length: int, tasks: list[Task]) -> dict[str, Any]:
    """Returns everything that the prepared data depend on: used settings, and sources."""
    choices = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    unused = {"corpus", "heldout_corpus"}  # the sources say more
    if recipe.heldout_corpus:
        unused.add("heldout_fraction")
    if recipe.tokenizer not in SIZED_TOKENIZERS:
        unused.add("vocab_size")
    choices["separator"] = unescaped(recipe.separator)
    unused.add("max_lost")  # a limit, which leaves no trace
    choices["condition"] = condition_text(parse_columns(recipe.condition))
    # nor does an older manifest know these
    unused |= {name for name in ("split_at_unknown", "condition") if not choices[name]}
    sources = [
        {
            "corpus": task.corpus,
            "name": piece.name,
            "size": piece.size,
            "version": piece.version(),
        }
        for task in tasks
        for piece in task.pieces
    ]
    return {
        "format": FORMAT,
        "recipe": {name: choice for name, choice in choices.items() if name not in unused},
        "length": None if recipe.wrap else length,
        "sources": sources,
    }


def _is_occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raises BadInput, which lists the differences, unless `folder` has these `settings`."""
    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"{mirror.shown(folder)} exists but is no complete folder of prepared data "
            f"({MANIFEST} is missing); nothing was overwritten: choose another folder."
        )
    manifest = read_manifest(folder)
    if changes := differences({name: manifest.get(name) for name in settings}, settings):
        raise BadInput(
            f"{mirror.shown(folder)} holds other prepared data ({'; '.join(changes)}); nothing was "
            "overwritten: choose another folder or go back to those settings."
        )


class _Preparation:
    """Makes the folder `data` in a staging folder, from what earlier calls left there."""

    def __init__(self, staging: Path, recipe: Recipe, length: int, tasks: list[Task], workers: int):
        self._staging, self._recipe, self._length = staging, recipe, length
        self._tasks, self._workers = tasks, workers
        for name in ("data", "survey", "shards"):
            (staging / name).mkdir(exist_ok=True)

    def run(self, settings: dict[str, Any]) -> None:
        """Completes the folder; `settings` go into its manifest."""
        recipe = self._recipe
        fitted = recipe.tokenizer in FITTED_TOKENIZERS and not recipe.tokenizer_path
        if not fitted:  # before the corpus is read, since it may be damaged
            self._keep_tokenizer(lambda: build_tokenizer(recipe))
        surveys = self._survey()
        split = self._split(surveys["corpus"])
        if fitted:
            letters = set().union(*(survey.letters for survey in surveys.values()))
            texts = functools.partial(self._fitting_texts, split, surveys["corpus"])
            self._keep_tokenizer(lambda: build_tokenizer(recipe, texts, "".join(sorted(letters))))
        conditions = surveys["corpus"].conditions
        build = functools.partial(Shards, self._staging, recipe, split, self._length, conditions)
        done = results(build, self._tasks, self._workers, "tokenising")
        try:
            is_same = _settings(recipe, self._length, self._tasks) == settings
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise BadInput("The corpus has changed while it was read; prepare it again.")
        tokenizer = load_tokenizer(self._staging / "data" / "tokenizer")
        losses = joined((t.pieces, d["losses"]) for t, d in zip(self._tasks, done, strict=True))
        skipped = _sum([*(s.skipped for s in surveys.values()), *(d["skipped"] for d in done)])
        splits = {
            name: self._totals(name, [counts["splits"][name] for counts in done], skipped, losses)
            for name in SPLITS
        }
        if not tokenizer.exact:
            check_lost(losses, sum(counts["characters"] for counts in splits.values()), recipe)
        manifest = {
            **settings,
            "contents": {
                corpus: {"sha256": survey.sha256, "pieces": survey.pieces}
                for corpus, survey in surveys.items()
            },
            "tokenizer": tokenizer.kind,
            "fingerprint": tokenizer.fingerprint(),
            "vocab_size": tokenizer.vocab_size,
            "dtype": id_dtype(tokenizer.vocab_size),
            "skipped": skipped,
            "end_marks": sum(survey.end_marks for survey in surveys.values()),
            "passed_by": _sum([passed_by(c, recipe.format) for c in _corpora(recipe).values()]),
            # of a tokenizer that is not exact also if nothing is lost: it was compared
            **({"losses": losses} if losses or not tokenizer.exact else {}),
            **({"conditions": conditions.to_json()} if conditions else {}),
            "splits": splits,
        }
        if conditions:
            conditions.save(self._staging / "data")
        # written beside "data", where a kill may leave a part of it
        atomic_write_json(self._staging / MANIFEST, sealed(manifest), indent=1)
        atomic_move(self._staging / MANIFEST, self._staging / "data" / MANIFEST)

    def _keep_tokenizer(self, build: Callable[[], Tokenizer]) -> None:
        """Saves the tokenizer in one step, unless an earlier call did."""
        folder = self._staging / "data" / "tokenizer"
        if not folder.exists():
            tokenizer = build()
            check_vocab_size(tokenizer, self._recipe)
            tokenizer.save(self._staging / "tokenizer")
            atomic_move(self._staging / "tokenizer", folder)

    def _survey(self) -> dict[str, Survey]:
        """Returns the statistics of each corpus."""
        recipe = self._recipe
        build = functools.partial(
            Surveyor,
            self._staging / "survey",
            refuse=recipe.bad_documents == "refuse",
            letters=recipe.tokenizer == "characters",
            tokenizer=recipe.tokenizer,
            told=parse_columns(recipe.condition),
        )
        surveys = collections.defaultdict(lambda: Survey(build.keywords["told"]))
        paths = results(build, self._tasks, self._workers, "surveying")
        for task, path in zip(self._tasks, paths, strict=True):
            surveys[task.corpus].add(path)
        for name, survey in surveys.items():
            if not survey.characters:
                reason = f"it has no document that can be used{_left_out(survey.skipped)}"
                raise _empty(recipe, name, reason)
        pieces = [piece for task in self._tasks for piece in task.pieces]
        counts = [each["documents"] for survey in surveys.values() for each in survey.pieces]
        check_occurs(recipe.separator, zip(pieces, counts, strict=True))
        return surveys

    def _split(self, survey: Survey) -> Split:
        fraction = self._recipe.heldout_fraction
        if self._recipe.heldout_corpus:
            return Split({"corpus": 0, "heldout_corpus": BINS}, fraction)
        return Split({"corpus": heldout_bins(survey.histogram, fraction)}, fraction)

    def _fitting_texts(self, split: Split, survey: Survey) -> Iterator[str]:
        """Yields training documents to fit a tokenizer on: the first ones of every piece."""
        share = min(1, _FITTING_CHARACTERS / survey.characters)
        own = [task.pieces for task in self._tasks if task.corpus == "corpus"]
        for piece, counts in zip(itertools.chain(*own), survey.pieces, strict=True):
            left = share * counts["characters"]
            for content, *_ in piece.documents():
                if left <= 0:
                    break
                if isinstance(content, str):
                    parts = split.parts("corpus", content)
                    yield from (part[: math.ceil(left)] for name, part in parts if name == "train")
                    left -= len(content)

    def _totals(
        self, name: str, counts: list[dict[str, Any]], skipped: dict[str, int], losses: Any
    ) -> dict[str, Any]:
        """Returns the counts of a split, and its files; the rest is for messages."""
        named = ("file", "sha256", "md5", "told")
        shards = [
            {fact: piece[fact] for fact in (*named, "tokens") if fact in piece}
            for piece in counts
            if piece["tokens"]
        ]
        totals = _sum([{k: v for k, v in piece.items() if k not in named} for piece in counts])
        tokens = totals["tokens"]
        if tokens < self._length:
            fraction = "" if self._recipe.heldout_corpus else " or change heldout_fraction"
            raise BadInput(
                f"The {name} split has {tokens} tokens, less than one block of length "
                f"{self._length}{_left_out(skipped, losses)}; give more text, choose a "
                f"shorter config.model.length{fraction}."
            )
        return {**totals, "bytes_per_token": totals["utf8_bytes"] / tokens, "shards": shards}


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    """Returns the sums by name, including zeros."""
    names = dict.fromkeys(name for some in counts for name in some)
    return {name: sum(some.get(name, 0) for some in counts) for name in names}
