"""Every test runs on 8 CPU devices; implicit rank promotion is an error."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: a TPU or GPU would change the numbers

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
