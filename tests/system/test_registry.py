"""Names with options, as `--sampler="gibbs(spacing=2)"` has them."""

import dataclasses

import pytest

from sedd_jax.diffusion.gibbs import Gibbs
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput
from sedd_jax.inference.sampling import sampler_named


@dataclasses.dataclass(frozen=True)
class Needy(Tweedie):
    """A sampler with an option that must be given."""

    extent: int = dataclasses.field(kw_only=True)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("tweedie", Tweedie()),
        ("gibbs(spacing=2, share=0.25)", Gibbs(spacing=2, share=0.25)),
        ("tweedie(power=2)", Tweedie(power=2.0)),
        ("sedd_jax.diffusion.gibbs:Gibbs(spacing=3)", Gibbs(spacing=3)),
        (f"{__name__}:Needy(extent=3)", Needy(extent=3)),
    ],
)
def test_a_name_carries_options(name, sampler):
    assert sampler_named(name) == sampler


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gibbs(", r"^sampler=gibbs\(: options are written as name"),
        ("gibbs(2)", "written as name"),
        ("gibbs(spacing=os)", "written as name"),
        ("gibbs(spacing=2, spacing=3)", "each once"),
        ("gibbs(steps=2)", "has the options power, share, spacing, order, got steps"),
        ("first_hitting(power=2)", "has the options block, got power"),
        ("gibbs(spacing=2.5)", "spacing must be of type int"),
        ("gibbs(share=None)", "share must be of type float"),
        ("gibbs(spacing=1)", r"sampler=gibbs\(spacing=1\): spacing must be at least 2, got 1\.$"),
        ("gibbs(spacing=3000000000)", "spacing does not fit into 32 bits"),
        ("tweedie(power=1" + "0" * 400 + ")", "power does not fit"),
        (f"{__name__}:Needy", "'extent'"),
        ("gibbs(share=1)", r"share must be in \[0, 1\)"),
        ("tweedie(power=0)", "power must be above 0"),
        ("mine(power=2)", "must be one of"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(name, message):
    with pytest.raises(BadInput, match=message):
        sampler_named(name)
