"""The report on given tokens, of a network of few steps: its bounds hold, its samples are off."""

import pytest

from configs import exact_held
from sedd_jax.experiment.config import parse
from sedd_jax.inference.build import build_family
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.held import check_held
from sedd_jax.verification.report import ExactConfig


@pytest.mark.slow
def test_claims_on_given_tokens():
    config = exact_held.get_config()
    config.data.vocab_size = config.model.length = 2
    config.model.hidden_size = 16
    config.train.steps, config.train.batch_size, config.optim.warmup_steps = 20, 32, 5
    config = parse(config, ExactConfig)
    family = build_family(config, 2)
    space = Space(family.graph, 2)
    section = check_held(config, family, space, space.random_data(0))
    assert [claim.holds for claim in section.claims] == [False, True, True]
    assert [row[0] for row in section.tables[0].rows] == ["0", "1"]
