"""The small uniform-graph model to compare learning curves with the published code.

Paper row: none; 1.1M parameters on 0.4 MB of English bytes, 1000 steps of 32 x 128 tokens.
Hardware: 2 CPU cores, about 7 minutes. Metric: held-out bits per byte, docs/learning.md.

    python -m benchmarks.learning_parity --config=configs/parity_uniform.py
"""

from sedd_jax.experiment.config_files import config_beside

parity_absorb = config_beside(__file__, "parity_absorb")


def get_config():
    config = parity_absorb.get_config()
    config.graph = "uniform"
    config.noise.schedule = "geometric"
    config.model.scale_by_sigma = False
    return config
