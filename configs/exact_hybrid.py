"""Verification on all 4^3 = 64 sequences of 3 tokens and a mask, under the hybrid graph.

Paper row: none. Hardware: 2 CPU cores, a quarter of an hour beside other load. Metric: every claim
of the report holds.

    python -m sedd_jax.exact --config=configs/exact_hybrid.py
"""

from sedd_jax.experiment.config_files import config_beside

exact_absorb = config_beside(__file__, "exact_absorb")


def get_config():
    config = exact_absorb.get_config()
    config.graph = "hybrid(mask=0.3)"
    config.model.scale_by_sigma = False
    config.train.steps = 3000  # after 2000 the TV of drawn samples is 0.0204, and 0.02 the limit
    return config
