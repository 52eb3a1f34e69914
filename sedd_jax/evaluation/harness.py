"""What lm-evaluation-harness asks of a model, in its own terms: texts in, nats and texts out.

`sedd_jax.lm_eval` makes of it a model of the harness, which this module does not import.

References:
  Gao et al., The Language Model Evaluation Harness, 2024 (doi 10.5281/zenodo.12608602).
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from sedd_jax.data.tokenizer import Integers
from sedd_jax.errors import BadInput, warn
from sedd_jax.evaluation.completions import complete
from sedd_jax.evaluation.continuations import (
    Continuation,
    continuation_nll,
    fit,
    found_greedily,
    split_text,
)
from sedd_jax.evaluation.harness_settings import Settings
from sedd_jax.evaluation.protocol import BOUNDS
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.family import sampling_names
from sedd_jax.inference.likelihood import nll_bound
from sedd_jax.inference.load import load
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.sampling import samplers_for
from sedd_jax.system.progress import progress


@dataclasses.dataclass(frozen=True)
class Backend:
    """A model that answers the three kinds of requests of the harness.

    Attributes:
      model: the model, with a tokenizer for text.
      settings: how it answers.

    Raises:
      BadInput: it has no such tokenizer, or settings mean nothing to it.
    """

    model: TrainedModel
    settings: Settings

    def __post_init__(self):
        if self.model.tokenizer is None or isinstance(self.model.tokenizer, Integers):
            raise BadInput("The checkpoint has no tokenizer for text: give tokenizer=FOLDER.")
        if self.settings.conditional != "held" and not self.model.family.infills:
            raise BadInput(
                f"conditional={self.settings.conditional} is for discrete diffusion models: leave "
                "it out."
            )
        self.sampling(0.0)

    @classmethod
    def load(cls, settings: Settings) -> "Backend":
        """Returns the backend with the model that the settings name, on all devices."""
        model = load(
            settings.checkpoint,
            step=settings.checkpoint_step,
            ema=settings.ema,
            mesh=MeshConfig(),
            tokenizer=settings.tokenizer,
            trust_code=settings.trust_code,
        )
        return cls(model, settings)

    @property
    def length(self) -> int:
        """The most tokens of a row."""
        return self.model.config.model.length

    @property
    def _key(self):
        return jax.random.key(self.settings.seed)

    @property
    def _estimate(self):
        return {name: getattr(self.settings, name) for name in ("draws", "times", "complete")}

    def sampling(self, temperature: float) -> dict[str, Any]:
        """Returns the sampler and its steps, for `generate`.

        By default, under the absorbing graph one token per network evaluation: the surest first at
        temperature 0, which no random number enters, and else by first hitting, which has the
        model's distribution; under others Tweedie's steps.

        Args:
          temperature: of the tokens.

        Raises:
          BadInput: a sampler or steps that the model does not have.
        """
        named = {name: getattr(self.settings, name) for name in ("sampler", "steps")}
        given = {name: value for name, value in named.items() if value is not None}
        if "sampler" in sampling_names(self.model.family) and "sampler" not in given:
            wanted = "first_hitting" if temperature else "confidence"
            given["sampler"] = wanted if wanted in samplers_for(self.model.graph) else "tweedie"
        self.model.family.sampling(**given)
        return given

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], questions: Sequence[Hashable]
    ) -> list[tuple[float, bool]]:
        """Returns log p(continuation | context), and whether greedy decoding gives it, of pairs.

        Args:
          pairs: context and continuation.
          questions: a name for each; those of one name are compared on common random numbers.
        """
        rows = []
        for index, ((context, continuation), question) in enumerate(
            zip(pairs, questions, strict=True)
        ):
            with _named(f"Request {index + 1} ({question})"):
                split = split_text(self.model.tokenizer, context, continuation)
                (row,), _ = fit([Continuation(*split, _number(question))], self.length)
            rows.append((Continuation(*split), row))
        self._say_cut(sum(len(before.context) > len(row.context) for before, row in rows))
        fitting = [row for _, row in rows]
        options = {"batch_size": self.settings.batch_size}
        with progress("bounds") as advance:
            nats = continuation_nll(
                self._key,
                self.model,
                fitting,
                difference=self.settings.conditional == "difference",
                progress=advance,
                **options,
                **self._estimate,
            )
        greedy = np.zeros(len(rows), bool)
        if self.settings.greedy:
            with progress("greedy decoding") as advance:
                greedy = found_greedily(
                    self._key, self.model, fitting, progress=advance, **options, **self.sampling(0)
                )
        return [(-float(each), bool(found)) for each, found in zip(nats, greedy, strict=True)]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Returns log p of texts, in blocks of the model's length that do not see each other.

        The blocks and their draws are those of `evaluate`, where a text is one document.
        """
        encoded = [self.model.tokenizer.encode(text) for text in texts]
        for index, ids in enumerate(encoded):
            if not len(ids):
                raise BadInput(f"Text {index + 1} is empty: there is nothing to score.")
        counts = [-(-len(ids) // self.length) for ids in encoded]
        blocks = np.zeros((sum(counts), self.length), np.int32)
        lengths = np.full(len(blocks), self.length)
        for end, ids, count in zip(np.cumsum(counts), encoded, counts, strict=True):
            own = blocks[end - count : end].reshape(-1)  # a view
            own[: len(ids)] = ids
            lengths[end - 1] = len(ids) - (count - 1) * self.length
        with progress("texts") as advance:
            bound = nll_bound(
                self._key,
                self.model,
                blocks,
                lengths=lengths,
                batch_size=self.settings.batch_size,
                progress=advance,
                **self._estimate,
            )
        starts = np.cumsum([0, *counts[:-1]])
        return (-np.add.reduceat(bound.nats.mean(0), starts)).tolist()

    def generate_until(
        self,
        contexts: Sequence[str],
        names: Sequence[Hashable],
        *,
        until: Sequence[str],
        max_tokens: int,
        temperature: float | None = None,
        **settings: Any,
    ) -> list[str]:
        """Returns texts that follow contexts, see `complete`.

        Args:
          contexts: texts.
          names: of the texts: what is drawn for one is a function of the seed and its name.
          until: stop strings.
          max_tokens: the most tokens of a text.
          temperature: that of the settings if None.
          **settings: of sampling: `top_p`, `sampler` and `steps`.
        """
        temperature = self.settings.temperature if temperature is None else temperature
        room = self.length - min(self.settings.block, max_tokens)
        encoded = [self.model.tokenizer.encode(context) for context in contexts]
        self._say_cut(sum(len(ids) > room for ids in encoded))
        with progress("texts", unit="token") as advance:
            return complete(
                self._key,
                self.model,
                encoded,
                until=until,
                max_tokens=max_tokens,
                block=self.settings.block,
                numbers=[_number(name) for name in names],
                batch_size=self.settings.batch_size,
                progress=advance,
                temperature=temperature,
                **self.sampling(temperature) | settings,
            )

    def describe(self) -> dict[str, Any]:
        """Returns what the figures depend on, for the harness's record of results."""
        family, config = self.model.family, self.model.config
        drawn = not family.exact_likelihood
        return {
            "family": config.family,
            "model": self.model.identity._asdict(),
            "step": self.model.step,
            "length": self.length,
            "loglikelihood": self._in_words(),
            "is_greedy": f"sampling at temperature 0: {self.sampling(0)}"
            if self.settings.greedy
            else "not asked for, said to be False",
            "seed": self.settings.seed,
            **({"bound": BOUNDS[self.settings.complete]} if drawn else {}),
            **(self._estimate | {"t_min": config.train.t_min} if drawn else {}),
        }

    def _in_words(self):
        if self.model.family.exact_likelihood:
            return "exact"
        if self.settings.conditional == "difference":
            return "a bound of context and continuation less one of the context: no bound"
        return "a bound, that of the reverse process with the context held"

    def _say_cut(self, count):
        if count:
            warn(
                f"{count} contexts were longer than the model's {self.length} tokens leave room "
                "for, and were cut from the left"
            )


@contextlib.contextmanager
def _named(name):
    """Puts the name of a request before what is wrong with it."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error


def _number(name):
    """The number of what is drawn for a name, below 2^32."""
    return zlib.crc32(repr(name).encode())
