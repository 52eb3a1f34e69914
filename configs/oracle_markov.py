"""Samplers with true scores on a Markov chain of 8 tokens, length 1024, on both graphs.

Paper row: none. Hardware: 2 CPU cores, about 10 minutes. Metric: excess of the samples over the
entropy of the data, nats per token, by network evaluations.

    python -m sedd_jax.exact --config=configs/oracle_markov.py
    python -m sedd_jax.exact --config=configs/oracle_markov.py --config.oracle.hidden=16
"""

from sedd_jax.experiment.config import default_config
from sedd_jax.verification.oracle import OracleConfig


def get_config():
    config = default_config(OracleConfig)
    config.data.vocab_size = 8
    config.model.length = 1024
    return config
