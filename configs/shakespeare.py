"""Characters of any UTF-8 text file of about a megabyte, such as tiny Shakespeare.

Paper row: none. Hardware: 2 CPU cores or anything larger. Metric: held-out bits per byte.

    python -m sedd_jax.train --config=configs/shakespeare.py --workdir=runs/shakespeare \
        --config.data.corpus=input.txt
"""

from sedd_jax.experiment.config_files import config_beside

tiny = config_beside(__file__, "tiny")


def get_config():
    config = tiny.get_config()
    config.data.corpus = "input.txt"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 0  # the number of different characters of the text
    return config
