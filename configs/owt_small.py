"""SEDD small on OpenWebText, absorbing graph: the model of the paper's main tables.

Paper row: SEDD absorb, small; zero-shot perplexity bounds LAMBADA 50.92, WikiText2 41.84,
PTB 114.24, WikiText103 40.62, 1BW 79.29. Hardware: one host with 8 accelerators; not trained by
this project, so no time is given. The number of steps is that of the published config; the paper
compares at 400,000.

Corpus and tokenizer come from the Hugging Face hub: `pip install "sedd_jax[gpt2,hub]"`. For local
files, give `--config.data.corpus=FILES` (text with `--config.data.separator="<|endoftext|>"`, JSON
lines or Parquet) and `--config.data.tokenizer_path=FOLDER` with GPT-2's encoder.json and vocab.bpe.
All OpenWebText configs use the same prepared data.

    python -m sedd_jax.prepare --config=configs/owt_small.py --output=data/owt
    python -m sedd_jax.train --config=configs/owt_small.py --workdir=runs/owt_small \
        --config.data.prepared=data/owt
"""

from sedd_jax.experiment.config import default_config


def get_config():
    config = default_config()  # the default is the small model and its published training
    config.train.microbatches = 4  # 16 sequences at a time on each of 8 accelerators
    config.data.corpus = "hf:Skylion007/openwebtext"
    config.data.heldout_fraction = 0.01
    config.data.tokenizer = "gpt2"
    config.data.tokenizer_path = "openai-community/gpt2"
    config.data.vocab_size = 50257
    config.data.crop = "blocks"  # a corpus this large is seen a few times at most
    return config
