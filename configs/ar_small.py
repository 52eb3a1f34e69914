"""GPT-2 small on OpenWebText: the autoregressive baseline of the paper's main tables.

Paper row: GPT-2, small; zero-shot perplexity LAMBADA 45.04, WikiText2 42.43, PTB 138.43,
WikiText103 41.60, 1BW 75.20, exact where those of owt_small.py are bounds. They are of OpenAI's
weights, which `sedd.load` reads; this file trains the same network with the data, batch and
optimiser of owt_small.py. Hardware: one host with 8 accelerators; this project has not trained it,
so no time is given.

The corpus is a UTF-8 file of documents separated by <|endoftext|>; the tokenizer needs GPT-2's
encoder.json and vocab.bpe, and `pip install "sedd_jax[gpt2]"`.

    python -m sedd_jax.train --config=configs/ar_small.py --workdir=runs/ar_small \
        --config.data.corpus=openwebtext.txt --config.data.tokenizer_path=gpt2
"""

from sedd_jax.runtime.config import default_config


def get_config():
    config = default_config()  # its sizes are GPT-2 small's
    config.family = "autoregressive"
    config.train.microbatches = 8  # 8 sequences at a time on each of 8 accelerators
    config.data.corpus = "openwebtext.txt"
    config.data.separator = "<|endoftext|>"
    config.data.heldout_fraction = 0.01
    config.data.tokenizer = "gpt2"
    config.data.tokenizer_path = "gpt2"
    config.data.vocab_size = 50257
    config.data.crop = "blocks"  # a corpus this large is seen a few times at most
    return config
