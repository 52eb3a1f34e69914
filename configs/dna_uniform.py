"""SEDD on DNA, four letters, uniform graph.

Paper row: none; graph and noise are those that users of the published code train on DNA, and the
size is that of their convolutional networks. Hardware: one accelerator, or a CPU for short
sequences. Metric: perplexity bound per letter, 4 for noise.

The corpus is FASTA. A sequence is a block: it must have at least `model.length` letters and is cut
there. Shorter sequences, and those with letters other than A, C, G and T, are skipped and counted.
For a genome, --config.data.split_at_unknown=True keeps what is between those letters, and
--config.data.wrap=True cuts nothing off (--config.data.crop=random shifts the blocks).

    python -m sedd_jax.train --config=configs/dna_uniform.py --workdir=runs/dna \
        --config.data.corpus=sequences.fa.gz --config.model.length=100
"""

from sedd_jax.experiment.config import default_config


def get_config():
    config = default_config()
    config.graph = "uniform"
    config.noise.schedule = "geometric"
    config.model.scale_by_sigma = False
    config.model.hidden_size = 128
    config.model.num_blocks = 6
    config.model.num_heads = 4
    config.model.length = 1024
    config.model.learned_positions = True  # a motif has a fixed position in the window
    config.data.corpus = "sequences.fa.gz"
    config.data.bad_documents = "skip"
    config.data.tokenizer = "dna"
    config.data.vocab_size = 4
    config.data.wrap = False
    config.data.crop = "blocks"
    config.train.steps = 20_000
    config.train.batch_size = 256
    config.eval.every = 1000
    config.eval.batch_size = 256
    config.eval.sample_every = 5000
    config.checkpoint.every = 1000
    config.optim.ema_decay = 0.999
    return config
