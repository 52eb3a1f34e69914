import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.model import score_model as score_model_module
from sedd_jax.model.config import ModelConfig, TransformerConfig
from sedd_jax.model.placement import Placement
from sedd_jax.model.rotary import fused_rotary_attention
from sedd_jax.model.score_model import score_model
from sedd_jax.model.stack import REMAT

SIZES = ModelConfig(hidden_size=128, cond_dim=8, num_blocks=1, num_heads=2, dropout=0.3)


def network(remat="none"):
    sizes = dataclasses.replace(SIZES, remat=remat)
    return score_model(TransformerConfig(sizes, 11, jnp.dtype("float32")))


@functools.cache
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network().init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.float32(0.1 * rng.standard_normal(x.shape)), shapes)


def compiled(remat):
    """The gradient by the parameters of a weighted sum of the log-scores, with dropout."""
    model = network(remat)
    xt = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 128)))

    def weighted(params):
        out = model.apply(params, xt, jnp.array([0.3, 2.0]), jax.random.key(5))
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    return jax.jit(jax.grad(weighted)).lower(params()).compile()


@functools.cache
def kept_all():
    return compiled("none")(params())


def check_is_the_gradient(found):
    def same(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, abs(wanted).max()))

    jax.tree.map(same, found, kept_all())


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_what_is_made_again_is_the_same(remat):
    check_is_the_gradient(compiled(remat)(params()))


@pytest.mark.parametrize(("remat", "again"), [("products", False), ("blocks", True)])
def test_products_keep_what_the_fused_kernel_gives(remat, again, monkeypatch):
    fused = fused_rotary_attention(Placement())
    monkeypatch.setattr(score_model_module, "rotary_attention_for", lambda *_: fused)
    gradient = compiled(remat)
    check_is_the_gradient(gradient(params()))
    assert ("rematted_computation/rotary_attention/" in gradient.as_text()) == again
