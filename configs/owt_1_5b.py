"""SEDD with 1.45 billion parameters on OpenWebText, absorbing graph: beyond the paper's sizes.

Paper row: none. Intended hardware, on which it has not run: 8 accelerators of at least 80 GB, with
the parameters sharded over all 8; one host of H100 or a v5p-16 slice. The state has 16 bytes per
parameter (weight, two moments, average), 23 GB in total and 2.9 GB per device. During a step the
gradient and the sum over microbatches add 8 bytes, 1.5 GB per device. The rest is for gathered
weights and the activations of 8 sequences. The learning rate is below that of the medium model,
untested and not tuned. Data as in owt_small.py.

    python -m sedd_jax.train --config=configs/owt_1_5b.py --workdir=runs/owt_1_5b \
        --config.data.prepared=data/owt
"""

from sedd_jax.experiment.config_files import config_beside

owt_medium = config_beside(__file__, "owt_medium")


def get_config():
    config = owt_medium.get_config()
    config.train.microbatches = 8  # 8 sequences at a time on each of 8 accelerators
    config.model.hidden_size = 2048
    config.model.num_blocks = 24
    config.model.num_heads = 16
    config.optim.learning_rate = 2e-4
    config.mesh.data = -1  # one copy of the network on 8 accelerators, two on 16
    config.mesh.fsdp = 8
    return config
