"""PLAID, the Gaussian diffusion baseline, with the size and the text of tiny.py.

Paper row: none. Hardware: 2 CPU cores. Metric: held-out bits per byte, a bound.

    python -m sedd_jax.train --config=configs/plaid_tiny.py --workdir=runs/plaid_tiny
"""

from sedd_jax.experiment.config_files import config_beside

tiny = config_beside(__file__, "tiny")


def get_config():
    config = tiny.get_config()
    config.family = "gaussian"
    return config
