import importlib.metadata
import sys
import types

import numpy as np
import pytest

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.mauve import check_counts, load_mauve, mauve

RNG = np.random.default_rng(0)
SAMPLES, REFERENCE = (RNG.normal(size=(count, 4)).astype(np.float32) for count in (30, 40))


def test_the_package_gets_the_features(monkeypatch):
    def compute_mauve(p_features, q_features):
        assert p_features is REFERENCE and q_features is SAMPLES
        return types.SimpleNamespace(mauve=np.float64(0.25))

    monkeypatch.setitem(sys.modules, "mauve", types.SimpleNamespace(compute_mauve=compute_mauve))
    monkeypatch.setattr(importlib.metadata, "version", {"mauve-text": "0.4.0"}.get)
    assert load_mauve() == "mauve-text 0.4.0"
    assert mauve(SAMPLES, REFERENCE) == 0.25


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(BadInput, match=r'MAUVE needs the package mauve: pip install "sedd_jax\[ma'):
        load_mauve()


def test_too_few_texts():
    check_counts(20, 20)
    with pytest.raises(BadInput, match="MAUVE needs 20 samples .* there are 30 and 19; a figure"):
        check_counts(30, 19)


def test_the_package_itself():
    pytest.importorskip("mauve", reason="the optional extra [mauve], which is GPL")
    near, far = (RNG.normal(mean, 1, (200, 4)).astype(np.float32) for mean in (0, 5))
    real = RNG.normal(0, 1, (200, 4)).astype(np.float32)
    assert mauve(near, real) > 0.8 > 0.2 > mauve(far, real)
