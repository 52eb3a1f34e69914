"""A run of less than a minute that does everything once, for tests and a first look.

Paper row: none. Hardware: any. Metric: none; 40 steps learn letter frequencies only.

    python -m sedd_jax.train --config=configs/smoke.py --workdir=runs/smoke
"""

from sedd_jax.experiment.config import default_config


def get_config():
    config = default_config()
    config.model.hidden_size = 32
    config.model.cond_dim = 16
    config.model.num_blocks = 2
    config.model.num_heads = 2
    config.model.length = 32
    config.train.steps = 40
    config.train.batch_size = 16
    config.train.log_every = 10
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 10
    config.eval.every = 20
    config.eval.batch_size = 64
    config.eval.max_blocks = 128
    config.eval.sample_every = 40
    config.eval.sample_steps = 16
    config.checkpoint.every = 20
    return config
