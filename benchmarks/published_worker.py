"""Times the published PyTorch code; `benchmarks.published` starts it and sends requests.

    PYTHON benchmarks/published_worker.py --path=PUBLISHED_CODE

PYTHON needs torch, numpy, einops, omegaconf and huggingface_hub, no jax. Each line of stdin is a
request and gets one JSON line on stdout: {"seconds": ..., "cpu_seconds": ...} or {"error": "..."}.
Absorbing graph, log-linear noise, float32, CPU. A request has an "op", the fields of `SIZES` and
optionally a "dropout" (0 by default):
  train        one training step as published: draw t and xt, loss, gradient, clip, AdamW, EMA
  sample       one run of the published sampler with "steps" analytic updates and the denoiser;
               the answer also has "updates", the seconds of each of them
  sample_step  one analytic update of length 1/"steps" at time "t"
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import sys
import time
import types
from collections.abc import Iterator

SIZES = ("tokens", "hidden", "cond", "blocks", "heads", "batch", "length")
_MODULES = ("graph_lib", "losses", "model", "model.ema", "model.utils", "noise_lib", "sampling")


def _attention(qkv, cu_seqlens, max_seqlen, dropout_p, causal):
    """Plain softmax attention in place of flash_attn, which needs a GPU; [b s, 3, h, d]."""
    del cu_seqlens, dropout_p, causal  # equal lengths, no dropout, not causal
    query, key, value = (
        part.transpose(1, 2) for part in qkv.unflatten(0, (-1, max_seqlen)).unbind(2)
    )
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(0, 1)


def load(path: str, threads: int) -> types.SimpleNamespace:
    """Imports torch and the published modules, with substitutes for what needs a GPU.

    Raises:
      ImportError: `path` or this Python lacks a module.
    """
    import torch

    # OMP_WAIT_POLICY stays unset: "passive" slows the small steps by a sixth, and without it the
    # threads spin for some milliseconds after a step, then sleep while ours are timed
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    # on CPU the published bfloat16 regions would be slower than float32, which we compare
    torch.cuda.amp.autocast = lambda *args, **kwargs: contextlib.nullcontext()
    # without a submodule `layers` the published code uses its own rotary embedding
    sys.modules["flash_attn"] = types.ModuleType("flash_attn")
    interface = types.ModuleType("flash_attn.flash_attn_interface")
    interface.flash_attn_varlen_qkvpacked_func = _attention
    sys.modules[interface.__name__] = interface
    sys.path.insert(0, path)
    sys.dont_write_bytecode = True  # the given folder stays as it is
    modules = {name.replace(".", "_"): importlib.import_module(name) for name in _MODULES}
    torch._C._jit_override_can_fuse_on_cpu(False)  # the published import turns it on, for GPUs
    return types.SimpleNamespace(torch=torch, **modules)


class Runs:
    """The published model, optimizer and average of one size.

    Args:
      published: The modules.
      request: A request; its sizes and dropout are used.
    """

    def __init__(self, published, request):
        self._published, torch = published, published.torch
        torch.manual_seed(0)
        self._dims = (request["batch"], request["length"])
        self._tokens = torch.randint(request["tokens"], self._dims)
        self._graph = published.graph_lib.Absorbing(request["tokens"])
        self._noise = published.noise_lib.LogLinearNoise()
        model = {
            "hidden_size": request["hidden"],
            "cond_dim": request["cond"],
            "n_blocks": request["blocks"],
            "n_heads": request["heads"],
            "scale_by_sigma": True,
            "dropout": request.get("dropout", 0.0),
        }
        self._model = published.model.SEDD(
            {"tokens": request["tokens"], "graph": {"type": "absorb"}, "model": model}
        )
        # the published settings, as in its configs/config.yaml
        optim = {"optimizer": "AdamW", "lr": 3e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        optim |= {"weight_decay": 0, "warmup": 2500, "grad_clip": 1.0}
        config = types.SimpleNamespace(optim=types.SimpleNamespace(**optim))
        parameters = [*self._model.parameters(), *self._noise.parameters()]
        self._state = {
            "model": self._model,
            "optimizer": published.losses.get_optimizer(config, parameters),
            "scaler": torch.amp.GradScaler(enabled=False),
            "ema": published.model_ema.ExponentialMovingAverage(self._model.parameters(), 0.9999),
            "step": 0,
        }
        optimize = published.losses.optimization_manager(config)
        self._step = published.losses.get_step_fn(self._noise, self._graph, True, optimize, 1)

    def train(self, request: dict) -> Iterator[dict]:
        yield {}
        loss = float(self._step(self._state, self._tokens))
        yield {"loss": loss}

    def sample(self, request: dict) -> Iterator[dict]:
        starts = []  # the sampler calls its projection before each update and the denoiser

        def note_time(x):
            starts.append(time.perf_counter())
            return x

        sampler = self._published.sampling.get_pc_sampler(
            self._graph, self._noise, self._dims, "analytic", request["steps"], proj_fun=note_time
        )
        yield {}
        sampler(self._model)
        starts.append(time.perf_counter())
        yield {"updates": [end - start for start, end in itertools.pairwise(starts)]}

    def sample_step(self, request: dict) -> Iterator[dict]:
        torch = self._published.torch
        predictor = self._published.sampling.get_predictor("analytic")(self._graph, self._noise)
        score = self._published.model_utils.get_score_fn(self._model, train=False, sampling=True)
        times = torch.full((self._dims[0], 1), request["t"])
        state = self._graph.sample_transition(self._tokens, self._noise(times)[0])
        yield {}
        with torch.no_grad():
            predictor.update_fn(score, state, times, 1 / request["steps"])
        yield {}


class Worker:
    """Answers requests, and keeps the model of the last size."""

    def __init__(self, published):
        self._published, self._key, self._runs = published, None, None

    def answer(self, request: dict) -> dict:
        """Carries out the request and returns the answer."""
        ops = {"train": Runs.train, "sample": Runs.sample, "sample_step": Runs.sample_step}
        if request.get("op") not in ops:
            raise ValueError(f"the op is {request.get('op')!r}, not one of {', '.join(ops)}")
        key = [request[name] for name in SIZES] + [request.get("dropout", 0.0)]
        if key != self._key:
            self._key = self._runs = None  # frees the previous model before the next is built
            self._runs, self._key = Runs(self._published, request), key
        run = ops[request["op"]](self._runs, request)
        next(run)  # preparation is not timed
        wall, cpu = time.perf_counter(), time.process_time()
        extra = next(run)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"seconds": wall, "cpu_seconds": cpu, **extra}


def main() -> None:
    """Loads the published code, prints a line when ready, and answers until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="folder of the published code")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    args = parser.parse_args()
    # output of libraries goes to stderr; stdout has our answers only
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if not all(os.path.exists(os.path.join(args.path, f)) for f in ("graph_lib.py", "losses.py")):
        parser.exit(2, f"error: --path={args.path} does not hold the published code.\n")
    try:
        worker = Worker(load(args.path, args.threads))
    except ImportError as error:
        parser.exit(2, f"error: {sys.executable} cannot import the published code: {error}.\n")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the worker stays alive for the next request
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
