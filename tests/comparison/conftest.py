"""A comparison of the smallest rows there can be."""

import pytest

from sedd_jax.comparison.runs import complete
from sedd_jax.comparison.settings import default_comparison
from tests.comparison.rows import plan_of, quickly


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Returns a function to a new ConfigDict with an autoregressive and a diffusion row."""
    corpus = tmp_path_factory.mktemp("corpus") / "text.txt"
    corpus.write_text("\n\n".join(f"{i} and {i * i} are two numbers." for i in range(40)))

    def made():
        config = default_comparison()
        config.data.corpus, config.data.separator = str(corpus), r"\n\n"
        config.data.heldout_fraction = 0.3
        for name, size in {"hidden_size": 16, "num_heads": 2, "num_blocks": 1, "length": 8}.items():
            config.model[name] = size
        config.model.cond_dim, config.model.dropout = 8, 0.0
        config.train.steps, config.train.batch_size, config.train.log_every = 6, 8, 2
        config.optim.learning_rate, config.optim.warmup_steps = 1e-2, 2
        config.eval.every, config.eval.batch_size, config.eval.max_blocks = 3, 8, 16
        config.eval.num_samples = 0
        config.checkpoint.every = 2
        settings = config.comparison
        settings.seeds, settings.draws, settings.max_blocks, settings.samples = 2, 2, 16, 4
        settings.evaluations, settings.temperatures, settings.reference = 3, "1", "absorb"
        causal = {"family": "autoregressive", "model": {"cond_dim": 128}, "published": "GPT-2"}
        config.rows.ar = causal
        config.rows.absorb = {"title": "SEDD absorb", "published": "SEDD absorb"}
        return config

    return made


@pytest.fixture(scope="session")
def finished(small, tmp_path_factory):
    """A comparison that has ended; read only."""
    plan = plan_of(small(), tmp_path_factory.mktemp("comparisons") / "finished")
    with quickly():
        complete(plan, lambda: None)
    return plan
