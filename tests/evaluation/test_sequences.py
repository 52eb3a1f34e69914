"""Figures of sequences against what is counted by hand, letter by letter."""

import functools
import itertools
import math
from collections import Counter

import numpy as np
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.evaluation import sequences
from sedd_jax.evaluation.kmer_classifier import Features, train_classifier
from sedd_jax.evaluation.sequences import (
    alphabet_of,
    auroc,
    diversity,
    js_divergence,
    kmer_divergence,
    kmers,
    ks_statistic,
    nearest_distances,
    parse_motif,
)

RNG = np.random.default_rng(0)


def random_texts(count, length=12, letters="ACGT", probs=None):
    rows = RNG.choice(list(letters), (count, length), p=probs)
    return ["".join(row) for row in rows]


def test_a_spectrum_is_the_share_of_every_word():
    texts = ["ACGTAC", "AC", "T", "ANGTACG"]  # a word never runs on into the next sequence
    found = kmers(texts, 3, "ACGT")
    words = ["".join(word) for word in itertools.product("ACGT", repeat=3)]
    counted = Counter(text[i : i + 3] for text in texts for i in range(len(text) - 2))
    counted = {word: count for word, count in counted.items() if "N" not in word}
    wanted = [counted.get(word, 0) / sum(counted.values()) for word in words]
    np.testing.assert_allclose(found.spectrum(), wanted)
    assert counted["GTA"] == 2
    weights = np.array([0.0, 0.0, 0.0, 1.0])
    assert found.spectrum(weights)[words.index("ACG")] == 1 / 3


def test_other_letters_are_counted_likewise():
    assert alphabet_of(["GAT"], ["A"]) == "ACGT"
    assert alphabet_of(["MKV"], ["A"]) == "AKMV"
    assert kmers(["MKVA", "VA"], 2, "AKMV").spectrum().max() == 0.5  # VA, of four
    with pytest.raises(BadInput, match="4 letters make 67,108,864 13-mers, at most"):
        kmers(["A"], 13, "ACGT")


def test_the_divergence_is_in_nats():
    p, q = np.array([1.0, 0, 0]), np.array([0, 0.5, 0.5])
    assert js_divergence(p, q) == pytest.approx(math.log(2))
    assert js_divergence(q, q) == 0
    p, q = np.array([0.5, 0.5]), np.array([0.1, 0.9])
    kl = [
        sum(x * math.log(x / m) for x, m in zip(each, (0.3, 0.7), strict=True)) for each in (p, q)
    ]
    assert js_divergence(p, q) == pytest.approx(sum(kl) / 2)


def test_the_error_of_a_divergence_is_how_it_scatters():
    probs = ([0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4])
    found = [
        kmer_divergence(*(kmers(random_texts(40, probs=each), 1, "ACGT") for each in probs))
        for _ in range(40)
    ]
    scatter = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.stderr for each in found]) == pytest.approx(scatter, rel=0.35)


@functools.cache
def edit(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(edit(a[1:], b) + 1, edit(a, b[1:]) + 1, edit(a[1:], b[1:]) + (a[0] != b[0]))


def test_the_nearest_is_found_among_all():
    queries, targets = random_texts(30), random_texts(20)
    wanted = [
        min(sum(a != b for a, b in zip(text, other, strict=True)) for other in targets)
        for text in queries
    ]
    assert nearest_distances(queries, targets).tolist() == wanted
    assert nearest_distances(queries, targets + queries[:1])[0] == 0


def test_sequences_of_several_lengths_are_compared_by_edits(monkeypatch):
    queries = ["ACGT", "", "TTTTTT", *random_texts(6, 7)]
    targets = ["AGT", "CCCC", *random_texts(6, 5)]
    wanted = [min(edit(text, other) for other in targets) for text in queries]
    assert nearest_distances(queries, targets).tolist() == wanted
    assert nearest_distances(["ACGT"], ["CGTAA"]).tolist() == [3]


def test_diversity_is_the_distance_of_two():
    assert diversity(["AAAA", "CCCC", "GGGG", "TTTT", "AAAT"])[:2] == (4.0, 0.0)
    assert diversity(["ACGT"] * 4).value == 0
    texts = random_texts(400)
    pairs = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(texts)]
    assert diversity(texts).value == pytest.approx(np.mean(pairs), abs=0.4)


def test_a_motif_stands_at_its_place():
    motif = parse_motif("2:G[TC]")
    share = motif.share(["AAGTA", "AAGCA", "GTAAA", "AAGG"])
    assert (motif.name, share.value) == ("2:G[TC]", 0.5)
    for wrong in ("GT", "x:GT", "-2:GT", "2:G[", ""):
        with pytest.raises(BadInput, match="must be POSITION:REGEX"):
            parse_motif(wrong)


def test_auroc_counts_pairs():
    high, low = np.array([1.0, 2, 2, 5]), np.array([0.0, 2, 3])
    pairs = [(a > b) + (a == b) / 2 for a in high for b in low]
    assert auroc(high, low).value == pytest.approx(np.mean(pairs))
    assert auroc(high + 10, low)[:2] == (1.0, 0.0)
    assert auroc(low, low).value == 0.5


@pytest.mark.slow
def test_errors_of_rank_figures_are_how_they_scatter(monkeypatch):
    monkeypatch.setattr(sequences, "REPLICATES", 20)
    found = []
    for _ in range(60):
        high, low = RNG.normal(0.5, 1, 40), RNG.normal(0, 1, 60)
        found.append((*auroc(high, low)[:2], *ks_statistic(high, low)[:2]))
    values = np.array(found)
    scatter = values[:, ::2].std(0, ddof=1)
    np.testing.assert_allclose(values[:, 1::2].mean(0), scatter, rtol=0.35)


def test_the_ks_statistic_is_the_largest_difference():
    found = ks_statistic(np.array([0.0, 1, 2, 3]), np.array([2.5, 2.6, 2.7, 9]))
    assert found.value == 0.75


HALVES = random_texts(200, 4), random_texts(200, 4)
LABELLED = [(f"{a}GT{b}", "with") for a, b in zip(*HALVES, strict=True)]
LABELLED += [(text, "without") for text in random_texts(200, 10) if text[4:6] != "GT"]


def test_a_judge_learns_a_rule_of_position():
    texts, labels = zip(*LABELLED, strict=True)
    judge = train_classifier(texts[::2], labels[::2], "ACGT")
    right = np.array(judge.predict(texts[1::2])) == np.array(labels[1::2])
    assert right.mean() > 0.85
    np.testing.assert_allclose(np.exp(judge.log_probs(texts)).sum(-1), 1)
    with pytest.raises(BadInput, match="A sequence of 3 letters cannot be judged"):
        judge.predict(["ACG"])


def test_a_judge_learns_words_where_lengths_differ():
    texts = random_texts(60, 20, probs=[0.4, 0.1, 0.1, 0.4]) + random_texts(60, 21)
    labels = ["poor"] * 60 + ["even"] * 60
    judge = train_classifier(texts, labels, "ACGT")
    assert judge.features.length is None
    assert np.mean([a == b for a, b in zip(judge.predict(texts), labels, strict=True)]) > 0.8


def test_the_weights_are_those_of_least_loss():
    from sedd_jax.evaluation import kmer_classifier

    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((50, 4)), rng.integers(0, 3, 50)
    x[:, -1] = 1

    def loss(weights):
        logits = x @ weights
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -log_probs[np.arange(50), y].mean() + 0.05 * (weights[:-1] ** 2).sum()

    best = kmer_classifier._fit(x, y, 3, penalty=0.1)
    nearby = [loss(best + 0.02 * rng.standard_normal(best.shape)) for _ in range(20)]
    assert loss(best) < min(nearby)


def test_features_are_counts_and_letters_at_places():
    found = Features("ACGT", 4)(["ACAC", "TTTT"])
    assert found.shape == (2, 4 + 16 + 64 + 256 + 4 * 4)
    assert found[0, :4].tolist() == [2, 2, 0, 0]
    assert found[0, 4 + 1] == 2  # AC
    assert found[0, -16:-12].tolist() == [1, 0, 1, 0]  # A
    assert found[1, -4:].tolist() == [1, 1, 1, 1]  # T


@pytest.mark.parametrize("labels", [["a"] * 10, ["a"] * 6 + ["b"] * 4])
def test_too_little_to_learn_from_is_refused(labels):
    with pytest.raises(BadInput, match="at least two classes with 5 sequences each, and got"):
        train_classifier(random_texts(10), labels, "ACGT")


def test_the_bootstrap_draws_sequences_not_words():
    """Words of a sequence are no independent draws."""
    blocks = [letter * 50 for letter in "ACGT" for _ in range(5)]
    even = kmers(random_texts(20, 50), 1, "ACGT")
    assert kmer_divergence(kmers(blocks, 1, "ACGT"), even).stderr > 0.004
    assert kmer_divergence(kmers(random_texts(20, 50), 1, "ACGT"), even).stderr < 0.002
    assert sequences.REPLICATES == 200
