"""A judge of sequences: logistic regression on k-mer counts and on the letter of every position.

It is trained on real sequences alone, and then says of which class drawn ones look to be. A judge
that anybody can rebuild in seconds, and whose accuracy on real sequences stands beside.

Shapes: N sequences, D features, G features and a constant, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.sequences import kmers

KMERS = (1, 2, 3, 4)  # lengths that are counted
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # tried for the squared weights
MIN_OF_CLASS = 5  # sequences to learn a class from
_HELD_OUT = 5  # one in so many chooses the penalty


class Features(NamedTuple):
    """How sequences become numbers.

    Attributes:
      alphabet: their letters.
      length: of all sequences, for a feature for every letter at every position; None: they
        differ, and k-mer counts are all there is.
    """

    alphabet: str
    length: int | None

    def __call__(self, sequences: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Returns the features of sequences.

        Raises:
          BadInput: a sequence of another length.
        """
        parts = []
        for k in KMERS:
            found = kmers(sequences, k, self.alphabet)
            cells = found.owners * found.size + found.ids
            counts = np.bincount(cells, minlength=len(sequences) * found.size)
            parts.append(counts.reshape(len(sequences), found.size).astype(np.float64))
        if self.length is not None:
            if wrong := next((text for text in sequences if len(text) != self.length), None):
                raise BadInput(
                    f"A sequence of {len(wrong)} letters cannot be judged: those that the "
                    f"classifier learned from have {self.length}."
                )
            letters = np.array([list(text) for text in sequences])
            parts += [(letters == letter).astype(np.float64) for letter in self.alphabet]
        return np.concatenate(parts, axis=1)


class Classifier(NamedTuple):
    """A trained judge.

    Attributes:
      classes: the names of the classes.
      features: of the sequences.
      centre: mean of every feature in training, [D].
      scale: its standard deviation, [D].
      weights: [G, C], the last row for the constant.
      penalty: that was chosen.
    """

    classes: tuple[str, ...]
    features: Features
    centre: Float[np.ndarray, "D"]
    scale: Float[np.ndarray, "D"]
    weights: Float[np.ndarray, "G C"]
    penalty: float

    def log_probs(self, sequences: Sequence[str]) -> Float[np.ndarray, "N C"]:
        """Returns the log-probabilities of the classes."""
        x = (self.features(sequences) - self.centre) / self.scale
        return log_softmax(_with_constant(x) @ self.weights, axis=-1)

    def predict(self, sequences: Sequence[str]) -> list[str]:
        """Returns the likeliest class of every sequence."""
        return [self.classes[i] for i in self.log_probs(sequences).argmax(-1)]


def train_classifier(
    sequences: Sequence[str], labels: Sequence[str], alphabet: str, seed: int = 0
) -> Classifier:
    """Trains a judge; the penalty of its weights is the one with the best held-out likelihood.

    Args:
      sequences: real ones.
      labels: the class of each.
      alphabet: the letters that are counted.
      seed: of the part that chooses the penalty; the judge itself learns from all.

    Raises:
      BadInput: fewer than two classes, or a class with too few sequences.
    """
    classes = tuple(sorted(set(labels)))
    counts = {name: list(labels).count(name) for name in classes}
    if len(classes) < 2 or min(counts.values()) < MIN_OF_CLASS:
        raise BadInput(
            f"A classifier needs at least two classes with {MIN_OF_CLASS} sequences each, and got "
            f"{counts}."
        )
    lengths = {len(text) for text in sequences}
    features = Features(alphabet, lengths.pop() if len(lengths) == 1 else None)
    x, y = features(sequences), np.array([classes.index(label) for label in labels])
    centre, scale = x.mean(0), np.maximum(x.std(0), 1e-3)
    x = _with_constant((x - centre) / scale)
    order = np.random.default_rng(seed).permutation(len(y))
    chosen, rest = order[::_HELD_OUT], np.delete(order, np.s_[::_HELD_OUT])

    def heldout_loss(penalty):
        weights = _fit(x[rest], y[rest], len(classes), penalty)
        return -log_softmax(x[chosen] @ weights, -1)[np.arange(len(chosen)), y[chosen]].mean()

    penalty = min(PENALTIES, key=heldout_loss)
    return Classifier(classes, features, centre, scale, _fit(x, y, len(classes), penalty), penalty)


def _fit(
    x: Float[np.ndarray, "N G"], y: Int[np.ndarray, "N"], classes: int, penalty: float
) -> Float[np.ndarray, "G C"]:
    """The weights of least mean loss plus half the penalty times their squares."""
    target = np.eye(classes)[y]
    counted = np.ones((x.shape[1], 1))
    counted[-1] = 0  # the constant is free

    def loss(flat):
        weights = flat.reshape(-1, classes)
        log_probs = log_softmax(x @ weights, axis=-1)
        value = -(target * log_probs).sum(-1).mean()
        gradient = x.T @ (np.exp(log_probs) - target) / len(x)
        kept = counted * weights
        return value + penalty / 2 * (kept**2).sum(), (gradient + penalty * kept).ravel()

    found = minimize(loss, np.zeros(x.shape[1] * classes), jac=True, method="L-BFGS-B")
    return found.x.reshape(-1, classes)


def _with_constant(x):
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
