"""SEDD with 6.95 billion parameters on OpenWebText, absorbing graph: beyond the paper's sizes.

Paper row: none. Intended hardware, on which it has not run: 64 accelerators of at least 80 GB, 8
hosts of H100 or a v5p-128 slice, with the parameters sharded over 8 devices each, over the fast
network of a host. The state has 16 bytes per parameter (weight, two moments, average), 111 GB in
total and 13.9 GB per device. During a step the gradient and the sum over microbatches add 8 bytes,
7.0 GB per device. Only the input of a block is kept, 4.3 GB for 8 sequences in float32; the rest is
for gathered weights and the activations of one block. bfloat16 moments (`optim.first_moment`,
`optim.second_moment`) save 3.5 GB per device. Batch size and learning rate are untested and not
tuned. Data as in owt_small.py.

    python -m sedd_jax.train --config=configs/owt_7b.py --workdir=runs/owt_7b \
        --config.data.prepared=data/owt
"""

from sedd_jax.experiment.config_files import config_beside

owt_medium = config_beside(__file__, "owt_medium")


def get_config():
    config = owt_medium.get_config()
    config.train.batch_size = 1024
    config.train.microbatches = 2  # 8 sequences at a time on each of 64 accelerators
    config.eval.batch_size = 1024
    config.model.hidden_size = 4096
    config.model.num_blocks = 32
    config.model.num_heads = 32
    config.model.remat = "blocks"
    config.optim.learning_rate = 1.5e-4
    config.mesh.data = -1  # eight copies of the network on 64 accelerators
    config.mesh.fsdp = 8
    return config
