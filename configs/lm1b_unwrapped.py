"""SEDD on One Billion Words, absorbing graph, one sentence per block.

Paper row, hardware and data: as lm1b.py; not trained by this project. A sentence is cut at 128
tokens and padded with end-of-document tokens. The model learns to write them, and they count in the
perplexity per token, so compare bits per byte.

    python -m sedd_jax.prepare --config=configs/lm1b_unwrapped.py --output=data/lm1b_unwrapped
    python -m sedd_jax.train --config=configs/lm1b_unwrapped.py --workdir=runs/lm1b_unwrapped \
        --config.data.prepared=data/lm1b_unwrapped
"""

from sedd_jax.experiment.config_files import config_beside

lm1b = config_beside(__file__, "lm1b")


def get_config():
    config = lm1b.get_config()
    config.data.wrap = False
    return config
