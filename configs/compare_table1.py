"""The rows of the paper's Table 1 and their successors, small, on text that needs no download.

Paper row: Table 1, small models. Hardware: 2 CPU cores. Metric: bits per byte of held-out text,
docs/compare.md. Time: 16 minutes beside other load; `configs/compare_table1.py:long`, with two
seeds, 2 h 20 min.

    python -m sedd_jax.compare --config=configs/compare_table1.py --workdir=runs/table1
"""

from sedd_jax.comparison.settings import default_comparison
from sedd_jax.experiment.config import ModelConfig


def get_config(form="quick"):
    config = default_comparison()
    config.data.tokenizer = "bytes"
    config.model.dropout = 0.0
    config.train.batch_size = 32
    config.optim.warmup_steps = 100
    config.optim.decay = "cosine"
    config.optim.learning_rate = 2e-3
    config.train.log_every = 50
    config.eval.max_blocks = 512
    config.eval.num_samples = 0
    config.comparison.reference = "sedd_absorb"
    # without conditioning, or with a small table of embeddings, a network has as many parameters as
    # the others where it is wider
    forms = {"quick": _quick, "long": _long}
    if form not in forms:
        raise ValueError(f"the form after the colon must be quick or long, got {form!r}")
    causal, gaussian = forms[form](config)
    rows = config.rows
    rows.autoregressive = {
        "published": "GPT-2",
        "family": "autoregressive",
        "model": {"cond_dim": ModelConfig.cond_dim, "hidden_size": causal},
    }
    rows.sedd_absorb = {"title": "SEDD absorb", "published": "SEDD absorb"}
    rows.sedd_uniform = _uniform("SEDD uniform", "score_entropy", published="SEDD uniform")
    d3pm = "d3pm(steps=1000, auxiliary=0.01)"
    rows.d3pm_absorb = _absorb("D3PM absorb", d3pm, "denoiser") | {"published": "D3PM"}
    rows.d3pm_uniform = _uniform("D3PM uniform", d3pm, "leave_one_out")
    rows.plaid = {
        "title": "PLAID",
        "published": "PLAID",
        "family": "gaussian",
        "model": {"hidden_size": gaussian},
    }
    rows.mdlm = _absorb("MDLM", "cross_entropy", "denoiser")
    rows.radd = _absorb("RADD", "cross_entropy", "denoiser", time_conditioning=False)
    rows.denoising_uniform = _uniform("denoising uniform", "cross_entropy", "denoiser")
    rows.udlm = _uniform("UDLM", "score_entropy", "leave_one_out")
    csm = "concrete_score_matching"
    rows.csm_absorb = _absorb("concrete score absorb", csm, "ratio")
    rows.csm_uniform = _uniform("concrete score uniform", csm)
    return config


def _absorb(title, objective, output, **model):
    return {"title": title, "train": {"objective": objective}, "model": {"output": output} | model}


def _uniform(title, objective, output="ratio", **about):
    row = {"title": title, "graph": "uniform", "train": {"objective": objective}}
    # the paper's schedule for this graph
    row["noise"] = {"schedule": "geometric"}
    return row | {"model": {"output": output, "scale_by_sigma": False}} | about


def _quick(config):
    """A network of 0.2M parameters; returns the widths of those that differ."""
    config.model.hidden_size = 64
    config.model.cond_dim = 32
    config.model.num_blocks = 2
    config.model.num_heads = 2
    config.model.length = 64
    config.train.steps = 800
    config.optim.ema_decay = 0.99
    config.eval.every = 200
    config.checkpoint.every = 400
    config.comparison.max_blocks = 384
    config.comparison.draws = 8
    return 80, 68


def _long(config):
    """A network of 0.5M parameters, twice; returns the widths of those that differ."""
    config.model.hidden_size = 96
    config.model.cond_dim = 48
    config.model.num_blocks = 3
    config.model.num_heads = 3
    config.model.length = 128
    config.train.steps = 1200
    config.optim.ema_decay = 0.995
    config.eval.every = 300
    config.checkpoint.every = 300
    config.comparison.seeds = 2
    return 114, 102
