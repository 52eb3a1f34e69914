"""SEDD on DNA with classes: splice junctions of primates, uniform graph, told which kind to draw.

Paper row: none. The set is the UCI one (Towell, Noordewier and Shavlik 1992): 60 bases around the
junction from exon to intron (EI), from intron to exon (IE), or neither (N). Hardware: 2 CPU cores.
Metric: `evaluate --suite=sequences`, docs/dna.md, which is this config worked through.

    python -m examples.split_sequences --source=splice.data --columns=class,name,text \
        --workdir=runs/splice_data
    python -m sedd_jax.train --config=configs/dna_splice.py --workdir=runs/splice

Own sequences: --config.data.corpus=MINE.fasta with `class=...` in the headers, and
--config.model.length; without classes, --config.data.condition="" as well. The absorbing graph:
--config.graph=absorb --config.noise.schedule=loglinear --config.model.scale_by_sigma=True.
Convolutions: --config.model.trunk=convolution --config.model.num_blocks=20. A classifier to guide
by (docs/conditions.md): --config.family=classifier --config.eval.num_samples=0.
"""

from sedd_jax.experiment.config_files import config_beside

dna_uniform = config_beside(__file__, "dna_uniform")


def get_config():
    config = dna_uniform.get_config()
    config.model.num_blocks = 4
    config.model.length = 60
    config.data.corpus = "runs/splice_data/training.csv"
    config.data.heldout_corpus = "runs/splice_data/heldout.csv"
    config.data.condition = "class"
    config.data.bad_documents = "refuse"
    config.train.steps = 1500
    config.train.batch_size = 64
    config.train.log_every = 50
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 100
    config.optim.decay = "cosine"
    config.optim.ema_decay = 0.99  # 0.9999 averages over more steps than the run has
    config.eval.every = 250
    config.eval.batch_size = 64
    config.eval.max_blocks = 512
    config.eval.sample_every = 1500
    config.eval.num_samples = 4
    config.checkpoint.every = 250
    return config
