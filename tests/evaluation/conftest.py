"""Made-up records, what a data set or a sampler might have given, and a small causal model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.data.tokenizer import Bytes
from sedd_jax.evaluation.record import Record
from sedd_jax.experiment.config import Config
from sedd_jax.inference.build import build_family
from sedd_jax.inference.model import TrainedModel

POSITIONS = 16


def likelihood(name="wikitext2", *, model="small", exact=False, protocol=(), **figures):
    nats = 3.93
    found = {
        "tokens": 283_287, "blocks": 277, "documents": 62, "bytes": 1_290_590, "exact": exact,
        "nats_per_token": nats, "stderr": 0.0 if exact else 0.0026, "data_stderr": 0.0123,
        "bits_per_token": 5.67, "bits_per_byte": 1.2446,
        "perplexity": 50.907, "perplexity_stderr": 0.0 if exact else 0.1324,
        "by_t": [] if exact else [[0.0, 0.5, 1.0], [0.5, 1.0, 2.93]], "seconds": 12.0,
    }  # fmt: skip
    asked = {
        "protocol": "sedd", "source": f"{name}.txt", "sha256": "0123456789abcdef" * 4,
        "wrap": True, "length": 1024, "seed": 0,
    }  # fmt: skip
    return Record("likelihood", name, made(model), asked | dict(protocol), found | figures)


FINAL = "one draw that removes all noise left at t = 0.001, never the mask"
HELDOUT = {"reference": {"name": "heldout", "sha256": "b622c459fbc4" * 5, "texts": 149}}


def quality(steps, *, model="small", sampler="tweedie", protocol=(), **figures):
    found = {
        "samples": 256, "evaluations": steps + 1, "seconds": 9.0, "entropy": 5.4321,
        "entropy_stderr": 0.012, "distinct_1": 0.25, "distinct_2": 0.7, "distinct_3": 0.94,
        "self_repetition": 0.0312, "gen_perplexity_samples": 1234.5,
        "gen_perplexity_samples_stderr": 41.0, "gen_perplexity_tokens": 98.76,
        "gen_perplexity_tokens_stderr": 1.1, "texts": ["A <b>bold</b> & \"quoted\" text\x00"],
    }  # fmt: skip
    asked = {
        "sampler": sampler, "steps": steps, "length": 1024, "samples": 256, "seed": 0,
        "final_step": FINAL,
        "judge": {"name": "gpt2-large", "weights": "b2" * 8, "length": 1024}, "reference": None,
    }  # fmt: skip
    name = f"{sampler}-{steps}"
    return Record("quality", name, made(model), asked | dict(protocol), found | figures)


def autoregressive(**figures):
    record = quality(1024, model="ar", sampler="autoregressive", evaluations=1024, **figures)
    asked = record.protocol | {"final_step": "none", "temperature": 1.0, "top_p": 1.0}
    del asked["steps"]
    return dataclasses.replace(record, name="autoregressive", protocol=asked)


def real_text(model="small", **figures):
    found = {"samples": 149, "evaluations": 0, "gen_perplexity_tokens": 21.5, "entropy": 5.9}
    record = quality(1, model=model, sampler="real text", **found, **figures)
    asked = record.protocol | {"samples": 149, "seed": None} | HELDOUT
    del asked["steps"], asked["final_step"]
    return dataclasses.replace(record, name="real-text", protocol=asked)


def made(name):
    return {
        "name": name, "family": "diffusion", "step": 400_000, "weights": name[:4] * 4,
        "length": 1024, "tokenizer": "gpt2", "parameters": 1_300_000,
    }  # fmt: skip


@pytest.fixture
def records():
    """Two data sets under one protocol, and samples of all kinds beside real text."""
    return [
        likelihood(),
        likelihood("lambada", perplexity=41.2, perplexity_stderr=0.0996),
        likelihood(model="gpt2", exact=True, protocol={"first_token": "after the start"}),
        *(quality(steps) for steps in (16, 64)),
        quality(64, sampler="euler", gen_perplexity_tokens=float("nan")),
        quality(
            64, protocol=HELDOUT | {"mauve": "mauve-text 0.4.0"}, samples=2048, mauve=0.91,
            self_repetition_stderr=0.0021, notes=["mauve says little"],
        ),
        autoregressive(),
        real_text(),
        real_text("ar", seconds=3.0),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def causal():
    """A causal model over bytes, of random weights whose predictions depend on the past."""
    config = Config()
    sizes = {"hidden_size": 16, "num_blocks": 1, "num_heads": 2, "length": POSITIONS}
    model = dataclasses.replace(config.model, **sizes, dropout=0.0, attention="xla")
    config = dataclasses.replace(config, family="autoregressive", model=model)
    components = build_family(config, Bytes.vocab_size)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32),
        jax.eval_shape(components.model.init, jax.random.key(0)),
    )
    return TrainedModel(components, params, config, Bytes(), None)
