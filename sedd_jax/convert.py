"""Converts a model: `python -m sedd_jax.convert --checkpoint=runs/tiny --output=published/tiny`.

A run folder becomes one in the published PyTorch layout, and the other way round; so does a run of
the published training script, or one of its checkpoints. An MDLM, UDLM, Duo or RADD becomes a run
folder. With --push_to_hub=OWNER/NAME the result is then uploaded to the Hugging Face hub, private
unless --public.
"""

import contextlib
import tempfile
from pathlib import Path

from absl import flags

from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.inference.export import LAYOUTS, export
from sedd_jax.inference.load import load
from sedd_jax.system import bucket, hub, mirror
from sedd_jax.system.bucket import is_address, parse
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
    output, push = _OUTPUT.value, _PUSH.value
    with _new_folder(output) as folder:
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
        export(checkpoint, folder, layout, weights=weights, name=push or output)
        uploaded = push and hub.upload(folder, push, private=not _PUBLIC.value)
    print(f"Wrote {output}, {'a run folder' if layout == 'run' else 'in the published layout'}.")
    if push:
        print(f"Uploaded to {uploaded}.")
    print(f"Next: {as_typed('python -m sedd_jax.sample')} --checkpoint={push or output}")


@contextlib.contextmanager
def _new_folder(name):
    """Holds the folder to create; one for a bucket is local, and uploaded when it is whole."""
    if not is_address(name):
        check_output_path(Path(name))
        yield Path(name)
        return
    address = parse(name, "--output")
    bucket.check_access(address, "--output")
    if bucket.entries(address):
        raise BadInput(f"{address} exists already; give --output another name.")
    with tempfile.TemporaryDirectory() as above, mirror.opened(name, "--output") as folder:
        made = Path(above, address.name)
        yield made
        made.rename(folder)
        with mirror.keeping(folder):
            mirror.push(folder)  # config.json last


if __name__ == "__main__":
    cli.run(main)
