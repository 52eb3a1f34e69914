"""MAUVE: how near samples are to real text, by what a causal model makes of both.

The package mauve-text does it (GPL; the extra "mauve"), from features; they are our own. It counts
both kinds in N / 10 clusters, N the number of the fewer: below a thousand of each the figure says
more of N than of the model, and tells at most good samples from very bad ones.
"""

import importlib.metadata

import numpy as np

from sedd_jax.data.packages import package
from sedd_jax.errors import BadInput

FEWEST = 20  # two clusters
FEW = 1000


def load_mauve() -> str:
    """Imports the package, which takes seconds, and returns its name and version.

    Raises:
      BadInput: it is not installed.
    """
    package("mauve", '"sedd_jax[mauve]"', "MAUVE")
    return f"mauve-text {importlib.metadata.version('mauve-text')}"


def mauve(samples: np.ndarray, reference: np.ndarray) -> float:
    """Returns the MAUVE of features [N, D] against those of real text [M, D]: 1 is the same law.

    Raises:
      BadInput: fewer than `FEWEST` of either.
    """
    if min(len(samples), len(reference)) < FEWEST:
        raise BadInput(
            f"MAUVE needs {FEWEST} samples and as many texts of the reference at least, got "
            f"{len(samples)} and {len(reference)}; a thousand of each for a figure to report."
        )
    found = package("mauve", '"sedd_jax[mauve]"', "MAUVE").compute_mauve(
        p_features=reference, q_features=samples, verbose=False
    )
    return float(found.mauve)
