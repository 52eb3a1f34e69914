"""A small SEDD on real English text that needs no download: the first thing to run.

Paper row: none. Hardware: 2 CPU cores. Metric: held-out bits per byte, docs/learning.md.

    python -m sedd_jax.train --config=configs/tiny.py --workdir=runs/tiny
"""

from sedd_jax.experiment.config import default_config


def get_config():
    config = default_config()
    config.data.tokenizer = "sentencepiece"  # 2.5 bytes per token: more text per step
    config.data.vocab_size = 1024
    config.model.hidden_size = 128
    config.model.cond_dim = 64
    config.model.num_blocks = 4
    config.model.num_heads = 4
    config.model.length = 128
    config.model.dropout = 0.0
    config.train.steps = 450
    config.train.batch_size = 32
    config.train.log_every = 50
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 50
    config.optim.decay = "cosine"
    config.optim.ema_decay = 0.99  # 0.9999 averages over more steps than the run has
    config.eval.every = 150
    config.eval.batch_size = 32
    config.eval.max_blocks = 256
    config.eval.sample_every = 450
    config.checkpoint.every = 150
    return config
