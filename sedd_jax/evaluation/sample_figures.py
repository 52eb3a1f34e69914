"""The figures of samples, and what they need: a scoring model, real text."""

import functools
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.measures import (
    FEW_TEXTS,
    Reference,
    check_counts,
    distinct,
    entropy,
    load_mauve,
    mauve,
    self_repetition,
)
from sedd_jax.evaluation.record import describe_model
from sedd_jax.evaluation.scoring_model import ScoringModel
from sedd_jax.inference.model import TrainedModel

_TEXTS = 4  # samples that a record shows


class Measures:
    """Computes the figures of samples; `protocol` says how.

    Args:
      checkpoint: the model that draws the samples.
      num_samples: how many samples there will be.
      scorer: for generative perplexity and MAUVE; None omits them.
      reference: real text, for MAUVE.
      with_mauve: whether to measure the MAUVE of samples and reference.

    Raises:
      BadInput: the scoring model cannot read the samples, or for MAUVE there is no scoring model,
        no package or too little text.
    """

    def __init__(
        self,
        checkpoint: TrainedModel,
        num_samples: int,
        scorer: ScoringModel | None,
        reference: Reference | None,
        with_mauve: bool = False,
    ):
        self._tokenizer, self._scorer = checkpoint.tokenizer, scorer
        self._reference = reference if with_mauve else None
        self.protocol = {"judge": None, "reference": None}
        if scorer is not None:
            self._same_ids, self._has_text = scorer.access_to(self._tokenizer)
            facts = describe_model(scorer.checkpoint, averaged=True)
            start = "before every window, as in its training" if scorer.started else "none"
            self.protocol["judge"] = facts | {"window": scorer.window, "start": start}
        if with_mauve:
            if scorer is None or reference is None:
                raise BadInput(
                    "MAUVE compares features of samples and of real text: give both a scoring "
                    "model and a reference."
                )
            check_counts(num_samples, len(reference.rows))
            self.protocol |= {"mauve": load_mauve(), "reference": reference.facts}

    def __call__(self, tokens: np.ndarray) -> dict[str, Any]:
        """Returns the figures of samples [N, L]."""
        figures = _by_sample("entropy", entropy(tokens))
        figures |= {f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)}
        figures |= _with_error("self_repetition", self_repetition(tokens))
        figures |= self._scores(tokens)
        return figures | {"texts": list(map(self._text, tokens[:_TEXTS]))}

    def _scores(self, tokens):
        if self._scorer is None:
            return {}
        figures, notes = {}, []
        if self._same_ids:
            found = self._scorer.by_samples(tokens)
            figures |= _by_sample("gen_perplexity_samples", found)
        else:
            notes.append(
                "gen_perplexity_samples is left out: the scoring model has another tokenizer, to "
                "which the ids of the samples mean nothing."
            )
        texts = self._for_scorer(tokens)
        if self._has_text:
            figures |= _by_sample("gen_perplexity_tokens", self._scorer.by_tokens(texts))
            notes += self._scorer.losses(tokens, self._tokenizer)
        else:
            notes.append("gen_perplexity_tokens is left out: ids have no text to tokenise again.")
        if self._reference is not None and tokens is not self._reference.rows:
            figures["mauve"] = mauve(self._scorer.features(texts), self._reference_features)
            if (fewest := min(len(tokens), len(self._reference.rows))) < FEW_TEXTS:
                notes.append(
                    f"mauve of {fewest} texts is unreliable: use at least {FEW_TEXTS} of each."
                )
        return figures | {"notes": notes}

    def _for_scorer(self, rows):
        return self._scorer.retokenise(rows, self._tokenizer) if self._has_text else list(rows)

    @functools.cached_property
    def _reference_features(self):
        return self._scorer.features(self._for_scorer(self._reference.rows))

    def _text(self, row):
        return " ".join(map(str, row)) if self._tokenizer is None else self._tokenizer.decode(row)


def _with_error(name, estimate):
    return {name: estimate.value, f"{name}_stderr": estimate.stderr}


def _by_sample(name, estimate):
    """What every sample contributes too, so that `evaluation.frontier` can combine errors."""
    each = [float(f"{value:.6g}") for value in estimate.each]
    return _with_error(name, estimate) | {f"{name}_by_sample": each}
