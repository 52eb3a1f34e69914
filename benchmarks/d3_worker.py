"""Times d3-dna; `benchmarks.beside_d3_dna` starts it and sends requests.

    PYTHON benchmarks/d3_worker.py --threads=2

PYTHON has d3-dna 0.1.3 and its dependencies, no jax. Each line of stdin is a request and gets one
JSON line on stdout: {"seconds": ...}, {"losses": [...]} or {"error": "..."}. Uniform graph over
four letters, geometric noise from 1e-4 to 20, no labels, no dropout, float32, CPU. A request has an
"op" and the fields of `SIZES`:
  train   a training step by its own get_step_fn: draw t and xt, loss, gradient, clip, AdamW, EMA
  sample  a run of its own sampler with "steps" analytic updates and the denoiser; the seconds are
          those of one of these steps + 1 network evaluations
  bound   trains by the same steps on the "batches" [steps, batch, length]; the losses are those of
          the averaged weights on each sequence of "heldout", each the mean of "draws" of t and xt
"""

import argparse
import json
import os
import sys
import time

SIZES = ("trunk", "hidden", "cond", "blocks", "heads", "batch", "length")
LETTERS = 4


class Runs:
    """A model of d3-dna with its optimizer and average."""

    def __init__(self, request):
        """Builds the model of a request."""
        import torch
        from d3_dna.models import ConvolutionalModel, TransformerModel
        from d3_dna.models.diffusion import GeometricNoise, Uniform, get_pc_sampler
        from d3_dna.models.ema import ExponentialMovingAverage
        from d3_dna.modules import trainer
        from omegaconf import OmegaConf

        torch.set_float32_matmul_precision("highest")  # its import says medium: we compare float32
        torch.manual_seed(0)
        self._dims = (request["batch"], request["length"])
        config = OmegaConf.create(
            {
                "tokens": LETTERS,
                "graph": {"type": "uniform"},
                "dataset": {
                    "num_classes": LETTERS,
                    "signal_dim": 1,
                    "sequence_length": request["length"],
                },
                "model": {
                    "hidden_size": request["hidden"],
                    "conv_channels": request["hidden"],
                    "cond_dim": request["cond"],
                    "n_blocks": request["blocks"],
                    "n_heads": request["heads"],
                    "dropout": 0.0,
                    "scale_by_sigma": False,
                },
                "optim": {
                    "optimizer": "AdamW", "lr": request.get("lr", 3e-4), "beta1": 0.9,
                    "beta2": 0.999, "eps": 1e-8, "weight_decay": 0,
                    "warmup": request.get("warmup", 2500), "grad_clip": 1.0,
                },
            }
        )  # fmt: skip
        kinds = {"transformer": TransformerModel, "convolution": ConvolutionalModel}
        self._model = kinds[request["trunk"]](config)
        self._tokens = torch.randint(LETTERS, self._dims)
        self._graph, self._noise = Uniform(LETTERS), GeometricNoise(1e-4, 20)
        self._state = {
            "model": self._model,
            "optimizer": trainer.get_optimizer(config, self._model.parameters()),
            "scaler": torch.amp.GradScaler(enabled=False),
            "ema": ExponentialMovingAverage(self._model.parameters(), request.get("ema", 0.9999)),
            "step": 0,
        }
        optimize = trainer.optimization_manager(config)
        self._step = trainer.get_step_fn(self._noise, self._graph, True, optimize, 1)
        self._loss = trainer.get_loss_fn(self._noise, self._graph, False)
        self._sampler = get_pc_sampler

    def train(self, request) -> dict:
        """Returns the seconds of a training step."""
        began = time.perf_counter()
        float(self._step(self._state, self._tokens))
        return {"seconds": time.perf_counter() - began}

    def bound(self, request) -> dict:
        """Trains, and returns the loss of every held-out sequence."""
        import torch

        for batch in torch.tensor(request["batches"]):
            self._step(self._state, batch)
        self._state["ema"].copy_to(self._model.parameters())
        heldout = torch.tensor(request["heldout"])
        with torch.no_grad():
            losses = [self._loss(self._model, heldout) for _ in range(request["draws"])]
        return {"losses": torch.stack(losses).mean(0).tolist()}

    def sample(self, request) -> dict:
        """Returns the seconds of a network evaluation of a sampling run."""
        steps = request["steps"]
        run = self._sampler(self._graph, self._noise, self._dims, "analytic", steps)
        began = time.perf_counter()
        run(self._model, None)
        return {"seconds": (time.perf_counter() - began) / (steps + 1)}


def main() -> None:
    """Imports d3-dna, prints a line when ready, and answers until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    threads = parser.parse_args().threads
    # output of libraries goes to stderr; stdout has our answers only
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        import d3_dna
        import torch
    except ImportError as error:
        parser.exit(2, f"error: {sys.executable} cannot import d3-dna: {error}.\n")
    del d3_dna  # its modules are imported where they are used
    torch.set_num_threads(threads)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    key = runs = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            sizes = [request[name] for name in SIZES]
            if sizes != key or request["op"] == "bound":  # which trains from the start
                key = runs = None  # frees the model before
                runs, key = Runs(request), sizes
            ops = {"train": runs.train, "sample": runs.sample, "bound": runs.bound}
            answer = ops[request["op"]](request)
        except Exception as error:  # the worker stays alive for the next request
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
