import dataclasses
import json

import pytest

from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import (
    Config,
    default_config,
    differences,
    from_json,
    parse,
    to_json,
)


def changed(key, value):
    config = default_config().to_dict()
    *groups, leaf = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[leaf] = value
    return config


def test_defaults_parse_to_the_dataclass():
    assert parse(default_config()) == Config()


def test_json_from_before_a_setting_existed_has_its_default():
    values = json.loads(to_json(Config(seed=3)))
    del values["model"]["learned_positions"], values["train"]["importance"]
    assert from_json(json.dumps(values)) == Config(seed=3)
    values["model"]["colour"] = "red"
    with pytest.raises(BadInput, match="config.model.colour is not a setting"):
        from_json(json.dumps(values))


def test_json_round_trip():
    config = parse(changed("optim.learning_rate", 0.1))
    assert from_json(to_json(config)) == config


def test_an_int_serves_as_a_float_but_not_the_reverse():
    assert parse(changed("noise.sigma_max", 7)).noise.sigma_max == 7.0
    with pytest.raises(BadInput, match="config.train.steps must be of type int, got 1.5"):
        parse(changed("train.steps", 1.5))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.stepz", 1, "config.train.stepz is not a setting; there are: steps, "),
        ("surprise", {}, "config.surprise is not a setting"),
        ("train", 3, "config.train must be a group of settings, got 3"),
        ("train.low_discrepancy", 1, "config.train.low_discrepancy must be of type bool, got 1"),
        ("train.steps", True, "config.train.steps must be of type int, got True"),
        ("data.corpus", None, "config.data.corpus must be of type str, got None"),
        ("graph", "torus", "config.graph must be one of absorb, uniform, hybrid, or .*'torus'"),
        ("data.tokenizer", "runes", "config.data.tokenizer must be one of bytes, .*got 'runes'"),
        ("train.steps", 0, "config.train.steps must be positive, got 0"),
        ("data.vocab_size", -1, "config.data.vocab_size must not be negative"),
        ("model.dropout", 1.0, "config.model.dropout must be below 1"),
        ("noise.eps", float("nan"), "config.noise.eps must be positive"),
        ("noise.sigma_min", 30.0, "sigma_min .30.0. must be below config.noise.sigma_max"),
        ("seed", 2**32, "config.seed must be below 4294967296"),
        ("model.num_heads", 5, "hidden_size .768. must be a multiple of twice"),
        ("graph", "uniform", "scale_by_sigma is only defined for config.graph=absorb"),
        ("train.microbatches", 3, "batch_size .512. must be a multiple of .*microbatches .3."),
        (
            "train.log_every",
            7,
            "checkpoint.every .10000. must be a multiple of .*log_every .7.*nearest is 10003",
        ),
        ("eval.max_blocks", 8, "max_blocks .8. must be at least config.eval.batch_size .512."),
        ("data.tokenizer", "gpt2", "tokenizer_path must name a folder with encoder.json"),
    ],
)
def test_bad_settings_are_named(key, value, message):
    with pytest.raises(BadInput, match=message):
        parse(changed(key, value))


def test_a_missing_setting_is_named():
    config = default_config().to_dict()
    del config["optim"]["beta2"]
    with pytest.raises(BadInput, match="config.optim.beta2 is missing"):
        parse(config)


def test_cosine_needs_steps_after_the_warm_up():
    config = changed("optim.decay", "cosine")
    config["train"]["steps"] = config["optim"]["warmup_steps"]
    with pytest.raises(BadInput, match="warmup_steps .2500. must be below config.train.steps"):
        parse(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("graph", "uniform"),
        ("noise.sigma_min", 1e-5),
        ("model.scale_by_sigma", False),
        ("train.importance", True),
        ("train.times", "bell"),
    ],
)
def test_the_baseline_refuses_what_means_nothing_to_it(key, value):
    values = changed(key, value) | {"family": "autoregressive"}
    with pytest.raises(BadInput, match=rf"leave it at its default: config\.{key}: .* -> "):
        parse(values)


def test_importance_sampling_has_times_of_its_own():
    values = changed("train.times", "bell(std=0.5)")
    assert parse(values).train.times == "bell(std=0.5)"
    values["train"]["importance"] = True
    with pytest.raises(BadInput, match=r"set it to False with config.train.times=bell\(std=0.5\)"):
        parse(values)


def test_options_of_another_form_are_refused_by_the_name_of_their_setting():
    with pytest.raises(BadInput, match=r"^config.train.times=bell\(0.5\): options are written as"):
        parse(changed("train.times", "bell(0.5)"))


def test_heads_of_the_baseline_may_have_an_odd_width():
    values = changed("model.hidden_size", 36)  # 12 heads of 3
    assert parse(values | {"family": "autoregressive"}).model.hidden_size == 36
    with pytest.raises(BadInput, match="must be a multiple of twice config.model.num_heads"):
        parse(values)


def test_differences_are_listed_by_dotted_key():
    new = dataclasses.replace(Config(), seed=1, graph="uniform")
    assert differences(Config(), Config()) == []
    assert differences(Config(), new) == ["seed: 0 -> 1", "graph: 'absorb' -> 'uniform'"]
