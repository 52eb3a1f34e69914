"""Former place of `sedd_jax.experiment.config`, which config files import; for one release."""

import warnings

from sedd_jax.experiment.config import default_config

__all__ = ["default_config"]

warnings.warn(
    "sedd_jax.runtime.config is now sedd_jax.experiment.config.", DeprecationWarning, stacklevel=2
)
