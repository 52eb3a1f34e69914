"""A small SEDD on real English text that needs no download: the first thing to run.

Paper row: none. Hardware: 2 CPU cores. Metric: held-out bits per byte, docs/learning.md.

    python -m sedd_jax.train --config=configs/tiny.py --workdir=runs/tiny
"""

from sedd_jax.runtime.config import default_config


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
    config.train.log_every = 50
    config.optim.warmup_steps = 100
    config.eval.every = 500
    config.eval.batch_size = 64
    config.eval.sample_every = 1000
    config.checkpoint.every = 500
    return config
