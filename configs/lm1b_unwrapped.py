"""SEDD on One Billion Words, absorbing graph, one sentence a block.

Paper row: as lm1b.py. Hardware and data too; not trained by this project. A sentence is cut at 128
tokens and filled up with end-of-document tokens, which the model learns to write and which count in
the perplexity per token: compare bits per byte.

    python -m sedd_jax.prepare --config=configs/lm1b_unwrapped.py --output=data/lm1b_unwrapped
    python -m sedd_jax.train --config=configs/lm1b_unwrapped.py --workdir=runs/lm1b_unwrapped \
        --config.data.prepared=data/lm1b_unwrapped
"""

from configs import lm1b


def get_config():
    config = lm1b.get_config()
    config.data.wrap = False
    return config
