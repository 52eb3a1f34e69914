import dataclasses

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, NoiseConfig, TrainConfig
from sedd_jax.experiment.published_config import from_published, to_published
from sedd_jax.model.pretrained import PublishedConfig

UNIFORM = PublishedConfig(
    tokens=50,
    graph="uniform",
    noise="geometric",
    sigma_min=1e-5,
    sigma_max=10.0,
    hidden_size=64,
    cond_dim=32,
    length=48,
    num_blocks=3,
    num_heads=2,
    scale_by_sigma=False,
    dropout=0.25,
)


def test_every_setting_arrives():
    config = from_published(UNIFORM)
    assert (config.graph, config.data.vocab_size) == ("uniform", 50)
    assert config.noise == NoiseConfig("geometric", sigma_min=1e-5, sigma_max=10.0)
    model = config.model
    assert (model.hidden_size, model.cond_dim, model.length) == (64, 32, 48)
    assert (model.num_blocks, model.num_heads, model.dropout) == (3, 2, 0.25)
    assert not model.scale_by_sigma
    assert config.train == Config().train and config.optim == Config().optim


def test_the_way_back_is_the_inverse():
    assert to_published(from_published(UNIFORM)) == UNIFORM


def test_settings_that_make_no_model_are_named():
    with pytest.raises(BadInput, match="config.graph must be one of"):
        from_published(dataclasses.replace(UNIFORM, graph="banana"))


def test_the_constant_of_one_schedule_does_not_bind_the_other():
    noise = NoiseConfig("geometric", eps=0.5)
    config = dataclasses.replace(from_published(UNIFORM), noise=noise)
    assert to_published(config).sigma_max == 20.0
    with pytest.raises(BadInput, match="noise.eps=0.001, and this one has 0.5"):
        to_published(dataclasses.replace(config, noise=NoiseConfig("loglinear", eps=0.5)))


def test_code_of_ones_own_is_not_in_the_published_layout():
    config = dataclasses.replace(from_published(UNIFORM), graph="mine:graph")
    with pytest.raises(BadInput, match="config.graph=absorb or uniform, .* has mine:graph; keep"):
        to_published(config)
    noise = NoiseConfig("mine:noise")
    config = dataclasses.replace(from_published(UNIFORM), noise=noise)
    with pytest.raises(BadInput, match="noise.schedule=loglinear or geometric, .* mine:noise"):
        to_published(config)


def test_the_published_layout_has_no_convolutions():
    config = from_published(UNIFORM)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, trunk="convolution")
    )
    with pytest.raises(BadInput, match="model.trunk=transformer, and this one has convolution"):
        to_published(config)


def test_the_smallest_time_is_that_of_the_published_code():
    config = dataclasses.replace(from_published(UNIFORM), train=TrainConfig(t_min=1e-4))
    with pytest.raises(BadInput, match="config.train.t_min=0.001, and this one has 0.0001"):
        to_published(config)
