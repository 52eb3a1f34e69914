"""The autoregressive baseline at the size of tiny.py, on the same text: what diffusion is up to.

Paper row: none. Hardware: 2 CPU cores. Metric: held-out bits per byte, exact.

    python -m sedd_jax.train --config=configs/ar_tiny.py --workdir=runs/ar_tiny
"""

from configs import tiny
from sedd_jax.experiment.config import ModelConfig


def get_config():
    config = tiny.get_config()
    config.family = "autoregressive"
    config.model.cond_dim = ModelConfig.cond_dim  # there is no noise to condition on
    return config
