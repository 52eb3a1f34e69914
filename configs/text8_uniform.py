"""SEDD on text8, characters, uniform graph.

Paper row: text8, 256 characters, 12 layers; 1.47 bits per character. Hardware and data as
text8_absorb.py; not trained by this project.

    python -m sedd_jax.train --config=configs/text8_uniform.py --workdir=runs/text8_uniform \
        --config.data.corpus=text8
"""

from sedd_jax.experiment.config_files import config_beside

text8_absorb = config_beside(__file__, "text8_absorb")


def get_config():
    config = text8_absorb.get_config()
    config.graph = "uniform"
    config.noise.schedule = "geometric"
    config.model.scale_by_sigma = False
    return config
