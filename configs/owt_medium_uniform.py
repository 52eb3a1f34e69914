"""SEDD medium on OpenWebText, uniform graph.

Paper row: SEDD uniform, medium; zero-shot perplexity bounds LAMBADA 51.28, WikiText2 38.93,
PTB 102.28, WikiText103 36.81, 1BW 79.12. Hardware: as owt_medium.py; not trained by this project.
With `:paper` appended to the config's name, the noise is that of the paper's text; see
owt_small_uniform.py.

    python -m sedd_jax.train --config=configs/owt_medium_uniform.py --workdir=runs/medium_uniform \
        --config.data.prepared=data/owt
"""

from sedd_jax.experiment.config_files import config_beside

owt_medium = config_beside(__file__, "owt_medium")
owt_small_uniform = config_beside(__file__, "owt_small_uniform")


def get_config(source="code"):
    config = owt_small_uniform.get_config(source)
    medium = owt_medium.get_config()
    config.train = medium.train
    config.model = medium.model
    config.model.scale_by_sigma = False
    return config
