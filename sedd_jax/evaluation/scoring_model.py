"""Texts under a causal scoring model: generative perplexity, and features for MAUVE.

Two conventions of generative perplexity are in use, and they differ by more than most results do:

- by samples, as published SEDD and RADD: the mean over samples of exp(mean nats per token), on the
  ids as drawn. The scoring model must have the tokenizer of the samples.
- by tokens, as MDLM: exp(nats / tokens) over all samples, on texts that are decoded, tokenised
  again by the scoring model, and cut at the length of the samples. Of several end-of-text tokens in
  a window only the first counts. (MDLM's code also pads with that token: for a text without one
  that is shorter than the longest it counts one more. This depends on the other texts and is not
  done here.)

In both, the first token is context and not scored. A text longer than the model's positions is
scored in windows of that many tokens, each of them in this way. A window is preceded by what
preceded every text in the scoring model's training: the `start` token of a model trained here,
nothing for a GPT-2, which has seen texts begin anywhere.
"""

import dataclasses

import numpy as np

from sedd_jax.data.round_trip import share_of_texts
from sedd_jax.data.tokenizer import Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.measures import Estimate, TokenRows, mean, ratio
from sedd_jax.inference.autoregressive import Autoregressive
from sedd_jax.inference.batches import batch_rows, one_ahead
from sedd_jax.inference.model import TrainedModel


@dataclasses.dataclass(frozen=True, eq=False)
class ScoringModel:
    """A causal model that scores texts of up to `length` of its tokens.

    Attributes:
      checkpoint: the model: a GPT-2, or an autoregressive one trained here.
      length: the most tokens of a text; longer ones are cut.
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
                "The scoring model (--judge) is a diffusion model, which has no probabilities of "
                "the next token; give a GPT-2, or a run with config.family = autoregressive."
            )
        if self.checkpoint.tokenizer is None:
            raise BadInput(
                "The scoring model (--judge) has no tokenizer beside its weights; name one."
            )

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
        """Whether the token `start` precedes every window: the model was trained here."""
        return bool(self.checkpoint.step)

    def access_to(self, tokenizer: Tokenizer | None) -> tuple[bool, bool]:
        """Returns whether the ids of a tokenizer are the model's own, and whether they have text.

        Raises:
          BadInput: neither, no tokenizer, or characters that the model's own tokenizer lacks.
        """
        if tokenizer is None:
            raise BadInput("A scoring model needs the text of the ids: name a tokenizer.")
        same_ids = tokenizer.fingerprint() == self.tokenizer.fingerprint()
        has_text = "integers" not in (tokenizer.kind, self.tokenizer.kind)
        if not (same_ids or has_text):
            raise BadInput(
                f"The scoring model has the tokenizer {self.tokenizer.kind!r} and the samples "
                f"{tokenizer.kind!r}: it cannot read them, since ids without text cannot be "
                "tokenised again."
            )
        if has_text and not same_ids:  # all characters that a sample can have
            self.retokenise([np.arange(tokenizer.vocab_size)], tokenizer)
        return same_ids, has_text

    def retokenise(self, rows: TokenRows, tokenizer: Tokenizer) -> list[np.ndarray]:
        """Returns the scoring model's ids of the texts of rows of another tokenizer, cut.

        An end-of-text token stays one, or is left out where the scoring model has none.

        Raises:
          BadInput: a text has characters that the scoring model's tokenizer lacks.
        """
        try:
            return [self._retokenise(row, tokenizer) for row in rows]
        except BadInput as error:
            raise BadInput(f"The scoring model cannot read the samples: {error}") from error

    def losses(self, rows: TokenRows, tokenizer: Tokenizer) -> list[str]:
        """Returns a note on what `retokenise` loses of the texts, if anything."""
        share = share_of_texts(self.tokenizer, map(tokenizer.decode, rows))
        if share is None:
            return []
        return [
            f"gen_perplexity_tokens is of other texts: the tokenizer of the scoring model loses "
            f"{share:.2%} of the characters of the samples."
        ]

    def by_samples(self, rows: TokenRows) -> Estimate:
        """Returns the generative perplexity by samples, of ids of the model's own tokenizer."""
        nats, scored = self._totals(rows, lambda rows: np.ones(rows.shape, bool))
        return mean(np.exp(nats / scored))

    def by_tokens(self, texts: TokenRows) -> Estimate:
        """Returns the generative perplexity by tokens, of texts from `retokenise`.

        Raises:
          BadInput: no text has two tokens.
        """
        nats, scored = self._totals(texts, self._counted)
        if not scored.sum():
            raise BadInput(
                "No sample has two tokens of the scoring model: there is nothing to score."
            )
        value, stderr, each = ratio(nats, scored)
        perplexity = float(np.exp(value))
        each = perplexity * (1 + np.array(each) - value)
        return Estimate(perplexity, perplexity * stderr, each.tolist())

    def features(self, texts: TokenRows) -> np.ndarray:
        """Returns the features [N, D] of the first window of each text, at its last token."""
        before = int(self.started)
        size = min(before + self.length, self.checkpoint.config.model.length)
        rows = np.full((len(texts), size), self.checkpoint.model.start, np.int32)
        last = np.zeros(len(texts), np.int32)  # of an empty text it is `start`
        for number, text in enumerate(texts):
            kept = text[: size - before]
            rows[number, before : before + len(kept)] = kept
            last[number] = max(before + len(kept) - 1, 0)
        return self._over_rows(_features, rows, last)

    def _retokenise(self, row, tokenizer):
        end = [] if self.tokenizer.eod_id is None else [self.tokenizer.eod_id]
        first, *rest = np.split(row, np.flatnonzero(row == tokenizer.eod_id))

        def again(ids):
            return self.tokenizer.encode(tokenizer.decode(ids)).tolist()

        ids = sum((end + again(piece[1:]) for piece in rest), again(first))
        return np.array(ids[: self.length], np.int32)

    def _counted(self, rows):
        """Which tokens of windows count by tokens: of end-of-text tokens only the first."""
        if self.tokenizer.eod_id is None:
            return np.ones(rows.shape, bool)
        ends = rows == self.tokenizer.eod_id
        return ~ends | (np.cumsum(ends, axis=1) == 1)

    def _totals(self, texts, counted):
        """The nats, and the number, of the scored tokens of each text."""
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
        if self.started:  # the network then predicts the first token too
            start = self.checkpoint.model.start
            before, after = np.insert(before, 0, start, axis=1), rows
        nats = self._over_rows(_token_nll, before, after)[:, -(size - 1) :]
        real = (real & counted(rows))[:, 1:]
        if not np.isfinite(nats[real]).all():
            raise FloatingPointError(
                "The scoring model produced NaN or Inf probabilities; try another one."
            )
        sums = np.where(real, nats, 0).sum(1, dtype=np.float64), real.sum(1)
        return tuple(np.bincount(owner, each, len(texts)) for each in sums)

    def _over_rows(self, build, *arrays):
        """The output of the program that `build` returns for rows [N, ...], a batch at a time."""
        checkpoint, count = self.checkpoint, len(arrays[0])
        program = checkpoint.compiled(build)

        def compute(rows):
            return program(checkpoint.params, *(checkpoint.shard_batch(x[rows]) for x in arrays))

        batches = batch_rows(count, min(self.batch_size, count), checkpoint.num_batch_shards)
        return np.concatenate([found for _, found in one_ahead(batches, compute)])[:count]


def _token_nll(family):
    return family.model.token_nll


def _features(family):
    return family.model.features
