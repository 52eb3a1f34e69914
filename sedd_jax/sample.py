"""Draws samples: `python -m sedd_jax.sample --checkpoint=runs/tiny`.

Prints text, or writes JSON lines with --output. `--trace` shows one sample being denoised. Of an
autoregressive checkpoint, `--temperature` and `--top_p` say how sharply it draws.
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from sedd_jax.diffusion.reverse import SAMPLERS
from sedd_jax.errors import BadInput
from sedd_jax.inference.autoregressive import generate_autoregressive
from sedd_jax.inference.generate import generate
from sedd_jax.inference.load import load
from sedd_jax.inference.prompt import prefix_suffix
from sedd_jax.runtime import cli

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Run folder or folder of published weights, or OWNER/NAME on the hub."
)
_STEP = flags.DEFINE_integer("checkpoint_step", None, "Step to load; the latest by default.")
_EMA = flags.DEFINE_bool("ema", True, "Use the averaged weights.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Folder, or OWNER/NAME, of the tokenizer; by default that of the checkpoint."
)
_MESH = flags.DEFINE_list("mesh", None, "Axes of devices, as in fsdp:4,tensor:2; one by default.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Number of samples.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Samples drawn at a time.")
_LENGTH = flags.DEFINE_integer("length", None, "Tokens per sample; the trained length by default.")
_STEPS = flags.DEFINE_integer("steps", 128, "Reverse steps before the final denoising step.")
_SAMPLER = flags.DEFINE_enum("sampler", "tweedie", list(SAMPLERS), "Rule of the reverse step.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Autoregressive: divides the logits.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Autoregressive: fewest tokens of this mass.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Sample i is a function of (seed, i).", lower_bound=0, upper_bound=2**32 - 1
)
_PREFIX = flags.DEFINE_string("prefix", "", "Text that every sample begins with.")
_SUFFIX = flags.DEFINE_string("suffix", "", "Text that every sample ends with.")
_OUTPUT = flags.DEFINE_string("output", None, "File for JSON lines; must not exist yet.")
_TRACE = flags.DEFINE_bool(
    "trace", False, "Show the denoising of one sample, instead of --num_samples."
)
_FRAMES = flags.DEFINE_integer("frames", 8, "Moments shown by --trace.")


def main() -> None:
    """Samples as the flags say."""
    if not _CHECKPOINT.value:
        raise BadInput("--checkpoint=FOLDER is needed.")
    if _OUTPUT.value and Path(_OUTPUT.value).exists():
        raise BadInput(f"{_OUTPUT.value} exists already; give --output another name.")
    if _OUTPUT.value and not Path(_OUTPUT.value).absolute().parent.is_dir():
        raise BadInput(f"The folder of --output={_OUTPUT.value} does not exist; make it first.")
    if _OUTPUT.value and _TRACE.value:
        raise BadInput("--trace shows one sample and writes no --output; give one of the two.")
    checkpoint = load(
        _CHECKPOINT.value,
        step=_STEP.value,
        ema=_EMA.value,
        mesh=cli.mesh_from(_MESH),
        tokenizer=_TOKENIZER.value,
    )
    family = checkpoint.config.family
    cli.refuse_flags_of_others(
        family,
        {
            "diffusion": (_STEPS, _SAMPLER, _TRACE, _FRAMES),
            "autoregressive": (_TEMPERATURE, _TOP_P),
        },
    )
    num_samples = 1 if _TRACE.value else _NUM_SAMPLES.value
    length = checkpoint.config.model.length if _LENGTH.value is None else _LENGTH.value
    prompt = prefix_suffix(
        _encode(checkpoint.tokenizer, "--prefix", _PREFIX.value),
        _encode(checkpoint.tokenizer, "--suffix", _SUFFIX.value),
        num_samples,
        length,
    )
    started = time.monotonic()
    draw = {"diffusion": _denoise, "autoregressive": _continue}[family]
    tokens, evaluations, settings = draw(checkpoint, prompt)
    seconds = time.monotonic() - started
    if _OUTPUT.value:
        _write(checkpoint.tokenizer, tokens, settings, Path(_OUTPUT.value))
    elif not _TRACE.value:
        for row in tokens:
            print(f"--- sample ---\n{_text(checkpoint.tokenizer, row)}")
    print(
        f"{num_samples} x {length} tokens, {evaluations} network evaluations, "
        f"{seconds:.1f} s with compilation.",
        file=sys.stderr,
    )


def _denoise(checkpoint, prompt):
    """Tokens, network evaluations, and the settings that they belong to; shows the trace."""
    tokens, diagnostics = generate(
        jax.random.key(_SEED.value),
        checkpoint,
        *prompt.tokens.shape,
        steps=_STEPS.value,
        sampler=_SAMPLER.value,
        prompt=prompt,
        batch_size=_BATCH_SIZE.value,
        trace=_TRACE.value,
    )
    if _TRACE.value:
        _show_trace(checkpoint, diagnostics.trace[:, 0])
    return tokens, diagnostics.evaluations[0], {"sampler": _SAMPLER.value, "steps": _STEPS.value}


def _continue(checkpoint, prompt):
    """The same from left to right."""
    settings = {"temperature": _TEMPERATURE.value, "top_p": _TOP_P.value}
    tokens = generate_autoregressive(
        jax.random.key(_SEED.value),
        checkpoint,
        *prompt.tokens.shape,
        prompt=prompt,
        batch_size=_BATCH_SIZE.value,
        **settings,
    )
    return tokens, tokens.shape[1], settings


def _encode(tokenizer, flag, text):
    if not text:
        return np.zeros(0, np.int32)
    if tokenizer is None:
        raise BadInput(f"{flag} needs a tokenizer, and the checkpoint has none: --tokenizer.")
    try:
        return tokenizer.encode(text)
    except BadInput as error:
        raise BadInput(f"{flag}: {error}") from error


def _text(tokenizer, row):
    return " ".join(map(str, row)) if tokenizer is None else tokenizer.decode(row)


def _write(tokenizer, tokens, settings, path):
    lines = [
        json.dumps(
            {"index": index, "seed": _SEED.value}
            | settings
            | {
                "tokens": row.tolist(),
                "text": None if tokenizer is None else tokenizer.decode(row),
            }
        )
        for index, row in enumerate(tokens)
    ]
    with path.open("x") as file:
        file.write("\n".join(lines) + "\n")


def _show_trace(checkpoint, path):
    """Prints frames of the path [steps + 2, L], evenly spaced, the first and the last included."""
    calls = len(path) - 1
    for moment in np.unique(np.linspace(0, calls, max(_FRAMES.value, 2)).round().astype(int)):
        print(f"--- after {moment} of {calls} network evaluations ---")
        print(_text(checkpoint.tokenizer, path[moment]), flush=True)


if __name__ == "__main__":
    cli.run(main)
