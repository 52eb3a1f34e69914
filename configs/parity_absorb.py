"""The small absorbing model to compare learning curves with the published code.

Paper row: none; 1.1M parameters on 0.4 MB of English bytes, 1000 steps of 32 x 128 tokens.
Hardware: 2 CPU cores, about 7 minutes. Metric: held-out bits per byte, docs/learning.md.

    python -m benchmarks.learning_parity --config=configs/parity_absorb.py
"""

from sedd_jax.experiment.config import default_config


def get_config():
    config = default_config()
    config.model.hidden_size = 128
    config.model.cond_dim = 64
    config.model.num_blocks = 4
    config.model.num_heads = 4
    config.model.length = 128
    config.model.dropout = 0.0
    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.low_discrepancy = False  # as published: independent times
    config.optim.warmup_steps = 100
    config.eval.batch_size = 64
    return config
