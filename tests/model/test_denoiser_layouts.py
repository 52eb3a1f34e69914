"""MDLM, UDLM, Duo and RADD read from their layouts, against what their own code computes.

Golden arrays: tests/golden/denoisers.py, the recipe, has the repositories and commits.
"""

import functools
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file

import sedd_jax as sedd
from sedd_jax import convert
from sedd_jax.data.tokenizer import GPT2
from sedd_jax.diffusion.denoiser import tweedie_probs
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import dwdse_loss
from sedd_jax.diffusion.output import LeaveOneOut
from sedd_jax.errors import BadInput

GOLDEN = Path(__file__).parents[1] / "golden"
GPT2_FOLDER = Path(__file__).parents[2] / "shared" / "data" / "gpt2_bpe"
WEIGHTS = "model.safetensors"
CLASSES = "backbone.cond_map.embedding_table.weight"
HEAD = "output_layer.adaLN_modulation"
FAMILIES = ("mdlm", "udlm", "duo", "radd")
MASKED = ("mdlm", "radd")
UNIFORM = ("udlm", "duo")
TOLERANCE = 2e-5


@functools.cache
def model_of(family):
    return sedd.load(GOLDEN / family)


@functools.cache
def golden_of(family):
    return {name: jnp.asarray(x) for name, x in np.load(GOLDEN / family / "golden.npz").items()}


def score_of(family):
    model = model_of(family)
    return functools.partial(model.model.score, model.params)


def masked(family):
    return golden_of(family)["xt"] == model_of(family).graph.mask_id


@pytest.mark.parametrize(
    ("family", "graph", "output", "told"),
    [
        ("mdlm", "absorb", "denoiser", False),
        ("udlm", "uniform", "leave_one_out", True),
        ("duo", "uniform", "leave_one_out", True),
        ("radd", "absorb", "denoiser", False),
    ],
)
def test_the_settings(family, graph, output, told):
    config = model_of(family).config
    assert (config.graph, config.noise.schedule, config.noise.eps) == (graph, "loglinear", 1e-3)
    assert (config.model.output, config.model.time_conditioning) == (output, told)
    assert (config.data.vocab_size, config.model.length) == (29, 10)
    assert model_of(family).graph.num_states == 29 + (family in MASKED)
    assert model_of(family).tokenizer is None and model_of(family).step is None
    assert "params=" not in repr(model_of(family))  # pages of numbers in a notebook


@pytest.mark.parametrize("family", FAMILIES)
def test_log_p_of_x0_is_theirs(family):
    golden = golden_of(family)
    if family in UNIFORM:
        want, where = jnp.log(golden["posterior"]), jnp.ones(golden["xt"].shape)
    else:
        want, where = golden["log_posterior"][..., :29], masked(family).astype(jnp.float32)
    assert where.sum() > 20 and float(jnp.std(want[where > 0])) > 0.5  # they are worth comparing

    @jax.jit
    def wrong(tolerance):
        score = score_of(family)(golden["xt"], golden["sigma"])

        def far(of_states, want):
            token = of_states.states < 29
            log_posterior = jnp.where(token, of_states.log_posterior, 0)
            wanted = jnp.where(token, want[..., jnp.minimum(of_states.states, 28)], 0)
            return jnp.where(jnp.abs(log_posterior - wanted) < tolerance, 0.0, token)

        return score.weighted(far, (want,), where)

    assert wrong(TOLERANCE) == 0
    assert wrong(0.0) > 0  # what is far is counted


@pytest.mark.parametrize("family", MASKED)
def test_log_scores_of_masks_are_the_closed_form(family):
    golden = golden_of(family)
    found = model_of(family).log_score(golden["xt"], golden["sigma"])[..., :29]
    want = golden["log_posterior"][..., :29] - jnp.log(jnp.expm1(golden["sigma"]))[:, None, None]
    where = masked(family)
    np.testing.assert_allclose(found[where], want[where], atol=TOLERANCE)
    if "score" in golden:  # as MDLM's code has it
        theirs = jnp.log(golden["score"][..., :29])
        np.testing.assert_allclose(found[where], theirs[where], atol=TOLERANCE)


@pytest.mark.parametrize("family", UNIFORM)
def test_log_scores_are_the_closed_form(family):
    golden = golden_of(family)
    alpha = jnp.exp(-golden["sigma"])[:, None, None]
    noised = alpha * jnp.exp(golden["log_x_theta"]) + (1 - alpha) / 29
    here = jnp.take_along_axis(noised, golden["xt"][..., None], axis=-1)
    found = model_of(family).log_score(golden["xt"], golden["sigma"])
    np.testing.assert_allclose(found, jnp.log(noised / here), atol=TOLERANCE)


@pytest.mark.parametrize("family", ["mdlm", "duo", "radd"])
def test_the_bound_is_theirs(family):
    model, golden = model_of(family), golden_of(family)
    score_fn = score_of(family)
    found = jax.jit(functools.partial(dwdse_loss, model.graph, model.noise, score_fn))(
        golden["t"], golden["xt"], golden["x0"]
    )
    theirs = golden["nll"].reshape(4, -1).sum(-1)  # of every position, or of a sequence (RADD)
    np.testing.assert_allclose(found, theirs, rtol=1e-4)


@pytest.mark.slow
def test_the_bound_of_udlm_is_theirs_at_its_own_schedule():
    # its loss has 1 - t for the share of unmoved tokens; its draws and network have 1 - 0.999 t
    golden, graph = golden_of("udlm"), model_of("udlm").graph
    noise = Noise(lambda t: -jnp.log1p(-t), lambda t: 1 / (1 - t))

    def score_fn(xt, sigma):
        return LeaveOneOut(graph).dense(sigma, xt, golden["log_x_theta"])

    found = dwdse_loss(graph, noise, score_fn, golden["t"], golden["xt"], golden["x0"])
    np.testing.assert_allclose(found, golden["nll"].sum(-1), rtol=1e-4)


def test_a_step_of_duo_is_theirs():
    model, golden = model_of("duo"), golden_of("duo")
    score = jnp.exp(model.log_score(golden["xt"], golden["sigma"]))
    step = golden["sigma"] - model.noise.sigma(golden["t"] / 2)
    weights = tweedie_probs(model.graph, golden["xt"], score, step)
    found = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, golden["earlier"], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "sampler"),
    [
        ("mdlm", "first_hitting"),
        pytest.param("udlm", "gibbs", marks=pytest.mark.slow),
        pytest.param("radd", "tweedie", marks=pytest.mark.slow),
    ],
)
def test_they_sample(family, sampler):
    key = jax.random.key(0)
    tokens, _ = sedd.generate(key, model_of(family), num_samples=2, sampler=sampler, steps=4)
    assert tokens.shape == (2, 10) and 0 <= tokens.min() <= tokens.max() < 29


@pytest.mark.parametrize("family", ["duo", pytest.param("mdlm", marks=pytest.mark.slow)])
def test_they_have_a_bound(family):
    tokens = golden_of(family)["x0"]
    bound = sedd.nll_bound(jax.random.key(0), model_of(family), tokens, draws=8, complete=True)
    # random weights are worse than a uniform guess, and the bound says so
    assert np.log(29) < bound.nats_per_token - 3 * bound.stderr < 20


@pytest.fixture
def folder(request, tmp_path):
    """A copy of a golden folder, to change."""
    return shutil.copytree(GOLDEN / getattr(request, "param", "mdlm"), tmp_path / "copy")


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def converted(**values):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["convert"])
    with flagsaver.flagsaver(**{name: str(value) for name, value in values.items()}):
        convert.main()
    return values["output"]


@pytest.mark.parametrize("family", ["udlm", "radd"])  # whose biases are folded
def test_the_way_to_a_run_folder_keeps_every_bit(family, tmp_path):
    run = sedd.load(converted(checkpoint=GOLDEN / family, output=tmp_path / "run"))
    chex.assert_trees_all_equal(run.params, model_of(family).params)
    assert run.config.model == model_of(family).config.model
    assert run.config.graph == model_of(family).config.graph


def test_the_published_layout_of_sedd_has_no_place_for_them(tmp_path):
    with pytest.raises(BadInput, match=r"only models with config\.model\.output=ratio, and this"):
        converted(checkpoint=GOLDEN / "mdlm", output=tmp_path / "out", to="published")


def test_the_noise_is_told_where_the_config_says_so(folder):
    change_config(folder, time_conditioning=True)
    xt = golden_of("mdlm")["xt"]
    low, high = (
        sedd.load(folder).log_score(xt, jnp.full(4, sigma)) + jnp.log(jnp.expm1(sigma))
        for sigma in (0.1, 3.0)
    )
    where = masked("mdlm")
    assert float(jnp.abs(low - high)[where][:, :29].max()) > 0.1


@pytest.mark.skipif(not GPT2_FOLDER.is_dir(), reason="shared/data/gpt2_bpe is absent")
def test_the_pad_of_gpt2s_tokenizer_is_a_state(tmp_path):
    tensors = load_file(GOLDEN / "duo" / WEIGHTS)
    rows, place = GPT2.vocab_size + 1, tmp_path / "duo"
    shutil.copytree(GOLDEN / "duo", place)
    change_config(place, vocab_size=rows)
    for name in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        small = tensors[f"backbone.{name}"]
        tensors[f"backbone.{name}"] = np.resize(small, (rows, *small.shape[1:]))
    save_file(tensors, place / WEIGHTS)
    model = sedd.load(place, tokenizer=GPT2_FOLDER)
    assert (model.tokenizer.vocab_size, model.graph.num_states) == (rows, rows)
    assert model.tokenizer.decode([15496, 50257, 995, 50256]) == "Hello[PAD] world<|endoftext|>"
    run = converted(checkpoint=place, output=tmp_path / "run", tokenizer=GPT2_FOLDER)
    assert sedd.load(run).tokenizer.fingerprint() == model.tokenizer.fingerprint()
    change_config(place, vocab_size=rows + 1)
    with pytest.raises(BadInput, match="has 50257 tokens and the model in .* 50259"):
        sedd.load(place, tokenizer=GPT2_FOLDER)


@pytest.mark.parametrize(
    ("folder", "values", "message"),
    [
        (
            "mdlm",
            {"model_type": "llama"},
            "it has the model_type 'llama', and the keys ",
        ),
        ("mdlm", {"model_type": "dit"}, "as GIDD's are: their network is told t and not sigma"),
        ("mdlm", {"mask_token_id": 3}, "mask_token_id = 3, and only the last of its 30 states"),
        ("mdlm", {"time_conditioning": 1}, "time_conditioning = 1, which should be bool"),
        ("mdlm", {"hidden_dim": None}, "hidden_dim = None, which should be int"),
        ("mdlm", {"n_blocks": 3}, "lacks the tensor blocks.2."),
        ("udlm", {"n_heads": 3}, r"hidden_size \(16\) must be a multiple of twice"),
        ("duo", {"causal": True}, "causal = true: it is an autoregressive network"),
        ("duo", {"vocab_size": 28}, r"has shape \(29, 16\), the config needs \(28, 16\)"),
        ("radd", {"tokens": "29"}, "tokens = '29', which should be int"),
        ("radd", {"noise": {"type": "loglinear"}}, "has no noise.sigma_min"),
    ],
    indirect=["folder"],
)
def test_a_config_of_another_network_is_refused(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(BadInput, match=message):
        sedd.load(folder)


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("duo", {"teacher.norm": 1}, r"not under backbone\. \(teacher\.norm\), as those of MDLM"),
        ("duo", {"backbone.extra": 1}, "tensors that do not belong: extra"),
        ("radd", {"blocks.1.norm2.bias": None}, r"lacks the tensor blocks\.1\.norm2\.bias"),
        ("radd", {"blocks.1.norm1.bias": None}, r"lacks the tensor blocks\.1\.norm1\.bias"),
        ("udlm", {f"backbone.{HEAD}.bias": None}, "lacks the tensor output_layer.adaLN_mod"),
        ("radd", {"output_layer.norm_final.bias": None}, "lacks the tensor output_layer.norm_fin"),
        ("mdlm", {"backbone.rotary_emb.inv_freq": 1}, "other frequencies of rotary positions"),
    ],
    indirect=["folder"],
)
def test_tensors_of_another_network_are_refused(folder, change, message):
    tensors = load_file(folder / WEIGHTS)
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = np.full_like(tensors.get(name, np.ones(4, np.float32)), value)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(BadInput, match=message):
        sedd.load(folder)


@pytest.mark.parametrize(
    ("folder", "name", "change"),
    [
        ("udlm", CLASSES, lambda x: x[0]),
        ("udlm", CLASSES, lambda x: x[:0]),
        ("udlm", CLASSES, lambda x: x[:, :-1]),
        ("udlm", f"backbone.{HEAD}.weight", lambda x: x[:, :-1]),
        ("udlm", f"backbone.{HEAD}.bias", lambda x: x[:1]),
        ("radd", "blocks.0.norm1.bias", lambda x: x[:1]),
        ("radd", "output_layer.norm_final.bias", lambda x: x[:-1]),
        ("udlm", CLASSES, np.int8),
        ("radd", "blocks.0.norm1.bias", np.int8),
    ],
    indirect=["folder"],
)
def test_misshapen_and_quantised_tensors_are_refused_before_they_are_folded(folder, name, change):
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(
        BadInput, match=rf"Tensor {name.removeprefix('backbone.')} of .* (has shape|is of int8)"
    ):
        sedd.load(folder)


def test_a_folder_without_a_model_is_listed(tmp_path):
    with pytest.raises(BadInput, match="holds neither .*MDLM, UDLM, Duo, RADD.*; it is empty"):
        sedd.load(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput, match=r"; it holds notes\.txt\."):
        sedd.load(tmp_path)
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.touch()
    for path in (tmp_path, checkpoint):
        with pytest.raises(BadInput, match=r"last\.ckpt is a checkpoint of Lightning, whose"):
            sedd.load(path)
