"""Converts a model: `python -m sedd_jax.convert --checkpoint=runs/tiny --output=published/tiny`.

A run folder becomes one in the published PyTorch layout, and the other way round; so does a run of
the published training script, or one of its checkpoints. An MDLM, UDLM, Duo or RADD becomes a run
folder. With --push_to_hub=OWNER/NAME the result is then uploaded to the Hugging Face hub, private
unless --public.
"""

from pathlib import Path

from absl import flags

from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.inference.export import LAYOUTS, export
from sedd_jax.inference.load import load
from sedd_jax.system import hub
from sedd_jax.system.console import as_typed
from sedd_jax.system.files import check_output_path

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder, or OWNER/NAME on the hub.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to create; must not exist yet.")
_TO = flags.DEFINE_enum("to", None, list(LAYOUTS), "Layout to write; by default the other one.")
_STEP = flags.DEFINE_integer("checkpoint_step", None, "Step to convert; the latest by default.")
_EMA = flags.DEFINE_bool("ema", True, "Convert the averaged weights.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder, or OWNER/NAME, of the tokenizer.")
_TRUST_CODE = flags.DEFINE_bool(
    "trust_code", False, "Import and run the code that the model names as its own."
)
_PUSH = flags.DEFINE_string("push_to_hub", None, "OWNER/NAME to upload the result to.")
_PUBLIC = flags.DEFINE_bool("public", False, "Make the repository public.")


def main() -> None:
    """Converts the model that the flags name."""
    for flag in (_CHECKPOINT, _OUTPUT):
        if not flag.value:
            raise BadInput(f"--{flag.name}=FOLDER is needed.")
    output, push = Path(_OUTPUT.value), _PUSH.value
    check_output_path(output)
    if push:
        hub.check_upload(push)
    elif _PUBLIC.value:
        raise BadInput("--public needs --push_to_hub=OWNER/NAME.")
    checkpoint = load(
        _CHECKPOINT.value,
        step=_STEP.value,
        ema=_EMA.value,
        tokenizer=_TOKENIZER.value,
        trust_code=_TRUST_CODE.value,
    )
    published = checkpoint.step is None
    weights = "as published" if published else "averaged" if _EMA.value else "as trained"
    layout = _TO.value or ("run" if published else "published")
    export(checkpoint, output, layout, weights=weights, name=push or str(output))
    print(f"Wrote {output}, {'a run folder' if layout == 'run' else 'in the published layout'}.")
    if push:
        print(f"Uploaded to {hub.upload(output, push, private=not _PUBLIC.value)}.")
    print(f"Next: {as_typed('python -m sedd_jax.sample')} --checkpoint={push or output}")


if __name__ == "__main__":
    cli.run(main)
