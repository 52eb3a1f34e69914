"""Prepares text for training: `python -m sedd_jax.prepare --config=FILE --output=data/owt`.

The config is that of the run to come: `config.data` says which text and which tokens. The same
command goes on after a kill, and the run takes the result with `--config.data.prepared=data/owt`.
"""

import os
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import check_name
from sedd_jax.errors import BadInput, Halted

# Workers import this module anew, and need nothing of JAX, which only cli imports: see below.

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file of the run to come.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to make.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Processes.", lower_bound=1)


def main() -> None:
    """Prepares as the flags say."""
    from sedd_jax.experiment import cli

    config = cli.config_from(_CONFIG)
    if not _OUTPUT.value:
        raise BadInput("--output=FOLDER is needed: where the prepared data are kept.")
    if config.data.prepared:
        raise BadInput("config.data.prepared names data prepared before; leave it out here.")
    check_name(_OUTPUT.value)
    try:
        dataset = prepare_blocks(_OUTPUT.value, config.data, config.model.length, _WORKERS.value)
    except KeyboardInterrupt:
        raise Halted("Stopped; the same command goes on from there.", 130) from None
    manifest = dataset.manifest
    for split, counts in manifest["splits"].items():
        print(
            f"{split + ':':9} {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes_per_token']:.3f} bytes a token"
            + (f", {counts['filling']:,} tokens are filling" if counts["filling"] else "")
            + (f", {counts['cut_off']:,} more tokens cut off" if counts["cut_off"] else "")
        )
    for reason, count in manifest["skipped"].items():
        print(f"left out: {count:,} document{'s: each' if count > 1 else ':'} {reason}")
    prepared = f"--config.data.prepared={_OUTPUT.value}"
    command = shlex.join([*_config_flags(sys.argv[1:]), prepared])
    print(f"Next:     python -m sedd_jax.train {command} --workdir=RUN")


def _config_flags(arguments: list[str]) -> list[str]:
    """The arguments without what is only for this binary, as --output=data or --output data."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name.lstrip("-") not in (_OUTPUT.name, _WORKERS.name):
            kept.append(argument)
        elif not equals:
            next(rest, None)
    return kept


if __name__ == "__main__":
    from sedd_jax.experiment import cli

    cli.run(main)
