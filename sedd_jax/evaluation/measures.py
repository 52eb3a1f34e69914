"""What is measured of samples, with a judge and real text or without."""

import functools
from typing import Any

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.mauve import FEW, check_counts, load_mauve, mauve
from sedd_jax.evaluation.record import identity
from sedd_jax.evaluation.reference import Reference
from sedd_jax.evaluation.scoring_model import Judge
from sedd_jax.evaluation.statistics import distinct, entropy, self_repetition
from sedd_jax.inference.model import TrainedModel

TEXTS = 4  # samples that a record shows


class Measures:
    """What is measured of samples: `protocol` says how, and calling it does it.

    Args:
      checkpoint: the model whose samples they are.
      num_samples: how many there will be.
      judge: for what depends on one; None to leave it out.
      reference: real text; None to leave it out.
      compared: measure by MAUVE how near the samples are to it, by the judge.

    Raises:
      BadInput: the judge cannot read the samples, or for MAUVE there is no judge, no package or
        too little text.
    """

    def __init__(
        self,
        checkpoint: TrainedModel,
        num_samples: int,
        judge: Judge | None,
        reference: Reference | None,
        compared: bool = False,
    ):
        self._tokenizer, self._judge = checkpoint.tokenizer, judge
        self._reference = reference if compared else None
        self.protocol = {"judge": None, "reference": None}
        if judge is not None:
            self._check_judge()
            known = identity(judge.checkpoint, averaged=True)
            start = "before every window, as in its training" if judge.started else "none"
            self.protocol["judge"] = known | {"window": judge.window, "start": start}
        if compared:
            if judge is None or reference is None:
                raise BadInput(
                    "MAUVE compares what a judge makes of samples and of real text; give both."
                )
            check_counts(num_samples, len(reference.rows))
            self.protocol |= {"mauve": load_mauve(), "reference": reference.about}

    def __call__(self, tokens: np.ndarray) -> dict[str, Any]:
        """Returns the figures of samples [N, L]."""
        varied = entropy(tokens)
        figures = {"entropy": varied.value, "entropy_stderr": varied.stderr}
        figures |= {f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)}
        figures |= _with_error("self_repetition", self_repetition(tokens))
        figures |= self._judged(tokens)
        return figures | {"texts": [self._text(row) for row in tokens[:TEXTS]]}

    def _check_judge(self):
        """Finds out how the judge can read the samples."""
        own, other = self._tokenizer, self._judge.tokenizer
        if own is None:
            raise BadInput("A judge must know what the ids stand for: name a tokenizer.")
        self._same = own.fingerprint() == other.fingerprint()
        self._readable = "integers" not in (own.kind, other.kind)
        if not (self._same or self._readable):
            raise BadInput(
                f"The judge has the tokenizer {other.kind!r} and the samples {own.kind!r}: it "
                "cannot read them, since ids without text cannot be tokenised again."
            )
        if self._readable and not self._same:  # all characters that a sample can have
            self._judge.retokenise([np.arange(own.vocab_size)], own)

    def _judged(self, tokens):
        if self._judge is None:
            return {}
        figures, notes = {}, []
        if self._same:
            found = self._judge.by_samples(tokens)
            figures |= _with_error("gen_perplexity_samples", found)
        else:
            notes.append(
                "gen_perplexity_samples is left out: the judge has another tokenizer, to which the "
                "ids of the samples mean nothing."
            )
        texts = self._texts(tokens)
        if self._readable:
            figures |= _with_error("gen_perplexity_tokens", self._judge.by_tokens(texts))
        else:
            notes.append("gen_perplexity_tokens is left out: ids are no text to tokenise again.")
        if self._reference is not None and tokens is not self._reference.rows:
            figures["mauve"] = mauve(self._judge.features(texts), self._of_reference)
            if (fewest := min(len(tokens), len(self._reference.rows))) < FEW:
                notes.append(f"mauve of {fewest} texts says little: {FEW} are needed at least.")
        return figures | {"notes": notes}

    def _texts(self, rows):
        return self._judge.retokenise(rows, self._tokenizer) if self._readable else list(rows)

    @functools.cached_property
    def _of_reference(self):
        return self._judge.features(self._texts(self._reference.rows))

    def _text(self, row):
        return " ".join(map(str, row)) if self._tokenizer is None else self._tokenizer.decode(row)


def _with_error(name, estimate):
    return {name: estimate.value, f"{name}_stderr": estimate.stderr}
