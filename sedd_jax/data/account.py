"""What a manifest says of prepared data, in words: for prepare, train, cards and reports."""

import collections
import re
from collections.abc import Iterator
from typing import Any

from sedd_jax.data.conditions import Conditions
from sedd_jax.data.round_trip import letters_text
from sedd_jax.errors import warn

_TOLD = 0.1  # a larger share of the tokens or documents that is lost is worth a warning

_SHOWN = 8  # endings of files that were passed by

Fact = tuple[str, str]


def facts(manifest: dict[str, Any]) -> list[Fact]:
    """Returns what became of the documents: a name and a text for each split and each loss.

    The manifest is that of one prepared folder; an older one lacks the counts of today, and no fact
    is made of those.
    """
    splits = manifest.get("splits", {})
    found = [(split, ", ".join(_counted(counts))) for split, counts in splits.items()]
    found += [(f"told {name}", text) for name, text in _conditions(manifest).described()]
    found += [("left out", text) for text in left_out(manifest.get("skipped", {}))]
    if manifest.get("losses"):
        found.append(("lost", _lost(manifest)))
    if counts := manifest.get("passed_by"):
        total, shown = sum(counts.values()), dict(list(counts.items())[:_SHOWN])
        if rest := total - sum(shown.values()):
            shown["others"] = rest
        each = ", ".join(f"{name} {count:,}" for name, count in shown.items())
        found.append(("passed by", f"{total:,} file{'s' if total > 1 else ''} ({each})"))
    return found


def _conditions(manifest: dict[str, Any]) -> Conditions:
    return Conditions.from_json(manifest.get("conditions", []))


def left_out(skipped: dict[str, int]) -> list[str]:
    """Returns the numbers of documents left out, each with its reason."""
    return [
        f"{count:,} document{'s: each' if count > 1 else ':'} {reason}"
        for reason, count in skipped.items()
    ]


def _lost(manifest: dict[str, Any]) -> str:
    """Returns which characters are lost."""
    losses, recipe = manifest["losses"], manifest["recipe"]
    changed = sum(split.get("changed", 0) for split in manifest["splits"].values())
    documents = sum(split["documents"] for split in manifest["splits"].values())
    if changed:
        of = f"{changed:,} of {documents:,} documents come back changed from the tokenizer"
    else:
        count, split = losses["documents"], recipe.get("split_at_unknown")
        of = f"{count:,} document{'s are' if count > 1 else ' is'} "
        of += f"{'split at' if split else 'left out for'} letters that the tokenizer does not know"
    return f"{of}: {letters_text(losses)}, the first in {losses['first']}"


def _counted(counts: dict[str, Any]) -> Iterator[str]:
    """Yields the counts of a split."""
    words = {
        "documents": "{:,} document{s}",
        "tokens": "{:,} tokens",
        "characters": "{:,} characters",
        "utf8_bytes": "{:,} bytes",
        "bytes_per_token": "{:.3f} bytes a token",
    }
    for name, text in words.items():
        if name in counts:
            yield text.format(counts[name], s="" if counts[name] == 1 else "s")
    if counts.get("filling"):
        yield f"{counts['filling']:,} tokens are filling"
    if counts.get("cut_off"):
        yield f"{counts['cut_off']:,} more tokens cut off"


def warnings(manifest: dict[str, Any]) -> list[str]:
    """Returns what a user should know before training on the data; arguments as in `facts`."""
    names = ("documents", "characters", "tokens", "filling", "cut_off", "changed")
    splits = manifest.get("splits", {}).values()
    total = {name: sum(split.get(name, 0) for split in splits) for name in names}
    kept, skipped = total["tokens"] - total["filling"], sum(manifest.get("skipped", {}).values())
    losses, found = manifest.get("losses"), []
    fraction = manifest.get("recipe", {}).get("heldout_fraction")
    heldout = manifest.get("splits", {}).get("heldout", {}).get("characters", 0)
    share = heldout / max(total["characters"], 1)
    if fraction and heldout and not fraction / 2 <= share <= 2 * fraction:
        found.append(
            f"{share:.3g} of the text is held out, not {fraction:g} of it "
            "(config.data.heldout_fraction), since documents are held out whole and some are "
            "large; cut them, or give a heldout_corpus."
        )
    if total["cut_off"] > _TOLD * (total["cut_off"] + kept):
        share = total["cut_off"] / (total["cut_off"] + kept)
        found.append(
            f"{share:.0%} of the tokens are cut off, since a block holds one document; raise "
            "config.model.length, or let documents run on over blocks with config.data.wrap=True."
        )
    if skipped > _TOLD * (total["documents"] + skipped):
        found.append(f"{skipped:,} of {total['documents'] + skipped:,} documents are left out.")
        if losses and not (total["changed"] or manifest["recipe"].get("split_at_unknown")):
            found[-1] = f"{found[-1][:-1]}; config.data.split_at_unknown=True keeps their parts."
    if total["changed"]:
        share = losses["characters"] / total["characters"]
        found.append(
            f"the tokenizer loses {share:.2%} of the characters, so bits per byte are not the "
            "length of a code for this text."
        )
    found += [
        f"{name!r} of config.data.condition is the same in all documents, and tells nothing."
        for name in _conditions(manifest).constant
    ]
    if marks := manifest.get("end_marks"):
        found.append(
            f"<|endoftext|> is written {marks:,} times in texts that are not divided, and is text "
            "there; with config.data.separator='<|endoftext|>' it ends a document."
        )
    if same := _trained_on(manifest):
        found.append(
            f"{same:,} documents that are held out are trained on too: files of heldout_corpus are "
            "in corpus as well, so held-out figures are too good."
        )
    if empty := list(_files_without_documents(manifest)):
        others = f" and {len(empty) - 1:,} more have" if len(empty) > 1 else " has"
        found.append(f"{empty[0]}{others} no document that can be used.")
    return found


def _trained_on(manifest: dict[str, Any]) -> int:
    """Returns the number of documents in the parts of heldout_corpus that corpus has too."""
    contents = manifest.get("contents", {})
    corpus, heldout = (
        {piece["sha256"]: piece["documents"] for piece in contents.get(name, {}).get("pieces", [])}
        for name in ("corpus", "heldout_corpus")
    )
    return sum(heldout[digest] for digest in heldout.keys() & corpus.keys())


def _files_without_documents(manifest: dict[str, Any]) -> Iterator[str]:
    """Yields the names of the files, or of data sets, of which nothing was prepared."""
    for corpus, contents in manifest.get("contents", {}).items():
        sources = [source for source in manifest["sources"] if source["corpus"] == corpus]
        documents = collections.Counter()
        for source, piece in zip(sources, contents["pieces"], strict=True):
            # a large file is several pieces, which are named by their range
            documents[re.sub(r"\[[^\[]*\]$", "", source["name"])] += piece["documents"]
        yield from (name for name, count in documents.items() if not count)


def tell(manifest: dict[str, Any]) -> None:
    """Prints the facts of prepared data, and warns; of several folders in turn."""
    if "prepared" in manifest:
        for entry in manifest["prepared"]:
            print(f"{entry['folder']}, weight {entry['weight']:g}:")
            tell(entry["manifest"])
        return
    for name, text in facts(manifest):
        print(f"{name + ':':9} {text}", flush=True)
    for text in warnings(manifest):
        warn(text)
