"""Drawn sequences against real ones: what files hold, and the figures of both side by side.

The figures are of files, so that those of any program can be compared, with real sequences as the
yardstick: what stands beside a figure of drawn sequences is the same figure of real ones.
"""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedd_jax.display.table import Table, to_json
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.kmer_classifier import train_classifier
from sedd_jax.evaluation.measures import Estimate, mean
from sedd_jax.evaluation.sequence_sets import check_disjoint, read_set
from sedd_jax.evaluation.sequences import (
    NUCLEOTIDES,
    REPLICATES,
    alphabet_of,
    auroc,
    diversity,
    kmer_divergence,
    kmers,
    ks_statistic,
    nearest_distances,
    parse_motif,
)
from sedd_jax.inference.oracle import gc_content, oracle_scores
from sedd_jax.system.files import atomic_write

_ALIKE = 0.02  # difference between the shares that a class has of two sets
ALL = "all"  # the group of all sequences, beside those of the classes
_ERRORS = (
    f"divergence and Kolmogorov-Smirnov: {REPLICATES} bootstrap draws of sequences; AUROC: DeLong; "
    "others: analytic"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which files, and what is measured of them.

    Attributes:
      samples: drawn sequences.
      reference: real ones that neither model nor judge has seen.
      training: real ones that the model was trained on; None: no distances to them.
      judge_data: real ones that a classifier learns the classes from, in neither of the others;
        None: the classes are not judged.
      field: the column of the sequences, in files that have columns.
      label: the column of the classes; figures are also given for each.
      kmers: lengths whose spectra are compared.
      motifs: rules, see `parse_motif`.
      oracle: see `inference.oracle`.
      target: the column of the samples with the number that the oracle should give.
      seed: of the bootstrap, and of the halves of real and drawn that a classifier tells apart.
    """

    samples: str
    reference: str
    training: str | None = None
    judge_data: str | None = None
    field: str = "text"
    label: str | None = None
    kmers: tuple[int, ...] = (3, 6)
    motifs: tuple[str, ...] = ()
    oracle: str | None = None
    target: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises BadInput for settings that need others, and for malformed motifs."""
        if self.judge_data and not self.label:
            raise BadInput("--judge_data teaches classes: give their column, --label=NAME.")
        if self.target and not self.oracle:
            raise BadInput("--target is the number that an oracle should give: give --oracle too.")
        if min(self.kmers, default=0) < 1:
            raise BadInput(f"--kmer must be whole numbers from 1 on, got {self.kmers}.")
        for motif in self.motifs:
            parse_motif(motif)


class Pair(NamedTuple):
    """A figure of drawn sequences, and the same one of real sequences; None: there is none."""

    drawn: Estimate | None
    real: Estimate | None


class Report(NamedTuple):
    """What was found.

    Attributes:
      protocol: the files and settings that the figures depend on.
      figures: by group (all, or a class) and name.
    """

    protocol: dict[str, Any]
    figures: dict[str, dict[str, Pair]]

    @property
    def table(self) -> Table:
        """One row for every figure."""
        rows = [
            (group, name, *_cells(pair.drawn), *_cells(pair.real))
            for group, figures in self.figures.items()
            for name, pair in figures.items()
        ]
        columns = ("sequences", "figure", "drawn", "std. error", "real", "std. error")
        title = f"Drawn and real sequences; errors by {_ERRORS}"
        if self.protocol["shares of classes"]:
            title += (
                f". Of all drawn and real sequences the classes have other shares "
                f"({self.protocol['shares of classes']}), and the figures of all show that too"
            )
        return Table(title, columns, rows)

    def save(self, folder: Path) -> Path:
        """Writes the report into a folder, named by its protocol, and returns its path."""
        values = {
            group: {
                name: {
                    side: each and {"value": each.value, "stderr": each.stderr}
                    for side, each in pair._asdict().items()
                }
                for name, pair in figures.items()
            }
            for group, figures in self.figures.items()
        }
        digest = hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{Path(self.protocol['samples']['name']).stem}.{digest}.sequences.json"
        atomic_write(path, to_json({"protocol": self.protocol, "figures": values}))
        return path


def _cells(estimate):
    if estimate is None:
        return None, None
    return estimate.value, None if np.isnan(estimate.stderr) else estimate.stderr


def measure(settings: Settings) -> Report:
    """Returns the figures of the files.

    Raises:
      BadInput: as `Settings.check` and `read_set`; sets that share sequences; an oracle that gives
        no numbers; or a class of the reference that was not drawn.
    """
    settings.check()
    columns = {"field": settings.field, "label": settings.label}
    drawn = read_set(settings.samples, **columns, target=settings.target)
    paths = {
        "reference": settings.reference,
        "training": settings.training,
        "judge_data": settings.judge_data,
    }
    real = {name: read_set(path, **columns) for name, path in paths.items() if path}
    check_disjoint(real)
    sets = {"samples": drawn} | real
    protocol = dataclasses.asdict(settings) | {
        name: {"name": each.name, "sha256": each.sha256, "sequences": len(each.texts)}
        for name, each in sets.items()
    }
    protocol |= {"divergence": "Jensen-Shannon, nats, at most log 2", "errors": _ERRORS}
    labels = sorted(set(real["reference"].labels)) if settings.label else []
    _check_classes(settings, labels, sets)
    protocol["shares of classes"] = _unlike_shares(labels, drawn, real["reference"])
    judged = _judged(settings, drawn, real)
    figures = {}
    for label in (None, *labels):
        few = {name: each.of_class(label) if label else each for name, each in sets.items()}
        drawn_here, real_here = few["samples"], few["reference"]
        if fewest := [name for name in ("samples", "reference") if len(few[name].texts) < 2]:
            path = getattr(settings, fewest[0])
            raise BadInput(f"{path} has 1 sequence with {settings.label}={label}; give more.")
        found = _figures(settings, drawn_here, real_here, few.get("training"))
        if "training" in sets:  # a copy is one whatever its class
            found |= _neighbours(drawn_here, real_here, sets["training"])
        if label is None:
            auroc_of_classifier = _told_apart(settings, drawn, real_here)
            found["AUROC of real against drawn"] = Pair(auroc_of_classifier, None)
        figures[label or ALL] = found | judged.get(label or ALL, {})
    return Report(protocol, figures)


def _unlike_shares(labels, drawn, real):
    """Says what shares the classes have on either side; nothing if they are alike."""
    shares = [
        np.array([np.mean(np.equal(each.labels, own)) for own in labels]) for each in (drawn, real)
    ]
    if not labels or np.abs(shares[0] - shares[1]).max() <= _ALIKE:
        return None
    return ", ".join(
        f"{own} {a:.2f} and {b:.2f}" for own, a, b in zip(labels, *shares, strict=True)
    )


def _check_classes(settings, labels, sets):
    """Raises BadInput unless samples and judge data have the classes of the reference."""
    if ALL in labels:
        raise BadInput(f"{settings.label}={ALL} is no name of a class here: rename that class.")
    for name in ("samples", "judge_data"):
        theirs = set(sets[name].labels or ()) if name in sets else set(labels)
        path, of_label = getattr(settings, name), f"with {settings.label}="
        if missing := set(labels) - theirs:
            raise BadInput(
                f"{path} has no sequences {of_label}{min(missing)}, which {settings.reference} "
                "has: give some."
            )
        if surplus := theirs - set(labels):
            raise BadInput(
                f"{path} has sequences {of_label}{min(surplus)}, which {settings.reference} does "
                "not have: leave them out."
            )


def _figures(settings, drawn, real, training):
    """The figures that need no classifier, of one group."""
    sides = (drawn.texts, real.texts)

    def both(function):
        return Pair(*map(function, sides))

    figures = {"sequences": both(lambda texts: _exactly(len(texts)))}
    alphabet = alphabet_of(*sides)
    for k in settings.kmers:
        spectra = [kmers(texts, k, alphabet) for texts in sides]
        if not all(len(each.ids) for each in spectra):
            raise BadInput(f"--kmer={k}: sequences have no {k} letters together; give less.")
        yardstick = None
        if training is not None:
            known = kmers(training.texts, k, alphabet)
            yardstick = kmer_divergence(known, spectra[1], settings.seed)
        own = kmer_divergence(*spectra, settings.seed)
        figures[f"divergence of {k}-mers, nats"] = Pair(own, yardstick)
    figures["distance of two"] = both(diversity)
    figures["distinct"] = both(lambda texts: _exactly(len(set(texts)) / len(texts)))
    if alphabet == NUCLEOTIDES:
        figures["GC content"] = both(lambda texts: mean(gc_content(texts)))
    for motif in map(parse_motif, settings.motifs):
        figures[f"motif {motif.name}"] = both(motif.share)
    if settings.oracle:
        scores = [_finite(settings, oracle_scores(settings.oracle, texts)) for texts in sides]
        figures["oracle"] = Pair(*map(mean, scores))
        figures["oracle, Kolmogorov-Smirnov"] = Pair(ks_statistic(*scores, settings.seed), None)
        figures["oracle, AUROC of real against drawn"] = Pair(auroc(scores[1], scores[0]), None)
        if settings.target:
            errors = (scores[0] - drawn.targets) ** 2
            figures["oracle, mean squared error to target"] = Pair(mean(errors), None)
    return figures


def _neighbours(drawn, real, training):
    nearest = [nearest_distances(each.texts, training.texts) for each in (drawn, real)]
    return {
        "distance to nearest in training": Pair(*map(mean, nearest)),
        "copies of training": Pair(*(mean(each == 0) for each in nearest)),
    }


def _finite(settings, scores):
    if not np.isfinite(scores).all():
        raise BadInput(
            f"The oracle {settings.oracle} gave {(~np.isfinite(scores)).sum()} of {len(scores)} "
            "sequences no finite number: mend it, or leave these sequences out."
        )
    return scores


def _judged(settings, drawn, real):
    """How often a classifier gives sequences the class that they should have, by group."""
    if "judge_data" not in real:
        return {}
    judge, sides = real["judge_data"], (drawn, real["reference"])
    alphabet = alphabet_of(judge.texts, *(each.texts for each in sides))
    classifier = train_classifier(judge.texts, judge.labels, alphabet, settings.seed)
    right = [np.array(classifier.predict(each.texts)) == np.array(each.labels) for each in sides]
    labels = [np.array(each.labels) for each in sides]
    figures = {}
    for label in (ALL, *sorted(set(real["reference"].labels))):
        found = [
            mean(hits if label == ALL else hits[told == label])
            for hits, told in zip(right, labels, strict=True)
        ]
        figures[label] = {
            "judged to be of its class": Pair(*found),
            "judged, drawn / real": Pair(_quotient(*found), None),
        }
    return figures


def _quotient(a, b):
    """A / b of two independent estimates, its error by the delta method."""
    if not b.value:
        return Estimate(np.nan, np.nan)
    value = a.value / b.value
    return Estimate(value, float(np.hypot(a.stderr, value * b.stderr) / b.value))


def _told_apart(settings, drawn, real):
    """AUROC of a classifier that learned real from drawn on one half of each, on the other half."""
    rng = np.random.default_rng(settings.seed)
    texts = {"drawn": drawn.texts, "real": real.texts}
    halves = {name: np.array(each)[rng.permutation(len(each))] for name, each in texts.items()}
    learned = {name: each[::2].tolist() for name, each in halves.items()}
    labels = [name for name, each in learned.items() for _ in each]
    alphabet = alphabet_of(*texts.values())
    learned = list(itertools.chain(*learned.values()))
    classifier = train_classifier(learned, labels, alphabet, settings.seed)
    column = classifier.classes.index("real")
    scores = {
        name: classifier.log_probs(each[1::2].tolist())[:, column] for name, each in halves.items()
    }
    return auroc(scores["real"], scores["drawn"])


def _exactly(value):
    return Estimate(float(value), float("nan"))
