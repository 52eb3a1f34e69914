r"""Splits labelled sequences into three files that share none: training, heldout and judge.

    python -m examples.split_sequences --source=splice.data --columns=class,name,text \
        --workdir=runs/splice_data

Reads a table without a header, whose columns --columns names (white space around values is
dropped), or FASTA and CSV with names of their own. Sequences with other letters than A, C, G and T
are left out; equal ones are kept once, and not at all if their classes differ. Sequences of one
length that differ in at most --similar letters go to the same file, with all that are so connected,
so that no figure is one of recall. Each class is divided alike. All counts are printed.

training.csv is for the model, heldout.csv for its bound and as the yardstick of its samples, and
judge.csv for the classifier of `evaluate --suite=sequences`.
"""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from absl import flags
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from examples import new_file
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.sequence_sets import read_set
from sedd_jax.experiment import cli

SPLITS = ("training", "heldout", "judge")
LETTERS = set("ACGT")
_ROWS = 512  # compared with all others at a time


def read(source: str, columns: list[str], label: str) -> list[tuple[str, str]]:
    """Returns the sequences of a file in capitals, each with its class.

    Args:
      source: the file.
      columns: the names of its columns if it has no header; none for other files.
      label: the column of the classes.

    Raises:
      BadInput: no such file or column, or a row of another number of columns, or an empty one.
    """
    if not columns:
        found = read_set(source, label=label)
        return list(zip(found.texts, found.labels, strict=True))
    if missing := {"text", label} - set(columns):
        raise BadInput(f"--columns={','.join(columns)} does not name {min(missing)!r}.")
    rows = []
    try:
        with Path(source).open(newline="") as file:
            for number, values in enumerate(csv.reader(file), 1):
                if len(values) not in (0, len(columns)):
                    raise BadInput(
                        f"{source}, line {number} has {len(values)} columns, and --columns names "
                        f"{len(columns)}."
                    )
                if values:
                    row = dict(zip(columns, map(str.strip, values), strict=True))
                    if not (row["text"] and row[label]):
                        raise BadInput(f"{source}, line {number} has no sequence, or no {label!r}.")
                    rows.append((row["text"].upper(), row[label]))
    except OSError as error:
        raise BadInput(f"--source={source} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"--source={source} is no table in UTF-8 ({error}).") from error
    return rows


def distinct(rows: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Returns the sequences to split, each once, and the counts of what was found."""
    plain = [(text, label) for text, label in rows if set(text) <= LETTERS]
    classes = defaultdict(set)
    for text, label in plain:
        classes[text].add(label)
    kept = [(text, min(labels)) for text, labels in classes.items() if len(labels) == 1]
    counts = {
        "sequences": len(rows),
        "with other letters, left out": len(rows) - len(plain),
        "repetitions, left out": len(plain) - len(classes),
        "of two classes, left out": len(classes) - len(kept),
        "kept": len(kept),
    }
    return kept, counts


def groups(texts: list[str], similar: int) -> np.ndarray:
    """Returns the number of the group of every sequence, see the head of this file."""
    pairs = []
    for length in set(map(len, texts)):
        here = np.array([i for i, text in enumerate(texts) if len(text) == length])
        letters = np.array([list(texts[i]) for i in here])
        one_hot = (letters[..., None] == sorted(LETTERS)).reshape(len(here), -1).astype(np.float32)
        for start in range(0, len(here), _ROWS):
            rows, others = np.nonzero(
                one_hot[start : start + _ROWS] @ one_hot.T >= length - similar
            )
            pairs.append(np.stack([here[rows + start], here[others]]))
    first, second = np.concatenate(pairs, axis=1)
    links = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(texts), len(texts)))
    return connected_components(links, directed=False)[1]


def split(
    rows: list[tuple[str, str]], group_of: np.ndarray, shares: list[float], seed: int
) -> list[list[tuple[str, str]]]:
    """Returns the rows of every split: of each class about its share, groups whole.

    Args:
      rows: sequences and classes.
      group_of: the group of each.
      shares: of the splits.
      seed: of the order of the groups.
    """
    members = defaultdict(list)
    for row, group in zip(rows, group_of, strict=True):
        members[group].append(row)
    by_class = defaultdict(list)
    for group in members.values():
        by_class[group[0][1]].append(group)
    splits: list[list[tuple[str, str]]] = [[] for _ in shares]
    rng = np.random.default_rng(seed)
    for label in sorted(by_class):
        own = by_class[label]
        order = rng.permutation(len(own))
        sizes = np.array([len(own[i]) for i in order])
        # a group goes where its middle falls
        middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
        for i, place in zip(order, np.searchsorted(np.cumsum(shares)[:-1], middles), strict=True):
            splits[place] += own[i]
    return splits


def main() -> None:
    """Splits the file of the flags."""
    values = flags.FLAGS
    if not values.source:
        raise BadInput("--source=FILE is needed.")
    shares = [float(share) for share in values.shares if share.replace(".", "", 1).isdigit()]
    if len(shares) != len(SPLITS) or abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        given = ",".join(values.shares)
        raise BadInput(f"--shares={given} must be three numbers above 0 that add up to 1.")
    paths = [new_file(values.workdir, f"{name}.csv") for name in SPLITS]
    rows, counts = distinct(read(values.source, values.columns, values.label))
    for name, count in counts.items():
        print(f"{count:6,} {name}")
    if not rows:
        raise BadInput(f"--source={values.source} has no sequence of A, C, G and T to split.")
    group_of = groups([text for text, _ in rows], values.similar)
    several = Counter(group_of.tolist()).values()
    similar = sum(size for size in several if size > 1)
    print(f"{similar:6,} with a similar one, in {sum(size > 1 for size in several):,} groups")
    parts = split(rows, group_of, shares, values.seed)
    if not all(parts):
        raise BadInput(
            f"{SPLITS[list(map(bool, parts)).index(False)]}.csv would be empty: give more "
            f"sequences, or fewer substitutions than --similar={values.similar}."
        )
    for path, part in zip(paths, parts, strict=True):
        with path.open("x", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("text", values.label), *part])
        per_class = Counter(label for _, label in part)
        told = ", ".join(f"{label} {per_class[label]:,}" for label in sorted(per_class))
        print(f"{len(part):6,} in {path}: {told}")


def define_flags() -> None:
    """Defines the flags; not on import, since another program may have some of their names."""
    flags.DEFINE_string("source", None, "The file of sequences.")
    flags.DEFINE_list(
        "columns", [], "Names of the columns of a table without a header; text is the sequence."
    )
    flags.DEFINE_string("label", "class", "The column of the classes, or key in headers.")
    flags.DEFINE_integer(
        "similar", 12, "Substitutions up to which two sequences stay together.", lower_bound=0
    )
    flags.DEFINE_list("shares", ["0.6", "0.2", "0.2"], "Of training, heldout and judge.")
    flags.DEFINE_integer("seed", 0, "Of the split.", lower_bound=0)
    flags.DEFINE_string("workdir", None, "Folder of the three new files.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
