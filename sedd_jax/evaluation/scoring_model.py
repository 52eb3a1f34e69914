"""Texts under a causal model that judges them: generative perplexity, and features.

Two conventions of generative perplexity are in use, which differ by more than most results do:

- by samples, as published SEDD and RADD: the mean over samples of exp(mean nats per token), of the
  ids as they were drawn. The judge must have the tokenizer of the samples.
- by tokens, as MDLM: exp(nats / tokens) over all samples, of texts that are decoded and tokenised
  again, by the judge, and cut at the length of the samples. Of the ends of text in a window only
  the first counts. (Its code pads with that token too: of a text without one that is shorter than
  the longest it counts one more, which depends on the other texts and is not done here.)

In both, the first token is context and not scored. What is longer than the judge's positions is
scored in windows of so many tokens, of each of which this holds. Before a window stands what stood
before every text that the judge was trained on: of a model trained here its `start`, of a GPT-2,
which has seen texts begin anywhere, nothing.
"""

import dataclasses

import numpy as np

from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.statistics import Estimate, Rows, mean, ratio
from sedd_jax.inference.autoregressive import Autoregressive
from sedd_jax.inference.batches import batch_rows, one_ahead
from sedd_jax.inference.model import TrainedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A causal model that judges texts of up to `length` of its tokens.

    Attributes:
      checkpoint: the model: a GPT-2, or an autoregressive one trained here.
      length: the most tokens of a text; what is longer is cut.
      batch_size: windows at a time.

    Raises:
      BadInput: a diffusion model, or one without its tokenizer.
    """

    checkpoint: TrainedModel
    length: int
    batch_size: int = 16

    def __post_init__(self):
        if not isinstance(self.checkpoint.family, Autoregressive):
            raise BadInput(
                "The judge is a diffusion model, which has no probabilities of the next token; "
                "give a GPT-2, or a run with config.family = autoregressive."
            )
        if self.checkpoint.tokenizer is None:
            raise BadInput("The judge has no tokenizer beside its weights; name one for it.")

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def window(self) -> int:
        """Tokens that it sees at once."""
        return min(self.length, self.checkpoint.config.model.length)

    @property
    def started(self) -> bool:
        """Whether the token `start` stands before every window: it was trained here."""
        return bool(self.checkpoint.step)

    def retokenise(self, rows: Rows, tokenizer: Tokenizer) -> list[np.ndarray]:
        """Returns the judge's ids of the texts that rows of another tokenizer stand for, cut.

        An end of text stays one, or is left out where the judge has none.

        Raises:
          BadInput: a text with characters that the judge's tokenizer lacks.
        """
        try:
            return [self._of_text(row, tokenizer) for row in rows]
        except BadInput as error:
            raise BadInput(f"The judge cannot read the samples: {error}") from error

    def by_samples(self, rows: Rows) -> Estimate:
        """Returns the generative perplexity by samples, of ids of the judge's own tokenizer."""
        nats, scored = self._totals(rows, lambda rows: np.ones(rows.shape, bool))
        return mean(np.exp(nats / scored))

    def by_tokens(self, texts: Rows) -> Estimate:
        """Returns the generative perplexity by tokens, of texts from `retokenise`.

        Raises:
          BadInput: no text has two tokens.
        """
        nats, scored = self._totals(texts, self._counted)
        if not scored.sum():
            raise BadInput("No sample has two tokens of the judge: nothing can be scored.")
        value, stderr = ratio(nats, scored)
        return Estimate(float(np.exp(value)), float(np.exp(value) * stderr))

    def features(self, texts: Rows) -> np.ndarray:
        """Returns what the judge makes of the first window of each text, at its last token."""
        before = int(self.started)
        size = min(before + self.length, self.checkpoint.config.model.length)
        rows = np.full((len(texts), size), self.checkpoint.model.start, np.int32)
        last = np.zeros(len(texts), np.int32)  # of an empty text it is `start`
        for number, text in enumerate(texts):
            kept = text[: size - before]
            rows[number, before : before + len(kept)] = kept
            last[number] = max(before + len(kept) - 1, 0)
        return self._over_rows(_features, rows, last)

    def _of_text(self, row, tokenizer):
        end = [] if self.tokenizer.eod_id is None else [self.tokenizer.eod_id]
        first, *rest = np.split(row, np.flatnonzero(row == tokenizer.eod_id))

        def again(ids):
            return self.tokenizer.encode(tokenizer.decode(ids)).tolist()

        ids = sum((end + again(piece[1:]) for piece in rest), again(first))
        return np.array(ids[: self.length], np.int32)

    def _counted(self, rows):
        """Which tokens of windows count by tokens: of the ends of text only the first."""
        if self.tokenizer.eod_id is None:
            return np.ones(rows.shape, bool)
        ends = rows == self.tokenizer.eod_id
        return ~ends | (np.cumsum(ends, axis=1) == 1)

    def _totals(self, texts, counted):
        """The nats, and the number, of the tokens that are scored in each text."""
        size = self.window
        owner, windows = [], []
        for number, text in enumerate(texts):
            for start in range(0, max(len(text), 1), size):
                owner.append(number)
                windows.append(text[start : start + size])
        real = np.arange(size) < np.array([len(window) for window in windows])[:, None]
        rows = np.zeros(real.shape, np.int32)
        rows[real] = np.concatenate(windows)
        before, after = rows[:, :-1], rows[:, 1:]
        if self.started:  # the network then tells of the first token too
            start = self.checkpoint.model.start
            before, after = np.insert(before, 0, start, axis=1), rows
        nats = self._over_rows(_token_nll, before, after)[:, -(size - 1) :]
        real = (real & counted(rows))[:, 1:]
        if not np.isfinite(nats[real]).all():
            raise FloatingPointError(
                "The judge gave probabilities that are not finite: its weights are of no use, try "
                "another one."
            )
        sums = np.where(real, nats, 0).sum(1, dtype=np.float64), real.sum(1)
        return tuple(np.bincount(owner, each, len(texts)) for each in sums)

    def _over_rows(self, build, *arrays):
        """What the function that `build` gives computes of rows [N, ...], a batch at a time."""
        checkpoint, count = self.checkpoint, len(arrays[0])
        program = checkpoint.compiled(build)

        def compute(rows):
            return program(checkpoint.params, *(checkpoint.shard_batch(x[rows]) for x in arrays))

        batches = batch_rows(count, self.batch_size, checkpoint.num_batch_shards)
        return np.concatenate([found for _, found in one_ahead(batches, compute)])[:count]


def _token_nll(family):
    return family.model.token_nll


def _features(family):
    return family.model.features
