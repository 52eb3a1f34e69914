"""Oracles: functions of the user's own that give every sequence a number.

An oracle is `package.module:function`. It takes a list of texts and returns a number for each: a
model of activity, a count of binding sites. A text is what the tokenizer spells.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from sedd_jax.errors import BadInput, first_line
from sedd_jax.system.registry import Registry


def gc_content(sequences: Sequence[str]) -> Float[np.ndarray, "N"]:
    """Returns the share of G and C among the letters A, C, G, T and U of every sequence.

    NaN where a sequence has none of them.
    """
    counts = np.array(
        [[sum(map(text.upper().count, part)) for part in ("GC", "ATU")] for text in sequences]
    )
    total = counts.sum(-1)
    return np.where(total > 0, counts[:, 0] / np.maximum(total, 1), np.nan)


ORACLES: Registry[Callable[[Sequence[str]], Sequence[float]]] = Registry(
    "oracle", {"gc_content": gc_content}, arguments=1
)


def oracle_scores(name: str, sequences: Sequence[str]) -> Float[np.ndarray, "N"]:
    """Returns the numbers that an oracle gives sequences; they may be NaN.

    Args:
      name: a key of `ORACLES`, or a dotted path, which is imported.
      sequences: texts.

    Raises:
      BadInput: no such oracle, or one that fails or does not return a number for every sequence.
    """
    oracle = ORACLES[name]
    try:
        found = np.asarray(oracle(list(sequences)))
    except Exception as error:  # whatever the user's function raises
        raise BadInput(
            f"The oracle {name} fails on {len(sequences)} sequences "
            f"({type(error).__name__}: {first_line(error)}): mend it."
        ) from error
    if found.shape != (len(sequences),) or found.dtype.kind not in "fiub":
        raise BadInput(
            f"The oracle {name} must return a number for each of the {len(sequences)} sequences, "
            f"and returned an array of shape {found.shape} and type {found.dtype}."
        )
    return found.astype(np.float64)
