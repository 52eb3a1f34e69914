"""How a text becomes figures: the conventions in use, and the record of all that was chosen."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from sedd_jax.errors import BadInput
from sedd_jax.inference.likelihood import check_draws

ESTIMATOR = 1  # raise it whenever the same question gets figures of another meaning

EXACT = "exact"
BOUNDS = {  # by whether it is complete
    False: "published: mean over [t_min, 1]",
    True: "complete: integral over [t_min, 1], prior term and final step",
}


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a user chooses.

    Attributes:
      protocol: key of CONVENTIONS.
      draws: of t and x_t, for every block.
      times: how the draws of t are spread, see `nll_bound`.
      complete: all terms of the bound, else those of the published convention.
      seed: of the draws.
      max_blocks: score so many blocks of a text, evenly spaced; None: all.

    Raises:
      BadInput: draws that cannot be.
    """

    protocol: str = "sedd"
    draws: int = 16
    times: str = "low-discrepancy"
    complete: bool = False
    seed: int = 0
    max_blocks: int | None = None

    def __post_init__(self):
        check_draws(self.draws, self.times)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """All that a likelihood depends on beside the model: two figures compare where it agrees.

    Attributes:
      protocol: key of CONVENTIONS.
      source: names of files without folders, or a corpus.
      sha256: of the documents, detokenised; of a prepared text, of its tokens.
      split: test, validation or heldout; of files that a user names, what they were taken for.
      detokenizer: its name.
      wrap: whether documents run on over the borders of blocks.
      end_of_text: where such tokens stand.
      length: of the model.
      part: which blocks were scored.
      remainder: what becomes of the tokens after the last whole block.
      first_token: whether the first token of a block is scored.
      t: how times were drawn; this and the next two are None where nothing is.
      draws: of every block.
      t_min: the smallest time.
      bound: its terms.
      seed: of the draws; None where there are none.
      tokenizer: its fingerprint.
      estimator: its version.
    """

    protocol: str
    source: str
    sha256: str
    split: str
    detokenizer: str
    wrap: bool
    end_of_text: str
    length: int
    part: str
    remainder: str
    first_token: str
    t: str | None
    draws: int | None
    t_min: float | None
    bound: str
    seed: int | None
    tokenizer: str
    estimator: int = ESTIMATOR


class Frame(NamedTuple):
    """A block as the model gets it: `width` tokens, of which some stand around the text.

    Attributes:
      width: tokens of a full block.
      before: those before the text.
      after: those after the text.
      end_of_text: in words.
      first_token: in words.
    """

    width: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    end_of_text: str
    first_token: str

    @property
    def room(self) -> int:
        """Tokens of text in a full block."""
        return self.width - len(self.before) - len(self.after)


NO_END = "none: the tokenizer has no such token"
_AFTER_ALL = "after every document"


def _sedd(length: int, end: int | None, autoregressive: bool) -> Frame:
    """Blocks are the text and nothing else, and all of it is scored."""
    first = "scored, after the token that precedes every text in training"
    words = NO_END if end is None else _AFTER_ALL
    return Frame(length, (), (), words, first if autoregressive else "scored")


def _mdlm(length: int, end: int | None, autoregressive: bool) -> Frame:
    """Blocks stand between two end-of-text tokens; from left to right, the first is given."""
    if end is None:
        return _sedd(length, end, autoregressive)
    words = f"{_AFTER_ALL}, and before and after every block"
    if length < 3:
        raise BadInput(
            f"The protocol mdlm needs a model of 3 tokens or more; its length is {length}."
        )
    if autoregressive:
        # an end-of-text token itself where the model was trained so, as GPT-2 was
        first = "the token that precedes every text in training, given and not scored"
        return Frame(length - 1, (), (end,), f"{_AFTER_ALL}, and after every block", first)
    return Frame(length, (end,), (end,), words, "an end-of-text token, scored")


CONVENTIONS: dict[str, Callable[[int, int | None, bool], Frame]] = {"sedd": _sedd, "mdlm": _mdlm}
