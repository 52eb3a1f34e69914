"""MAUVE: how near samples are to real text, by what a causal model makes of both.

The package mauve-text does it (GPL; the extra "mauve"), from features; they are our own. It counts
both kinds in N / 10 clusters, N the number of the fewer: below a thousand of each the figure says
more of N than of the model, and tells at most good samples from very bad ones.
"""

import importlib.metadata

import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.system.packages import package

FEWEST = 20  # two clusters
FEW = 1000


def load_mauve() -> str:
    """Imports the package, which takes seconds, and returns its name and version.

    Raises:
      BadInput: it is not installed.
    """
    _package()
    return f"mauve-text {importlib.metadata.version('mauve-text')}"


def check_counts(samples: int, texts: int) -> None:
    """Raises BadInput for fewer than `FEWEST` samples or real texts."""
    if min(samples, texts) < FEWEST:
        raise BadInput(
            f"MAUVE needs {FEWEST} samples and as many blocks of real text at least, there are "
            f"{samples} and {texts}; a figure to report needs {FEW} of each."
        )


def mauve(samples: np.ndarray, reference: np.ndarray) -> float:
    """Returns the MAUVE of features [N, D] against those of real text [M, D]: 1 is the same law."""
    return float(_package().compute_mauve(p_features=reference, q_features=samples).mauve)


def _package():
    return package("mauve", '"sedd_jax[mauve]"', "MAUVE")
