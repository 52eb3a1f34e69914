"""The autoregressive baseline with the size and the text of tiny.py, to compare diffusion with.

Paper row: none. Hardware: 2 CPU cores. Metric: held-out bits per byte, exact.

    python -m sedd_jax.train --config=configs/ar_tiny.py --workdir=runs/ar_tiny
"""

from sedd_jax.experiment.config import ModelConfig
from sedd_jax.experiment.config_files import config_beside

tiny = config_beside(__file__, "tiny")


def get_config():
    config = tiny.get_config()
    config.family = "autoregressive"
    config.model.cond_dim = ModelConfig.cond_dim  # there is no noise to condition on
    return config
