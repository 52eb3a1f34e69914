"""SEDD medium on OpenWebText, absorbing graph.

Paper row: SEDD absorb, medium; zero-shot perplexity bounds LAMBADA 42.77, WikiText2 31.04,
PTB 87.12, WikiText103 29.98, 1BW 61.19. Hardware: one host with 8 accelerators; not trained
by this project, so no time is given. Data as in owt_small.py.

    python -m sedd_jax.train --config=configs/owt_medium.py --workdir=runs/owt_medium \
        --config.data.prepared=data/owt
"""

from sedd_jax.experiment.config_files import config_beside

owt_small = config_beside(__file__, "owt_small")


def get_config():
    config = owt_small.get_config()
    config.train.microbatches = 8  # 8 sequences at a time on each of 8 accelerators
    config.model.hidden_size = 1024
    config.model.num_blocks = 24
    config.model.num_heads = 16
    return config
