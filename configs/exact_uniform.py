"""Verification on all 3^3 = 27 sequences of 3 tokens under the uniform graph.

Paper row: none. Hardware: 2 CPU cores, about 3 minutes. Metric: every claim of the report holds.

    python -m sedd_jax.exact --config=configs/exact_uniform.py
"""

from sedd_jax.experiment.config_files import config_beside

exact_absorb = config_beside(__file__, "exact_absorb")


def get_config():
    config = exact_absorb.get_config()
    config.graph = "uniform"
    config.noise.schedule = "geometric"
    config.model.scale_by_sigma = False
    return config
