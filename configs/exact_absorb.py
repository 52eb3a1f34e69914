"""Verification on all 4^3 = 64 sequences of 3 tokens and a mask.

Paper row: none. Hardware: 2 CPU cores, about 3 minutes. Metric: every claim of the report holds.

    python -m sedd_jax.exact --config=configs/exact_absorb.py
"""

from sedd_jax.experiment.config import default_config
from sedd_jax.verification.report import ExactConfig


def get_config():
    config = default_config(ExactConfig)
    config.data.vocab_size = 3
    config.model.length = 3
    config.model.hidden_size = 32
    config.model.cond_dim = 32
    config.model.num_blocks = 2
    config.model.num_heads = 2
    config.model.dropout = 0.0
    config.model.dtype = "float32"  # the limits of the claims assume it
    config.model.learned_positions = True  # the distribution of a token depends on its position
    config.train.steps = 2000
    config.train.batch_size = 256
    config.train.importance = True
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 50
    config.optim.decay = "cosine"
    config.optim.ema_decay = 0.995
    return config
