"""Parity with the published PyTorch code; tests/golden/README.md says what the arrays are.

Every comparison is relative to the largest entry, of the whole array or of each row. The truth is
the published code run in float64: its own float32 results are worse than ours in places.
"""

import dataclasses
import functools
import json
import pathlib
import runpy
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sedd_jax.diffusion.denoiser import denoise_probs, staggered_score, tweedie_probs
from sedd_jax.diffusion.euler import euler_probs, reverse_rate
from sedd_jax.diffusion.graph import GRAPHS
from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.noise import geometric, loglinear
from sedd_jax.diffusion.objective import dwdse_loss, mean_dwdse_loss
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.score_entropy import score_entropy
from sedd_jax.experiment.config import OptimConfig
from sedd_jax.inference import score_based
from sedd_jax.inference.export import save_published, save_run
from sedd_jax.inference.load import load
from sedd_jax.model import pretrained
from sedd_jax.model.attention import rotary_tables
from sedd_jax.model.score_model import sigma_features
from sedd_jax.training import step as training
from sedd_jax.training.optim import learning_rate, optimizer

REDUCED = pathlib.Path(__file__).parent / "golden"
FULL = pathlib.Path(__file__).parents[1].parent / "shared" / "golden"
REDUCTION = runpy.run_path(str(REDUCED / "reduce.py"))
CASES = ("absorb_small", "uniform_small")
TOLERANCE = 2e-5
CHANGE_TOLERANCE = 1e-3  # Adam's first steps follow the sign of the smallest gradients


class Golden:
    """One case from one source: its truth in float64, and its weights where they are kept."""

    def __init__(self, folder):
        self.case = json.loads((folder / "case.json").read_text())
        self.published = folder / "published"
        float32 = dict(np.load(folder / "golden.npz"))
        truth = folder / "golden_f64.npz"
        self.is_full = truth.is_file()
        self.arrays = float32 | dict(np.load(truth)) if self.is_full else float32
        self.graph = GRAPHS[self.case["graph"]](self.case["tokens"])

    def __getitem__(self, name):
        return self.arrays[name]

    def jax(self, *names):
        """The arrays as jax has them, float32."""
        return [jnp.asarray(self[name]) for name in names]

    def kept(self, x):
        """The positions of [B, L, ...] that this source has per-position results for."""
        return x if self.is_full else x[:, REDUCTION["POSITIONS"]]

    def tensors(self, kind):
        """The arrays called kind/NAME, by the published NAME."""
        names = [name for name in self.arrays if name.rpartition("/")[0] == kind]
        return {name.rpartition("/")[2]: self[name] for name in names}

    @functools.cached_property
    def noise(self):
        noise = self.case["noise"]
        if noise["type"] == "loglinear":
            return loglinear(noise["eps"])
        return geometric(noise["sigma_min"], noise["sigma_max"])

    @functools.cached_property
    def model(self):
        return load(self.published)

    @functools.cached_property
    def weights(self):
        """The published weights, by their published names."""
        weights = load_file(self.published / "model.safetensors")
        return {name: x for name, x in weights.items() if name in self.tensors("grad")}

    @functools.cached_property
    def places(self):
        """For every entry of our parameters, its place among the published ones, from 1; 0: none.

        Found by reading places as if they were weights, so that the reader's table of names is
        the only one. Float32 holds them exactly below 2^24.
        """
        ends = np.cumsum([x.size for x in self.weights.values()])
        assert ends[-1] < 2**24
        places = {
            name: np.arange(end - x.size + 1, end + 1, dtype=np.float32).reshape(x.shape)
            for end, (name, x) in zip(ends, self.weights.items(), strict=True)
        }
        with tempfile.TemporaryDirectory() as folder:
            save_file(places, pathlib.Path(folder) / "model.safetensors")
            read = pretrained.read_params(
                pathlib.Path(folder), self.model.params, self.graph.num_states
            )
        read = jax.tree.map(lambda x: x.astype(int), read)
        seen = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(read)])
        assert np.array_equal(np.unique(seen), np.arange(ends[-1] + 1))
        return read

    def published_layout(self, tree):
        """A tree like our parameters, as float64 tensors by published names; padding must be 0."""
        ends = np.cumsum([x.size for x in self.weights.values()])
        flat = np.zeros(ends[-1] + 1)
        for places, leaf in zip(jax.tree.leaves(self.places), jax.tree.leaves(tree), strict=True):
            leaf = np.asarray(leaf)
            assert not leaf[places == 0].any()
            flat[places] = leaf
        parts = np.split(flat[1:], ends[:-1])
        return {
            name: part.reshape(x.shape)
            for part, (name, x) in zip(parts, self.weights.items(), strict=True)
        }


@functools.cache
def read_golden(root, case):
    return Golden(root / case)


def source(root, case):
    absent = pytest.mark.skipif(not (root / case).is_dir(), reason="the full data are absent")
    name = "full" if root == FULL else "reduced"
    return pytest.param((root, case), id=f"{name}-{case}", marks=absent)


@pytest.fixture(scope="module", params=[source(r, c) for r in (REDUCED, FULL) for c in CASES])
def golden(request):
    return read_golden(*request.param)


# The reduced copy has no weights of uniform_small, so what needs the network needs the full data.
NETWORKS = [source(REDUCED, "absorb_small"), *(source(FULL, case) for case in CASES)]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return read_golden(*request.param)


def assert_close(actual, wanted, axis=None, tolerance=TOLERANCE, terms=0):
    """Largest error within `tolerance` of the largest entry, over `axis` (all axes by default).

    Where the entries are differences of far larger terms, `terms` is the size of those.
    """
    actual, wanted = (np.asarray(x, np.float64) for x in (actual, wanted))
    assert actual.shape == wanted.shape
    scale = np.maximum(np.abs(wanted).max(axis, keepdims=True), terms)
    error = np.abs(actual - wanted).max(axis, keepdims=True) / np.where(scale > 0, scale, 1)
    assert np.all(error <= tolerance), f"off by {error.max():.2e} of the largest entry"


# One t per row, and magnitudes that differ between rows by up to 1e9: rows are compared apart.
assert_rows_close = functools.partial(assert_close, axis=(1, 2))


def compiled_once(build):
    """Compiles build(golden, *options) once per case and options, for both sources of the case."""
    compiled = {}
    # Compiling takes most of the time of these tests, so little of it goes into fast code.
    how = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    def function(golden, *options):
        name = (golden.case["case"], *options)
        if name not in compiled:
            compiled[name] = jax.jit(build(golden, *options), compiler_options=how)
        return compiled[name]

    return function


def test_noise(golden):
    t, times = golden.jax("t", "unit/t")
    assert_close(golden.noise.sigma(t), golden["sigma"])
    assert_close(golden.noise.dsigma(t), golden["dsigma"])
    assert_close(golden.noise.sigma(times), golden["unit/noise_sigma"])
    assert_close(golden.noise.dsigma(times), golden["unit/noise_dsigma"])
    before = golden.noise.sigma(t - golden.case["step_size"])
    assert_close(golden.noise.sigma(t) - before, golden["analytic_dsigma"])


def test_rates(golden):
    # The published `rate` is called a row there; what it holds is the column of Q.
    states = jnp.arange(golden.graph.num_states)
    assert_close(golden.graph.rate(states), golden["unit/rate"])
    assert_close(golden.graph.transposed_rate(states), golden["unit/transp_rate"])


@compiled_once
def graph_functions(golden):
    graph = golden.graph

    def run(x, x0, log_score, sigma):
        def total(log_score):
            entropy = score_entropy(graph, log_score, sigma, x, x0)
            return entropy.sum(), entropy

        gradient, entropy = jax.grad(total, has_aux=True)(log_score)
        score = jnp.exp(log_score)
        return {
            "score_entropy": entropy[..., None],
            "score_entropy_grad": gradient,
            "reverse_rate": reverse_rate(graph, x, score),
            "staggered_score": staggered_score(graph, score, sigma),
            "transp_transition": graph.transposed_transition(x, sigma),
        }

    return run


def test_graph_functions_on_random_scores(golden):
    sigma = golden["unit/sigma"][:, 0]
    inputs = golden.jax("unit/x", "unit/x0", "unit/log_score")
    for name, actual in graph_functions(golden)(*inputs, jnp.asarray(sigma)).items():
        wanted = golden["unit/" + name]
        assert_rows_close(actual, wanted.reshape(actual.shape))


@compiled_once
def entropy_and_loss(golden):
    def run(t, xt, x0, sigma, log_score):
        entropy = score_entropy(golden.graph, log_score, sigma, xt, x0)
        dense = DenseScore(xt, log_score)
        return entropy, dwdse_loss(golden.graph, golden.noise, lambda *_: dense, t, xt, x0)

    return run


def test_score_entropy_and_loss_of_the_network_output(golden):
    inputs = golden.jax("t", "xt", "x0", "sigma", "log_score")
    entropy, loss = entropy_and_loss(golden)(*inputs)
    assert_close(entropy, golden["score_entropy"], axis=1)
    assert_close(loss, golden["loss"], axis=())


@compiled_once
def reverse_steps(golden):
    graph, step = golden.graph, golden.case["step_size"]

    def run(xt, log_score, sigma, dsigma, delta_sigma):
        score = jnp.exp(log_score)
        return {
            "reverse_rate": reverse_rate(graph, xt, score),
            "euler_probs": euler_probs(graph, xt, score, dsigma * step),
            "staggered_score": staggered_score(graph, score, delta_sigma),
            "transp_transition": graph.transposed_transition(xt, delta_sigma),
            "analytic_probs": tweedie_probs(graph, xt, score, delta_sigma),
            "denoiser_staggered_score": staggered_score(graph, score, sigma),
            "denoiser_transp_transition": graph.transposed_transition(xt, sigma),
            "denoiser_probs": denoise_probs(graph, xt, score, sigma),
        }

    return run


def test_reverse_steps_of_the_network_output(golden):
    xt, log_score = (jnp.asarray(golden.kept(golden[name])) for name in ("xt", "log_score"))
    noises = golden.jax("sigma", "dsigma", "analytic_dsigma")
    # At xt the score is 1, so the mask keeps 1 - (exp(sigma) - 1) sum(score): at t = 0.99 a
    # difference of 90s, of which the published float32 has an error of 1.6e-4 of what remains.
    terms = {"denoiser_staggered_score": np.exp(golden["sigma"])[:, None, None]}
    for name, actual in reverse_steps(golden)(xt, log_score, *noises).items():
        assert_rows_close(actual, golden[name], terms=terms.get(name, 0))


def test_sinusoids(golden):
    sigma = jnp.asarray(golden["unit/sigma"][:, 0])
    assert_close(sigma_features(sigma), golden["unit/timestep_embedding"])
    cos, sin = rotary_tables(golden.case["length"], *golden["mid/rotary_cos"].shape[1:])
    for table, name in ((cos, "mid/rotary_cos"), (sin, "mid/rotary_sin")):
        assert_close(np.tile(table[0, :, 0], 2), golden[name])  # there, each angle stands twice


@compiled_once
def log_score_loss_and_grads(golden):
    graph, noise, model = golden.model.family

    def mean_loss(params, t, xt, x0):
        log_score = model.apply(params, xt, noise.sigma(t))
        loss = dwdse_loss(graph, noise, lambda *_: DenseScore(xt, log_score), t, xt, x0)
        streamed = functools.partial(model.score, params)
        draw = NoisedBatch(t, xt, jnp.ones_like(t))
        return mean_dwdse_loss(graph, noise, streamed, draw, x0), (log_score, loss)

    return jax.grad(mean_loss, has_aux=True)


def test_published_weights_come_back_from_a_run_folder(network, tmp_path):
    for name in ("run", "published"):
        (tmp_path / name).mkdir()
    save_run(network.model, tmp_path / "run")
    save_published(load(tmp_path / "run"), tmp_path / "published")
    wanted = load_file(network.published / "model.safetensors")
    found = load_file(tmp_path / "published" / "model.safetensors")
    assert found.keys() == wanted.keys()
    # derived, in float32 by another library
    buffers = [tensors.pop("rotary_emb.inv_freq") for tensors in (found, wanted)]
    np.testing.assert_allclose(*buffers, rtol=2e-7)
    assert all(found[name].tobytes() == x.tobytes() for name, x in wanted.items())
    config = pretrained.read_config(network.published)
    assert pretrained.read_config(tmp_path / "published") == config


def test_log_score_loss_and_every_gradient(network):
    grads, (log_score, loss) = log_score_loss_and_grads(network)(
        network.model.params, *network.jax("t", "xt", "x0")
    )
    assert log_score.dtype == jnp.float32
    assert_close(log_score, network["log_score"])
    assert_close(loss, network["loss"], axis=())
    wanted, actual = network.tensors("grad"), network.published_layout(grads)
    assert_tensors_close(network, actual, wanted, TOLERANCE)
    if network.is_full:
        for name in wanted:
            assert_close(actual[name], wanted[name])


def assert_tensors_close(golden, actual, wanted, tolerance):
    """Compares tensors by name, or in the reduced copy their norms and products with probes."""
    assert actual.keys() == wanted.keys()
    for name in wanted:
        if golden.is_full:
            norm = np.linalg.norm(wanted[name])
            error = np.linalg.norm(actual[name] - wanted[name]) / norm
        else:
            norm = wanted[name][0]
            error = np.abs(REDUCTION["statistics"](actual[name]) - wanted[name]).max() / norm
        assert error <= tolerance, f"{name} is off by {error:.2e} of its norm"


def optim_config(golden, warmup):
    """The published settings; `warmup` is the key of case.json that has the steps of warm-up."""
    optim = golden.case["optim"]
    return OptimConfig(
        learning_rate=optim["lr"],
        warmup_steps=optim[warmup],
        beta1=optim["beta1"],
        beta2=optim["beta2"],
        eps=optim["eps"],
        weight_decay=optim["weight_decay"],
        clip_norm=optim["grad_clip"],
        ema_decay=optim["ema"],
    )


# With the long warm-up, five steps move the weights by a few roundings: no more to compare there.
@pytest.mark.parametrize(
    ("warmup", "name"), [("warmup", "train/lr"), ("warm2_warmup", "warm2/train/lr")]
)
def test_learning_rate(golden, warmup, name):
    schedule = learning_rate(optim_config(golden, warmup), 10_000)
    assert_close([schedule(jnp.int32(n)) for n in range(5)], golden[name], axis=(), tolerance=1e-6)


@compiled_once
def training_steps(golden):
    """A function of the weights and batches: the last state, and the metrics of every step.

    The step draws its own times and noise; these are replaced by the published ones.
    """
    components = golden.model.family
    settings = optim_config(golden, "warm2_warmup")
    config = dataclasses.replace(golden.model.config, optim=settings)

    def replay(state, batch):
        x0, t, xt = batch

        draw = NoisedBatch(t, xt, jnp.ones_like(t))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(score_based, "propose", lambda *_, held: draw)
            step = training.build_train_step(
                components, config.train, config.optim, jax.random.key(0)
            )
            return step(state, x0)

    def run(params, *batches):
        opt_state = optimizer(settings, config.train.steps).init(params)
        zero = jnp.zeros((), jnp.int32)
        skipped = training.Skipped(zero, zero)
        state = training.TrainState(zero, params, opt_state, params, skipped)
        return jax.lax.scan(replay, state, batches)

    return run


def test_five_training_steps(network):
    initial, batches = network.model.params, network.jax("train/x0", "train/t", "train/xt")
    state, metrics = training_steps(network)(initial, *batches)
    loss = metrics["loss"] * network.case["length"]  # ours is reported per token
    assert_close(loss, network["warm2/train/loss"], axis=(), tolerance=1e-5)
    assert_close(metrics["learning_rate"], network["warm2/train/lr"], axis=(), tolerance=1e-6)
    assert_close(metrics["grad_norm"], network["warm2/train/grad_norm"], axis=())
    for kind, tree in (("param", state.params), ("ema", state.ema_params)):
        wanted = network.tensors(f"warm2/{kind}")
        if network.is_full:
            wanted = {k: x.astype(np.float64) - network.weights[k] for k, x in wanted.items()}
        change = jax.tree.map(lambda x, y: np.float64(x) - y, tree, initial)
        actual = network.published_layout(change)
        assert_tensors_close(network, actual, wanted, CHANGE_TOLERANCE)
