"""Score Entropy Discrete Diffusion (Lou, Meng, Ermon, ICML 2024) in JAX.

The public names below are imported on first use, so that `import sedd_jax` itself is instant.
"""

import importlib
import warnings

__version__ = "0.1.0"

_HOMES = {
    "noise": "sedd_jax.diffusion.noise",
    "graph": "sedd_jax.diffusion.graph",
    "score_entropy": "sedd_jax.diffusion.score_entropy",
    "dwdse_loss": "sedd_jax.diffusion.objective",
    "mean_dwdse_loss": "sedd_jax.diffusion.objective",
    "Score": "sedd_jax.diffusion.score",
    "DenseScore": "sedd_jax.diffusion.score",
    "prior_kl": "sedd_jax.diffusion.score_entropy",
    "sample_times": "sedd_jax.diffusion.times",
    "staggered_score": "sedd_jax.diffusion.denoiser",
    "tweedie_probs": "sedd_jax.diffusion.denoiser",
    "denoise_probs": "sedd_jax.diffusion.denoiser",
    "reverse_rate": "sedd_jax.diffusion.euler",
    "euler_probs": "sedd_jax.diffusion.euler",
    "Clamp": "sedd_jax.diffusion.sampler",
    "load": "sedd_jax.inference.load",
    "generate": "sedd_jax.inference.generate",
    "generate_stream": "sedd_jax.inference.stream",
    "Sampling": "sedd_jax.inference.sampling",
    "Sampler": "sedd_jax.diffusion.sampler",
    "Objective": "sedd_jax.diffusion.objective",
    "Family": "sedd_jax.inference.family",
    "generate_autoregressive": "sedd_jax.inference.autoregressive",
    "Prompt": "sedd_jax.inference.prompt",
    "prefix_suffix": "sedd_jax.inference.prompt",
    "templates": "sedd_jax.inference.template",
    "nll_bound": "sedd_jax.inference.likelihood",
    "nll_interval": "sedd_jax.inference.interval",
    "BadInput": "sedd_jax.errors",
}

# former names, for one release
_RENAMED = {"live": "generate_stream"}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"sedd_jax.{name} is now sedd_jax.{new}.", DeprecationWarning, stacklevel=2)
        return __getattr__(new)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    value = module if name in ("noise", "graph") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
