"""SEDD small on OpenWebText, absorbing graph: the model of the paper's main tables.

Paper row: SEDD absorb, small; zero-shot perplexity bounds LAMBADA 50.92, WikiText2 41.84,
PTB 114.24, WikiText103 40.62, 1BW 79.29. Hardware: one host with 8 accelerators; this project has
not trained it, so no time is given. Steps are those of the published config; the paper's
comparisons are at 400,000.

The corpus is a UTF-8 file of documents separated by <|endoftext|>; the tokenizer needs GPT-2's
encoder.json and vocab.bpe, and `pip install "sedd_jax[gpt2]"`.

    python -m sedd_jax.train --config=configs/owt_small.py --workdir=runs/owt_small \
        --config.data.corpus=openwebtext.txt --config.data.tokenizer_path=gpt2
"""

from sedd_jax.runtime.config import default_config


def get_config():
    config = default_config()  # the default is the small model and its published training
    config.train.microbatches = 8  # 8 sequences at a time on each of 8 accelerators
    config.data.corpus = "openwebtext.txt"
    config.data.separator = "<|endoftext|>"
    config.data.heldout_fraction = 0.01
    config.data.tokenizer = "gpt2"
    config.data.tokenizer_path = "gpt2"
    config.data.vocab_size = 50257
    config.data.crop = "blocks"  # a corpus this large is seen a few times at most
    return config
