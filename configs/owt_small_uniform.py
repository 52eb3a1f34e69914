"""SEDD small on OpenWebText, uniform graph.

Paper row: SEDD uniform, small; zero-shot perplexity bounds LAMBADA 65.40, WikiText2 50.27,
PTB 140.12, WikiText103 49.60, 1BW 101.37. Hardware: as owt_small.py; not trained by this project.

The noise goes from 1e-4 to 20 in the published code, and from 1e-5 to 20 in the paper's text. With
`:paper` appended to the config's name it is the latter.

    python -m sedd_jax.train --config=configs/owt_small_uniform.py --workdir=runs/small_uniform \
        --config.data.prepared=data/owt
"""

from sedd_jax.experiment.config_files import config_beside

owt_small = config_beside(__file__, "owt_small")

SIGMA_MIN = {"code": 1e-4, "paper": 1e-5}


def get_config(source="code"):
    config = owt_small.get_config()
    config.graph = "uniform"
    config.noise.schedule = "geometric"
    config.noise.sigma_min = SIGMA_MIN[source]
    config.model.scale_by_sigma = False
    return config
