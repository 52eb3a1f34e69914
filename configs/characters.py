"""A small SEDD on characters of the text of tiny.py, long enough trained that samplers differ.

Paper row: none. Hardware: 2 CPU cores. Metric: held-out bits per byte; docs/sampling.md.

    python -m sedd_jax.train --config=configs/characters.py --workdir=runs/characters
    python -m sedd_jax.train --config=configs/characters.py --workdir=runs/characters_uniform \
        --config.graph=uniform --config.model.scale_by_sigma=False
"""

from sedd_jax.experiment.config_files import config_beside

tiny = config_beside(__file__, "tiny")


def get_config():
    config = tiny.get_config()
    config.data.tokenizer = "characters"
    config.data.vocab_size = 0  # the number of different characters of the text
    config.train.steps = 5000
    config.train.importance = True
    config.optim.learning_rate = 2e-3
    config.optim.ema_decay = 0.999
    config.eval.every = 1000
    config.eval.sample_every = 5000
    config.checkpoint.every = 500
    return config
