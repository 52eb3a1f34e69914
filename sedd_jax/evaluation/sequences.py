"""Figures of sets of sequences, each with its standard error: spectra, neighbours, motifs, ranks.

Sequences are texts, of nucleotides or of any other letters. Errors of means are analytic; those of
spectra and of the Kolmogorov-Smirnov statistic are from 200 bootstrap draws of the sequences of
both sets; that of AUROC is DeLong's.

Shapes: N and B sequences, S k-mers in them, K possible ones.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import rel_entr
from scipy.stats import ks_2samp

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.measures import Estimate, mean

Sequences = Sequence[str]

NUCLEOTIDES = "ACGT"
REPLICATES = 200  # of the bootstrap
MAX_KMERS = 2**22  # distinct k-mers that a spectrum counts
_QUERIES = 256  # compared with all others at a time


def alphabet_of(*sets: Sequences) -> str:
    """Returns the letters of sequences in order; at least A, C, G, T for nucleotides."""
    letters = set().union(*(set(text) for texts in sets for text in texts))
    return NUCLEOTIDES if letters <= set(NUCLEOTIDES) else "".join(sorted(letters))


class Kmers(NamedTuple):
    """The k-mers of sequences; those with a letter outside the alphabet are left out.

    Attributes:
      ids: the number of every k-mer in the order of the alphabet, [S].
      owners: the sequence that it stands in, [S].
      sequences: N.
      size: K, the number of possible k-mers.
    """

    ids: Int[np.ndarray, "S"]
    owners: Int[np.ndarray, "S"]
    sequences: int
    size: int

    def spectrum(self, weights: Float[np.ndarray, "N"] | None = None) -> Float[np.ndarray, "K"]:
        """Returns the share of every k-mer, sequences counting `weights` times, by default once."""
        each = None if weights is None else weights[self.owners]
        counts = np.bincount(self.ids, each, self.size)
        return counts / max(counts.sum(), 1)


def kmers(sequences: Sequences, k: int, alphabet: str) -> Kmers:
    """Returns the k-mers of sequences.

    Args:
      sequences: N texts.
      k: letters of a k-mer.
      alphabet: the letters.

    Raises:
      BadInput: there are too many possible k-mers.
    """
    size = len(alphabet) ** k
    if size > MAX_KMERS:
        raise BadInput(
            f"{len(alphabet)} letters make {size:,} {k}-mers, at most {MAX_KMERS:,} are counted: "
            "give a smaller --kmer."
        )
    codes, owners = _codes(sequences, alphabet)
    if len(codes) < k:
        empty = np.zeros(0, np.int64)
        return Kmers(empty, empty, len(sequences), size)
    windows = np.lib.stride_tricks.sliding_window_view(codes, k)
    within = owners[: len(windows)] == owners[k - 1 :]
    within &= (windows >= 0).all(-1)
    ids = windows[within] @ len(alphabet) ** np.arange(k)[::-1]
    return Kmers(ids, owners[: len(windows)][within], len(sequences), size)


def js_divergence(p: Float[np.ndarray, "K"], q: Float[np.ndarray, "K"]) -> float:
    """Returns the Jensen-Shannon divergence of two distributions in nats, at most log 2.

        (KL(p || m) + KL(q || m)) / 2,   m = (p + q) / 2

    References:
      Lin, Divergence Measures Based on the Shannon Entropy, 1991.
    """
    middle = (p + q) / 2
    return float((rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2)


def kmer_divergence(drawn: Kmers, real: Kmers, seed: int = 0) -> Estimate:
    """Returns the Jensen-Shannon divergence of the spectra of two sets, in nats.

    It is not 0 for two samples of one distribution, and falls as they grow: beside it belongs that
    of real sequences of the same number.

    Args:
      drawn: of one set.
      real: of the other, with the same alphabet and k.
      seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)

    def again(found):
        return found.spectrum(rng.multinomial(found.sequences, _even(found.sequences)) * 1.0)

    draws = [js_divergence(again(drawn), again(real)) for _ in range(REPLICATES)]
    value = js_divergence(drawn.spectrum(), real.spectrum())
    return Estimate(value, float(np.std(draws, ddof=1)))


def nearest_distances(queries: Sequences, targets: Sequences) -> Int[np.ndarray, "N"]:
    """Returns the distance of every sequence to the nearest of the targets.

    Substituted letters (Hamming) where all sequences have one length; else the edit distance.
    """
    if len({len(text) for texts in (queries, targets) for text in texts}) == 1:
        return _nearest_hamming(queries, targets)
    return np.array([_edit_distances(text, targets).min() for text in queries])


def distances(pairs: Sequence[tuple[str, str]]) -> Int[np.ndarray, "N"]:
    """Returns the distance of the two sequences of every pair, as `nearest_distances` has it."""
    same = len({len(text) for pair in pairs for text in pair}) == 1
    return np.array(
        [
            sum(a != b for a, b in zip(*pair, strict=True))
            if same
            else int(_edit_distances(pair[0], pair[1:])[0])
            for pair in pairs
        ]
    )


def diversity(sequences: Sequences, seed: int = 0) -> Estimate:
    """Returns the mean distance of two sequences of a set, over N // 2 pairs drawn at random."""
    order, half = np.random.default_rng(seed).permutation(len(sequences)), len(sequences) // 2
    pairs = [(sequences[i], sequences[j]) for i, j in order[: 2 * half].reshape(-1, 2)]
    return mean(distances(pairs))


class Motif(NamedTuple):
    """A rule that a sequence has a motif at a place.

    Attributes:
      position: letters before the motif.
      pattern: a regular expression of the letters from there on.
    """

    position: int
    pattern: re.Pattern[str]

    @property
    def name(self) -> str:
        """As it was given."""
        return f"{self.position}:{self.pattern.pattern}"

    def share(self, sequences: Sequences) -> Estimate:
        """Returns the share of sequences that follow the rule."""
        return mean([bool(self.pattern.match(text, self.position)) for text in sequences])


def parse_motif(text: str) -> Motif:
    """Returns the rule of "POSITION:REGEX", such as "30:GT".

    Raises:
      BadInput: it has another form.
    """
    position, _, pattern = text.partition(":")
    try:
        if not position.isdecimal():
            raise ValueError(f"{position!r} is no number of letters")
        return Motif(int(position), re.compile(pattern))
    except (ValueError, re.error) as error:
        raise BadInput(
            f"--motif={text} must be POSITION:REGEX, the number of letters before the motif and a "
            f"regular expression, as in 30:GT ({error})."
        ) from error


def ks_statistic(a: Float[np.ndarray, "N"], b: Float[np.ndarray, "B"], seed: int = 0) -> Estimate:
    """Returns the Kolmogorov-Smirnov statistic: the largest difference of two distributions.

    Args:
      a: values of one set.
      b: values of the other.
      seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    draws = [
        ks_2samp(rng.choice(a, len(a)), rng.choice(b, len(b)), method="asymp").statistic
        for _ in range(REPLICATES)
    ]
    return Estimate(float(ks_2samp(a, b, method="asymp").statistic), float(np.std(draws, ddof=1)))


def auroc(high: Float[np.ndarray, "N"], low: Float[np.ndarray, "B"]) -> Estimate:
    """Returns the probability that a value of `high` exceeds one of `low`, ties counted as half.

    0.5: the values tell nothing of the set that they are from.

    References:
      DeLong, DeLong and Clarke-Pearson, Comparing the Areas under Two or More Correlated Receiver
        Operating Characteristic Curves, 1988: the standard error.
    """
    below, above = _placements(high, low), 1 - _placements(low, high)
    variance = below.var(ddof=1) / len(high) + above.var(ddof=1) / len(low)
    return Estimate(float(below.mean()), float(np.sqrt(variance)))


def _placements(values, others):
    """The share of `others` below every value, ties counted as half."""
    others = np.sort(others)
    sides = [np.searchsorted(others, values, side) for side in ("left", "right")]
    return np.mean(sides, axis=0) / len(others)


def _even(count):
    return np.full(count, 1 / count)


def _codes(sequences, alphabet):
    """The letters of all sequences as numbers, -1 outside the alphabet, and whose they are."""
    points = np.frombuffer("".join(sequences).encode("utf-32-le"), "<u4")
    letters = np.frombuffer(alphabet.encode("utf-32-le"), "<u4")  # in order
    found = np.minimum(np.searchsorted(letters, points), len(letters) - 1)
    codes = np.where(letters[found] == points, found, -1)
    return codes, np.repeat(np.arange(len(sequences)), list(map(len, sequences)))


def _nearest_hamming(queries, targets):
    alphabet, length = alphabet_of(queries, targets), len(queries[0])
    one_hot = np.eye(len(alphabet), dtype=np.float32)

    def letters(texts):
        return one_hot[_codes(texts, alphabet)[0]].reshape(len(texts), -1)

    wanted = letters(targets).T
    agreeing = [
        (letters(queries[start : start + _QUERIES]) @ wanted).max(-1)
        for start in range(0, len(queries), _QUERIES)
    ]
    return length - np.concatenate(agreeing).astype(int)


def _edit_distances(text, targets):
    """The edit distance of a text to every target: a row of the table for each of its letters.

    References:
      Wagner and Fischer, The String-to-String Correction Problem, 1974.
    """
    lengths = np.array(list(map(len, targets)))
    points = np.full((len(targets), max(lengths.max(), 1)), -1, np.int64)
    for row, target in zip(points, targets, strict=True):
        row[: len(target)] = list(map(ord, target))
    steps = np.arange(points.shape[1] + 1)
    table = np.broadcast_to(steps, (len(targets), len(steps)))
    for number, letter in enumerate(text, 1):
        replaced = table[:, :-1] + (points != ord(letter))
        fresh = np.concatenate([np.full((len(targets), 1), number), replaced], axis=1)
        fresh[:, 1:] = np.minimum(fresh[:, 1:], table[:, 1:] + 1)
        # inserted letters: the least of all entries to the left, plus the steps between
        table = np.minimum.accumulate(fresh - steps, axis=1) + steps
    return table[np.arange(len(targets)), lengths]
