"""The report on classes, of a network of few steps: its bounds hold, its samples are off."""

import pytest

from configs import exact_conditions
from sedd_jax.experiment.config import parse
from sedd_jax.inference.build import build_family
from sedd_jax.verification.conditions import check_conditions, two_classes
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.report import ExactConfig


@pytest.mark.slow
def test_claims_on_classes():
    config = exact_conditions.get_config()
    config.data.vocab_size = config.model.length = 2
    config.model.hidden_size = 16
    config.exact.max_steps = 64
    config.train.steps, config.train.batch_size, config.optim.warmup_steps = 20, 32, 5
    config = parse(config, ExactConfig)
    conditions = two_classes(config)
    family = build_family(config, config.data.vocab_size, conditions=conditions)
    space = Space(family.graph, config.model.length)
    section = check_conditions(config, family, space, space.random_data(0), conditions)
    assert [claim.holds for claim in section.claims] == [False, False, *[True] * 5]
    assert [row[0] for row in section.tables[0].rows] == ["first", "second", "nothing"]
