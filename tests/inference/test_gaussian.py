"""PLAID: its bound against distributions that are known, its samples, and a run of it."""

import dataclasses
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, qmc

import sedd_jax as sedd
from sedd_jax.errors import BadInput
from sedd_jax.experiment.config import Config, default_config, parse
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.gaussian import NoiseDraw, sequence_bound
from sedd_jax.inference.model import TrainedModel
from sedd_jax.model.config import GaussianConfig, ModelConfig
from sedd_jax.train import train
from sedd_jax.training.step import build_train_step, init_state

KEY = jax.random.key(0)
SIZES = {"hidden_size": 32, "cond_dim": 16, "num_blocks": 1, "num_heads": 2, "dropout": 0.0}


def toy(length, **gaussian):
    return Config(
        family="gaussian",
        model=ModelConfig(length=length, **SIZES),
        gaussian=GaussianConfig(**gaussian),
    )


def row_bounds(model, params, rows):
    """All terms of the bound for every row, at 2^13 quasi-random points of t and the noise."""
    length, dimensions = rows.shape[1], model.embed_dim
    points = qmc.Sobol(1 + 2 * length * dimensions, seed=0).random_base2(13).astype(np.float32)
    eps = norm.ppf(points[:, 1:].clip(1e-6, 1 - 1e-6)).astype(np.float32)
    eps = jnp.asarray(eps.reshape(-1, 2, length, dimensions))
    noise = NoiseDraw(jnp.asarray(points[:, 0]), eps[:, 0], eps[:, 1])

    @jax.jit
    def of_row(row):
        return sequence_bound(model, params, noise, jnp.broadcast_to(row, (len(points), length)))

    return np.stack([of_row(row) for row in rows])


@pytest.mark.slow
def test_the_bound_is_tight_where_the_network_is_the_best_one():
    """A network of zeros with the bias log q is the best one for single tokens of distribution q.

    Its reverse process is then that of q but for the ends, so that the bound is -log q of every
    token.
    """
    q, angles = np.array([0.6, 0.3, 0.1]), np.array([0.0, 1.9, 3.5])
    family = build_family(toy(1, embed_dim=2, gamma_first=-6.0, gamma_last=8.0), len(q))
    params = family.model.init(KEY)
    head, table = params["head"], params["embedding"]["table"]
    head["bias"] = head["bias"].at[:3].set(np.log(q))
    ring = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # any norm
    params["embedding"]["table"] = table.at[:3].set(ring)
    found = row_bounds(family.model, params, np.arange(3)[:, None]).mean(1)
    np.testing.assert_allclose(found, -np.log(q), atol=0.04)


PAIRS = np.array(list(itertools.product(range(4), repeat=2)), np.int32)
SHARES = np.array([[8, 2, 0, 1], [2, 4, 3, 0], [0, 3, 6, 0], [1, 0, 0, 2]]).reshape(-1) / 32


@pytest.fixture(scope="module")
def random_model():
    config = toy(2, embed_dim=4)
    family = build_family(config, 4)
    rng = np.random.default_rng(0)

    def noisy(x):
        return x + jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32)

    return TrainedModel(family, jax.tree.map(noisy, family.model.init(KEY)), config, None, None)


@pytest.fixture(scope="module")
def trained():
    """A model of pairs of 4 tokens that depend on each other."""
    config = toy(2, embed_dim=4)
    optim = dataclasses.replace(
        config.optim, learning_rate=1e-2, warmup_steps=20, decay="cosine", ema_decay=0.9
    )
    run = dataclasses.replace(config.train, steps=600)
    family = build_family(config, 4)
    state = init_state(KEY, family, optim)
    step = jax.jit(build_train_step(family, run, optim, KEY))
    drawn = np.random.default_rng(0).choice(len(PAIRS), (run.steps, 256), p=SHARES)
    for rows in drawn:
        state, metrics = step(state, PAIRS[rows])
        assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    return TrainedModel(family, state.ema_params, config, None, None)


@pytest.fixture(scope="module")
def trained_bounds(trained):
    return row_bounds(trained.model, trained.params, PAIRS)


@pytest.mark.slow
def test_the_bound_of_a_trained_model_is_a_bound_and_close(trained, trained_bounds):
    """Probabilities exp(-bound) add up to at most 1, and the mean bound is above the entropy."""
    bounds = trained_bounds
    assert 0.9 < np.exp(-bounds.mean(1)).sum() < 1.01
    entropy = -(SHARES[SHARES > 0] * np.log(SHARES[SHARES > 0])).sum()
    mean = (SHARES * bounds.mean(1)).sum()
    assert entropy - 0.01 < mean < entropy + 0.1
    estimate = sedd.nll_bound(KEY, trained, PAIRS, draws=500, batch_size=16).nats.mean(0)
    np.testing.assert_allclose((SHARES * estimate).sum(), mean, atol=0.3)


@pytest.mark.slow
def test_samples_of_a_trained_model_have_the_distribution_of_the_data(trained):
    count = 4000
    tokens, found = sedd.generate(KEY, trained, count, batch_size=count, steps=64)
    drawn = np.bincount(tokens @ [4, 1], minlength=16) / count
    assert np.abs(drawn - SHARES).sum() / 2 < 0.05
    assert (found.evaluations == 64).all() and found.finite.all()


@pytest.mark.slow
def test_training_lowers_the_variance_by_the_schedule_which_still_rises(trained, trained_bounds):
    first = trained.model.init(KEY)["schedule"]
    learned = trained.params["schedule"]
    params = trained.params | {"schedule": first | {"ends": learned["ends"]}}
    before = row_bounds(trained.model, params, PAIRS)
    variances = [(SHARES * nats.var(1)).sum() for nats in (trained_bounds, before)]
    assert variances[0] < 0.9 * variances[1]
    means = [(SHARES * nats.mean(1)).sum() for nats in (trained_bounds, before)]
    np.testing.assert_allclose(*means, atol=0.02)  # another schedule has the same bound
    level, rate = trained.model.levels(trained.params, jnp.linspace(0, 1, 101))
    assert (jnp.diff(level) > 0).all() and (rate > 0).all()
    ends = trained.model.ends(trained.params)
    assert (np.abs(np.subtract(ends, trained.model.gamma)) > 0.1).all()


@pytest.mark.slow
def test_no_term_is_left_to_add_and_no_time_is_cut_off(random_model):
    options = {"draws": 4, "batch_size": 16}
    found, again = (
        sedd.nll_bound(KEY, random_model, PAIRS, complete=complete, **options)
        for complete in (False, True)
    )
    np.testing.assert_array_equal(found.nats, again.nats)
    assert found.by_t[0][0] == 0
    np.testing.assert_allclose(sum(it[2] for it in found.by_t), found.nats_per_token, rtol=1e-6)
    nodes = sedd.nll_bound(KEY, random_model, PAIRS, times="quadrature", **options | {"draws": 400})
    many = sedd.nll_bound(KEY, random_model, PAIRS, draws=400, batch_size=16)
    np.testing.assert_allclose(nodes.nats_per_token, many.nats_per_token, rtol=0.05)


@pytest.mark.slow
def test_padding_changes_neither_a_bound_nor_a_sample(random_model):
    short = PAIRS[:, :1]
    wanted = sedd.nll_bound(KEY, random_model, short).nats
    found = sedd.nll_bound(KEY, random_model, PAIRS, lengths=np.ones(16, int)).nats
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    empty = sedd.Prompt(0 * PAIRS, np.zeros((16, 2), bool), np.ones(16, np.int32))
    padded, diagnostics = sedd.generate(KEY, random_model, prompt=empty, steps=8)
    np.testing.assert_array_equal(
        padded[:, :1], sedd.generate(KEY, random_model, 16, 1, steps=8)[0]
    )
    assert (padded[:, 1] == 0).all() and (diagnostics.changed == 1).all()


@pytest.mark.slow
def test_a_row_depends_on_its_number_alone(random_model):
    few = sedd.generate(KEY, random_model, 3, steps=8)[0]
    many = sedd.generate(KEY, random_model, 16, batch_size=5, steps=8)[0]
    np.testing.assert_array_equal(few, many[:3])
    assert len({row.tobytes() for row in many}) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"sampler": "tweedie"}, "sampler means nothing to Gaussian diffusion models"),
        ({"trace": True}, "trace is for diffusion models"),
        ({"length": 3}, "length must be at most 2"),
        ({"prompt": sedd.Prompt(PAIRS[:1], PAIRS[:1] == 0)}, "cannot hold tokens"),
    ],
)
def test_what_it_cannot_do_is_refused(random_model, options, message):
    with pytest.raises(BadInput, match=message):
        sedd.generate(KEY, random_model, **{"num_samples": 1, **options})
    with pytest.raises(BadInput, match="gaussian: it has no graph"):
        random_model.log_score(PAIRS, np.ones(16, np.float32))


@pytest.mark.parametrize(
    ("family", "group", "name", "value", "message"),
    [
        ("gaussian", "train", "importance", True, "no such setting.*config.train.importance"),
        ("gaussian", "train", "t_min", 0.1, "no such setting.*config.train.t_min"),
        ("diffusion", "gaussian", "embed_dim", 8, "no such setting.*config.gaussian.embed_dim"),
        (
            "gaussian",
            "gaussian",
            "gamma_first",
            7.0,
            "gamma_first .7.0. must be below .*_last",
        ),
        ("gaussian", "gaussian", "embed_dim", 0, "config.gaussian.embed_dim must be positive"),
        ("gaussian", "model", "num_heads", 256, "must be a multiple of twice"),
    ],
)
def test_settings_that_mean_nothing_are_refused(family, group, name, value, message):
    config = default_config()
    config.family, config[group][name] = family, value
    with pytest.raises(BadInput, match=message):
        parse(config)


@pytest.fixture(scope="module")
def short(smoke_config):
    # samples are drawn from the finished run
    evaluation = dataclasses.replace(smoke_config.eval, num_samples=0)
    return dataclasses.replace(smoke_config, family="gaussian", eval=evaluation)


@pytest.fixture(scope="module")
def run(short, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("gaussian") / "run"
    train(short, folder)
    return folder


def bounds_of(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["bound"]) for row in rows if "bound" in row]


@pytest.mark.slow
def test_a_run_lowers_its_bound(run, short):
    (first, before), (last, after) = bounds_of(run)
    assert (first, last) == (10, 20) and after < before
    found = sedd.load(run)
    key = run_keys(short.seed).init
    assert found.step == 20
    assert jax.tree.structure(found.params) == jax.tree.structure(found.model.init(key))


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(run, short, tmp_path):
    folder = tmp_path / "stopped"
    train(dataclasses.replace(short, train=dataclasses.replace(short.train, steps=10)), folder)
    train(short, folder)
    chex.assert_trees_all_equal(sedd.load(folder).params, sedd.load(run).params)
    assert bounds_of(folder) == bounds_of(run)


@pytest.mark.slow
def test_a_binary_draws_from_it(run, binary, tmp_path):
    path = tmp_path / "out.jsonl"
    flags = ("--num_samples=2", "--length=12", "--steps=4")
    binary.run("sample", f"--checkpoint={run}", f"--output={path}", *flags)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(len(row["tokens"]), row["steps"]) for row in rows] == [(12, 4)] * 2
    refused = binary.refuse("sample", f"--checkpoint={run}", "--sampler=euler")
    assert "--sampler is for diffusion models; this one is gaussian" in refused


@pytest.mark.slow
def test_a_binary_scores_it(run, binary, tmp_path):
    out = tmp_path / "evaluation"
    suites = "--suite=heldout,quality"
    flags = ("--draws=2", "--max_blocks=8", "--num_samples=2", "--steps=2,4", f"--output={out}")
    printed = binary.run("evaluate", f"--checkpoint={run}", suites, *flags)
    assert "heldout" in printed
    records = [json.loads(file.read_text()) for file in out.glob("*.json")]
    kinds = sorted((it["kind"], it["name"]) for it in records if "kind" in it)
    assert kinds == [
        ("likelihood", "heldout"),
        ("quality", "gaussian-2"),
        ("quality", "gaussian-4"),
    ]
    (bound,) = [it["protocol"] for it in records if it.get("kind") == "likelihood"]
    assert bound["bound"].startswith("complete") and bound["t_min"] is None
