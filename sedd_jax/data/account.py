"""What a manifest says of prepared data, in words: for prepare, train, cards and reports."""

from collections.abc import Iterator
from typing import Any

_TOLD = 0.1  # a larger share of the tokens or documents that is lost is worth a warning

Fact = tuple[str, str]


def facts(manifest: dict[str, Any]) -> list[Fact]:
    """Returns what became of the documents: a name and a text for each split and each loss.

    The manifest is that of one prepared folder; an older one lacks the counts of today, and no fact
    is made of those.
    """
    splits, skipped = manifest.get("splits", {}), manifest.get("skipped", {})
    return [
        *((split, ", ".join(_counted(counts))) for split, counts in splits.items()),
        *(
            ("left out", f"{count:,} document{'s: each' if count > 1 else ':'} {reason}")
            for reason, count in skipped.items()
        ),
    ]


def _counted(counts: dict[str, Any]) -> Iterator[str]:
    """Yields the counts of a split."""
    words = {
        "documents": "{:,} documents",
        "tokens": "{:,} tokens",
        "characters": "{:,} characters",
        "utf8_bytes": "{:,} bytes",
        "bytes_per_token": "{:.3f} bytes a token",
    }
    yield from (text.format(counts[name]) for name, text in words.items() if name in counts)
    if counts.get("filling"):
        yield f"{counts['filling']:,} tokens are filling"
    if counts.get("cut_off"):
        yield f"{counts['cut_off']:,} more tokens cut off"


def warnings(manifest: dict[str, Any]) -> list[str]:
    """Returns what a user should know before training on the data; arguments as in `facts`."""
    found = []
    for split, counts in manifest.get("splits", {}).items():
        cut_off, kept = counts.get("cut_off", 0), counts.get("tokens", 0) - counts.get("filling", 0)
        share = cut_off / max(cut_off + kept, 1)
        if share > _TOLD:
            found.append(
                f"{share:.0%} of the tokens of the {split} split are cut off, since a block holds "
                "one document; with config.data.wrap=True documents run on over blocks and nothing "
                "is cut off."
            )
    documents = sum(counts.get("documents", 0) for counts in manifest.get("splits", {}).values())
    skipped = sum(manifest.get("skipped", {}).values())
    if skipped > _TOLD * (documents + skipped):
        found.append(f"{skipped:,} of {documents + skipped:,} documents are left out.")
    return found


def lines(manifest: dict[str, Any]) -> Iterator[str]:
    """Yields the facts and warnings of prepared data as lines, those of several folders in turn."""
    if "prepared" in manifest:
        for entry in manifest["prepared"]:
            yield f"{entry['folder']}, weight {entry['weight']:g}:"
            yield from lines(entry["manifest"])
        return
    yield from (f"{name + ':':9} {text}" for name, text in facts(manifest))
    yield from (f"warning: {text}" for text in warnings(manifest))
