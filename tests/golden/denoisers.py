"""Makes the golden data of MDLM, UDLM, Duo and RADD: what their code computes on random weights.

Usage: python tests/golden/denoisers.py SOURCES, with torch, transformers, omegaconf, einops and
safetensors. SOURCES is a folder of four clones, at the commits that were used:

  mdlm                         github.com/kuleshov-group/mdlm                         c112c52
  discrete-diffusion-guidance  github.com/kuleshov-group/discrete-diffusion-guidance  edb0f8c
  duo                          github.com/s-sahoo/duo                                 7c9b498
  RADD                         github.com/ML-GSAI/RADD                                60b772d

Their networks and their formulas run unmodified, in float32 on CPU. Flash attention is replaced by
the softmax and the rotation that it computes, packages that are only imported by empty ones, and
the draws of t and x_t by given ones. The Hugging Face classes of MDLM and Duo are not in their
repositories: they hold the network as `backbone`, and so do the files here, with the keys that
config.json has on the hub.
"""

import importlib
import json
import math
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
TOKENS, LENGTH, ROWS, CLASSES = 29, 10, 4, 3
NETWORK = {"hidden_size": 16, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "dropout": 0.1}
HUB_NETWORK = {("hidden_dim" if key == "hidden_size" else key): x for key, x in NETWORK.items()}
EPS = 1e-3  # of their log-linear schedule
ABSENT = (
    "classifier", "dataloader", "fsspec", "hydra", "hydra.utils", "lightning", "mamba_ssm",
    "mamba_ssm.utils", "mamba_ssm.utils.generation", "metrics", "models.autoregressive",
    "models.dimamba", "models.ema", "models.unet", "torchmetrics", "torchmetrics.aggregation",
    "utils",
)  # fmt: skip


class Bare:
    """Given attributes, and the methods of a class of theirs, without its constructor."""

    def __init__(self, source, **attributes):
        self.__dict__.update(attributes, source=source)

    def __getattr__(self, name):
        return types.MethodType(getattr(self.source, name), self)


def attend(q, k, v):
    """Softmax attention over [..., L, heads, width]."""
    scores = torch.einsum("...qhd,...khd->...hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("...hqk,...khd->...qhd", scores.softmax(-1), v)


def rotate(x, cos, sin):
    """Rotates the halves of [B, L, heads, width] by [L, width / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def flash_attention():
    """Returns the modules of flash_attn by name, with plain functions of the same results."""

    def varlen(qkv, cu_seqlens, length, dropout, causal):
        assert not causal and dropout == 0 and len(cu_seqlens) == len(qkv) // length + 1
        q, k, v = qkv.reshape(-1, length, *qkv.shape[1:]).unbind(2)
        return attend(q, k, v).flatten(0, 1)

    def rotate_qkv(qkv, cos, sin):
        q, k, v = qkv.unbind(2)
        return torch.stack([rotate(q, cos, sin), rotate(k, cos, sin), v], dim=2)

    root, layers = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.layers")
    root.layers, root.flash_attn_interface = layers, types.SimpleNamespace()
    root.flash_attn_interface.flash_attn_varlen_qkvpacked_func = varlen
    layers.rotary = types.ModuleType("flash_attn.layers.rotary")
    layers.rotary.apply_rotary_emb_qkv_, layers.rotary.apply_rotary_emb_torch = rotate_qkv, rotate
    modules = (root, layers, layers.rotary)
    return {module.__name__: module for module in modules}


def load(folder, *names):
    """Imports modules of a clone, with stand-ins for what is not installed."""
    stubs = {name: mock.MagicMock(__path__=[], __spec__=None) for name in ABSENT}
    stubs["lightning"].LightningModule = torch.nn.Module
    stubs["torchmetrics"].aggregation.MeanMetric = torch.nn.Module
    if folder.name == "RADD":
        stubs = {}
    importlib.import_module("transformers.modeling_utils")  # it asks which flash_attn there is
    taken = ("models", "model", "diffusion", "algo", "trainer_base", "noise_schedule", "losses")
    for name in [it for it in sys.modules if it.split(".")[0] in taken]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        with mock.patch.dict(sys.modules, {**stubs, **flash_attention()}):
            return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))


def randomised(network):
    """Returns the network in inference mode, with no weight at its initial zero or one."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return network.eval()


def write(name, network, config, prefix="backbone.", **arrays):
    """Writes the folder of one family."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    tensors = {f"{prefix}{key}": x.contiguous() for key, x in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    plain = {key: x.numpy() for key, x in arrays.items()}
    kept = {key: np.int32(x) if x.dtype == np.int64 else np.float32(x) for key, x in plain.items()}
    np.savez_compressed(folder / "golden.npz", **kept)


def inputs():
    """Clean tokens, and times from little noise to much."""
    return torch.randint(0, TOKENS, (ROWS, LENGTH)), torch.tensor([0.2, 0.4, 0.7, 0.97])


def hub_config(model_type, states, **more):
    """The config.json of a Hugging Face class."""
    sizes = {"model_type": model_type, "vocab_size": states, "model_length": LENGTH}
    return sizes | HUB_NETWORK | more


def mdlm(sources):
    """Substitution parametrisation: log p(x0 | x_t), their score and their bound."""
    dit, diffusion, noise = load(sources / "mdlm", "models.dit", "diffusion", "noise_schedule")
    states, (x0, t) = TOKENS + 1, inputs()
    config = {"model": NETWORK | {"scale_by_sigma": True}}
    network = randomised(dit.DIT(OmegaConf.create(config), vocab_size=states))
    theirs = Bare(
        diffusion.Diffusion, backbone=network, mask_index=TOKENS, parameterization="subs",
        time_conditioning=False, neg_infinity=-1e6, noise=noise.LogLinearNoise(), T=0,
        change_of_variables=False, importance_sampling=False, _sample_t=lambda *_: t,
    )  # fmt: skip
    xt = theirs.q_xt(x0, t[:, None] * (1 - EPS))
    theirs.q_xt = lambda *_: xt
    sigma = theirs.noise(t)[0]
    write(
        "mdlm", network, hub_config("mdlm", states, time_conditioning=False),
        x0=x0, xt=xt, t=t, sigma=sigma,
        log_posterior=theirs.forward(xt, sigma[:, None]),
        score=theirs.get_score(xt, sigma[:, None]),
        nll=theirs._forward_pass_diffusion(x0),
    )  # fmt: skip


def udlm(sources):
    """Uniform noise, with classes, of which "no class" is given: x_theta and the bound."""
    hf, diffusion, noise = load(
        sources / "discrete-diffusion-guidance", "models.hf", "diffusion", "noise_schedule"
    )
    (x0, t), cond = inputs(), torch.full((ROWS,), CLASSES)
    config = hub_config("udlm", TOKENS, time_conditioning=True, cfg=True, cfg_num_classes=CLASSES)
    keys = {key: x for key, x in config.items() if key != "model_type"}
    network = randomised(hf.UDLM(hf.UDLMConfig(**keys)))
    theirs = Bare(
        diffusion.Diffusion,
        backbone=lambda x, sigma, cond, x_emb: network(x, sigma, cond, return_dict=False),
        parameterization="d3pm", subs_masking=False, time_conditioning=True, diffusion="uniform",
        vocab_size=TOKENS, noise=noise.LogLinearNoise(), T=0, change_of_variables=False,
        config=OmegaConf.create({"noise": {"type": "loglinear"}}), dtype=torch.float32,
        device="cpu", training=False, limiting_distribution=torch.full((1, 1, TOKENS), 1 / TOKENS),
        _sample_t=lambda *_: t,
    )  # fmt: skip
    xt = theirs._q_xt(x0, t[:, None] * (1 - EPS))
    theirs._q_xt = lambda *_: xt
    sigma = theirs.noise(t)[0]
    log_x_theta = theirs.forward(xt, sigma[:, None], cond)
    alpha = (-sigma).exp()[:, None, None]
    write(
        "udlm", network, config, prefix="", x0=x0, xt=xt, t=t, sigma=sigma, log_x_theta=log_x_theta,
        posterior=theirs._compute_posterior(log_x_theta.exp(), xt, torch.ones_like(alpha), alpha),
        nll=theirs._forward_pass_diffusion(x0, cond)["diffusion_loss"],
    )  # fmt: skip


def duo(sources):
    """Uniform noise: x_theta, posteriors of an earlier time and the bound."""
    dit, algo, base = load(sources / "duo", "models.dit", "algo", "trainer_base")
    x0, t = inputs()
    config = {"model": NETWORK | {"scale_by_sigma": True}, "algo": {"causal_attention": False}}
    network = randomised(dit.DIT(OmegaConf.create(config), vocab_size=TOKENS))
    theirs = Bare(
        algo.DUO_BASE, backbone=network, vocab_size=TOKENS, time_conditioning=True, T=0,
        ignore_bos=False, device="cpu", dtype=torch.float32, noise=base.LogLinear(EPS),
        class_conditional=False, config=OmegaConf.create({"sampling": {"use_float64": False}}),
        _sample_t=lambda *_: t, loss_type="elbo",
    )  # fmt: skip
    alpha = theirs.noise(t)[1][:, None]
    xt = theirs.q_xt(x0, alpha)
    theirs.q_xt = lambda *_: xt
    log_x_theta = theirs.forward(xt, -alpha.log())
    earlier = theirs.noise(t / 2)[1][:, None]

    def posterior(alpha_s):
        return theirs._posterior_from_x0(log_x_theta.exp(), xt, alpha_s, alpha)

    write(
        "duo", network, hub_config("duo", TOKENS, causal=False, var_min=True),
        x0=x0, xt=xt, t=t, sigma=-alpha.log()[:, 0], log_x_theta=log_x_theta,
        posterior=posterior(torch.ones_like(alpha)), earlier=posterior(earlier),
        nll=theirs.nll(x0, None, None),
    )  # fmt: skip


def radd(sources):
    """No time in the network: log p(x0 | x_t), and the bound as a score entropy."""
    model, noise, losses = load(sources / "RADD", "model", "noise_lib", "losses")
    states, (x0, t) = TOKENS + 1, inputs()
    config = {
        "tokens": TOKENS,
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20.0},
        "model": NETWORK
        | {"name": "small_radd", "type": "ddit_wot", "length": LENGTH}
        | {"use_checkpoint": False, "dtype": "float32"},
    }
    network = randomised(model.RADD(config))
    schedule = noise.get_noise(OmegaConf.create(config))
    xt = noise.add_noise_t(x0, schedule(t)[0][:, None], TOKENS)
    losses.Batch_Uniform_Sampler = lambda *_, **__: (t - EPS) / (1 - EPS)
    losses.add_noise_t = lambda *_: xt
    write(
        "radd", network, config, prefix="", x0=x0, xt=xt, t=t, sigma=schedule(t)[0],
        log_posterior=network(xt),
        nll=losses.get_loss_fn(schedule, states, train=False, loss_type="t_DSE")(network, x0),
    )  # fmt: skip


def main(sources: pathlib.Path) -> None:
    """Writes the folders of the four families."""
    with torch.no_grad():
        for seed, family in enumerate((mdlm, udlm, duo, radd)):
            torch.manual_seed(seed)
            family(sources)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
