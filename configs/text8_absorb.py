"""SEDD on text8, characters, absorbing graph.

Paper row: text8, 256 characters, 12 layers; 1.39 bits per character. Hardware: one TPU or GPU host;
not trained by this project, so no time is given.

The corpus is the text8 file: 100 MB of a to z and spaces. The last 10 % are held out, which are the
usual validation and test splits together. The bound in bits per byte is in bits per character.

    python -m sedd_jax.train --config=configs/text8_absorb.py --workdir=runs/text8 \
        --config.data.corpus=text8
"""

from sedd_jax.experiment.config import default_config


def get_config():
    config = default_config()
    config.model.length = 256
    config.data.corpus = "text8"
    config.data.tokenizer = "text8"
    config.data.vocab_size = 27
    config.train.steps = 1_000_000
    return config
