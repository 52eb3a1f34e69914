"""Samplers with true scores on a Markov chain of 8 tokens, length 1024, on both graphs.

Paper row: none. Hardware: 2 CPU cores, about 15 minutes. Metric: excess of the samples over the
entropy of the data, nats per token, by network evaluations: about 8192 for every figure, so that
errors are 0.0008 (8 steps) to 0.009 (1024). It fails unless 128 evaluations of the best sampler
reach the error of Tweedie with 513, by the excess and by pairs of neighbours.

    python -m sedd_jax.exact --config=configs/oracle_markov.py
    python -m sedd_jax.exact --config=configs/oracle_markov.py --config.oracle.hidden=16
    python -m sedd_jax.exact --config=configs/oracle_markov.py --sampler="gibbs(spacing=2)"
"""

from sedd_jax.experiment.config import default_config
from sedd_jax.verification.oracle import OracleConfig


def get_config():
    config = default_config(OracleConfig)
    config.data.vocab_size = 8
    config.model.length = 1024
    return config
