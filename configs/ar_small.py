"""GPT-2 small on OpenWebText: the autoregressive baseline of the paper's main tables.

Paper row: GPT-2, small; zero-shot perplexity LAMBADA 45.04, WikiText2 42.43, PTB 138.43,
WikiText103 41.60, 1BW 75.20. They are exact, where those of owt_small.py are bounds, and belong to
OpenAI's weights, which `sedd.load` reads. This config trains the same network with the data, batch
and optimiser of owt_small.py. Hardware: one host with 8 accelerators; not trained by this project,
so no time is given.

    python -m sedd_jax.prepare --config=configs/owt_small.py --output=data/owt
    python -m sedd_jax.train --config=configs/ar_small.py --workdir=runs/ar_small \
        --config.data.prepared=data/owt
"""

from sedd_jax.experiment.config_files import config_beside

owt_small = config_beside(__file__, "owt_small")


def get_config():
    config = owt_small.get_config()  # it has the sizes of GPT-2 small
    config.family = "autoregressive"
    return config
