"""SEDD on One Billion Words, absorbing graph, sentences in a row cut at 128 tokens.

Paper row: 1BW, test perplexity bound 32.79. The paper says little about its tokens and about
wrapping of sentences, so compare bits per byte. Hardware: one TPU or GPU host; not trained by this
project, so no time is given. The tokenizer is a sentencepiece model of 8192 pieces, trained on 10
million characters sampled from the whole training split. Held out: the test split.

    python -m sedd_jax.prepare --config=configs/lm1b.py --output=data/lm1b
    python -m sedd_jax.train --config=configs/lm1b.py --workdir=runs/lm1b \
        --config.data.prepared=data/lm1b

The data set comes from tensorflow-datasets. With the files of the benchmark itself, one sentence
per line, give `--config.data.corpus=training-monolingual` and
`--config.data.heldout_corpus=heldout-monolingual`.
"""

from sedd_jax.experiment.config import default_config


def get_config():
    config = default_config()
    config.data.corpus = "tfds:lm1b"
    config.data.heldout_corpus = "tfds:lm1b:test"
    config.data.separator = "\n"
    config.data.bad_documents = "skip"  # some lines are empty
    config.data.tokenizer = "sentencepiece"
    config.data.vocab_size = 8192
    config.data.crop = "blocks"
    config.model.length = 128
    config.train.steps = 1_000_000
    return config
