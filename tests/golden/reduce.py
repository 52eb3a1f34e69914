"""Makes the reduced copy of the golden data that lies beside this file.

Usage: python tests/golden/reduce.py SOURCE

SOURCE is the folder of the full data: absorb_small/ and uniform_small/, each with case.json,
golden.npz, golden_f64.npz and published/. The copy stays below 1 MB, which is why only one case
keeps its weights (580 KB, incompressible), and gradients and changes of weights shrink to a few
statistics of every tensor. `tests/test_golden.py` reads it and shares `probes` with this script.
"""

import pathlib
import shutil
import sys

import numpy as np

LIMIT = 2**20
WITH_WEIGHTS = "absorb_small"
POSITIONS = slice(None, None, 8)  # per-position arrays [B, L, ...] keep 4 of 32 positions
COLUMNS = slice(0, 4)  # unit arrays [R, 12, ...] keep 4 of 12: both unmoved and moved tokens

WHOLE = (
    "x0", "t", "xt", "sigma", "dsigma", "analytic_dsigma", "log_score", "score_entropy", "loss",
    "mid/rotary_cos", "mid/rotary_sin", "unit/sigma", "unit/rate", "unit/transp_rate", "unit/t",
    "unit/noise_sigma", "unit/noise_dsigma", "unit/timestep_embedding", "train/x0", "train/t",
    "train/xt", "train/loss", "train/lr", "train/grad_norm", "warm2/train/loss", "warm2/train/lr",
    "warm2/train/grad_norm",
)  # fmt: skip
PER_POSITION = (
    "reverse_rate", "euler_probs", "staggered_score", "transp_transition", "analytic_probs",
    "denoiser_staggered_score", "denoiser_transp_transition", "denoiser_probs",
)  # fmt: skip
PER_COLUMN = (
    "unit/x", "unit/x0", "unit/log_score", "unit/score_entropy", "unit/score_entropy_grad",
    "unit/reverse_rate", "unit/staggered_score", "unit/transp_transition",
)  # fmt: skip
SQUARE_ROOTS_OF = (2, 3, 5, 7)


def probes(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the vectors [5, *shape] that a tensor is multiplied with: ones, then pseudo-random.

    Entry i of a pseudo-random one is frac(sqrt(p) (i + 1)^2), moved and scaled to mean 0 and
    variance 1: a formula, since numpy does not promise that a generator's stream never changes.
    """
    squares = (np.arange(np.prod(shape, dtype=int)) + 1.0) ** 2
    waves = [np.sqrt(p) * squares % 1 for p in SQUARE_ROOTS_OF]
    vectors = [np.ones_like(squares), *(np.sqrt(12) * (wave - 0.5) for wave in waves)]
    return np.stack(vectors).reshape(-1, *shape)


def statistics(tensor: np.ndarray) -> np.ndarray:
    """Returns the tensor's L2 norm and its dot products with `probes`, float64 [6]."""
    tensor = tensor.astype(np.float64)
    dots = np.tensordot(probes(tensor.shape), tensor, axes=tensor.ndim)
    return np.concatenate([[np.linalg.norm(tensor)], dots])


def reduce_case(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the reduced copy of one case."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "case.json", target / "case.json")
    truth, float32 = np.load(source / "golden_f64.npz"), np.load(source / "golden.npz")
    kept = {name: truth[name] for name in WHOLE}
    kept |= {name: truth[name][:, POSITIONS] for name in PER_POSITION}
    kept |= {name: truth[name][:, COLUMNS] for name in PER_COLUMN}
    if target.name == WITH_WEIGHTS:
        from safetensors.numpy import load_file

        (target / "published").mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(source / "published" / name, target / "published" / name)
        weights = load_file(source / "published" / "model.safetensors")
        for name in float32.files:
            kind, _, tensor = name.rpartition("/")
            if kind == "grad":
                kept[name] = statistics(truth[name])
            elif kind in ("warm2/param", "warm2/ema"):
                change = float32[name].astype(np.float64) - weights[tensor]
                kept[name] = statistics(change)
    kept = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in kept.items()}
    np.savez_compressed(target / "golden.npz", **kept)


def main(source: pathlib.Path) -> None:
    """Reduces both cases and checks the size of the result."""
    here = pathlib.Path(__file__).parent
    for case in ("absorb_small", "uniform_small"):
        reduce_case(source / case, here / case)
    files = [path for case in here.glob("*_small") for path in case.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {total} bytes")
    if total > LIMIT:
        raise SystemExit(f"{total} bytes are more than the {LIMIT} allowed")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
