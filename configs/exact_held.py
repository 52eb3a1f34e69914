"""Verification of given tokens under the uniform graph, all 3^3 = 27 sequences of 3 tokens.

Paper row: none. Hardware: 2 CPU cores, about 4 minutes. Metric: every claim of the report holds.

    python -m sedd_jax.exact --config=configs/exact_held.py
"""

from sedd_jax.experiment.config_files import config_beside

exact_uniform = config_beside(__file__, "exact_uniform")


def get_config():
    config = exact_uniform.get_config()
    config.train.hold = "tokens(probability=0.8)"
    config.train.steps = 4000
    return config
