"""Verification of a network that is told a class, all 4^3 = 64 sequences of 3 tokens and a mask.

Paper row: none. Hardware: 2 CPU cores, about 2 minutes. Metric: every claim of the report holds.

    python -m sedd_jax.exact --config=configs/exact_conditions.py
"""

from sedd_jax.experiment.config_files import config_beside

exact_absorb = config_beside(__file__, "exact_absorb")


def get_config():
    config = exact_absorb.get_config()
    config.data.condition = "class"
    config.data.wrap = False
    config.data.crop = "blocks"
    config.train.condition_dropout = 0.3
    config.train.steps = 4000
    return config
