"""Prepares text for training: `python -m sedd_jax.prepare --config=FILE --output=data/owt`.

The config is the one of the training run: `config.data` says which text and which tokens. After a
kill the same command continues, and training reads the result with
`--config.data.prepared=data/owt`. The folder may be in a bucket, gs://BUCKET/owt.
"""

import os
import shlex
import sys

from absl import flags

from sedd_jax.data import account
from sedd_jax.data.manifest import check_hashes
from sedd_jax.data.prepared import check_name
from sedd_jax.data.upload import is_prepared, prepare_anywhere
from sedd_jax.errors import BadInput, Halted
from sedd_jax.experiment.config_files import define_config_flag
from sedd_jax.system import mirror
from sedd_jax.system.console import as_typed

# each worker imports this module again and needs no JAX, so `cli` is imported in main

_CONFIG = define_config_flag("The config file of the training run.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to create, here or in a bucket.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Number of processes.", lower_bound=1)


def main() -> None:
    """Prepares the data that the flags describe."""
    from sedd_jax.experiment import cli

    config = cli.config_from(_CONFIG)
    if not _OUTPUT.value:
        raise BadInput("--output=FOLDER is needed: where the prepared data are written.")
    if config.data.prepared:
        raise BadInput("config.data.prepared names data prepared before; leave it out here.")
    output = _OUTPUT.value
    check_name(output)
    again = is_prepared(output)
    try:
        dataset = prepare_anywhere(output, config.data, config.model.length, _WORKERS.value)
    except KeyboardInterrupt:
        raise Halted("Stopped; the same command continues from there.", 130) from None
    if again:
        whole = check_hashes(mirror.local(output), dataset.manifest)
        checked = f"its {whole} files of ids hold what was written"
        older = "the files have no hashes, since an older version wrote them"
        print(f"{output} was prepared before; {checked if whole else older}.")
    account.tell(dataset.manifest)
    prepared = f"--config.data.prepared={output}"
    command = shlex.join([*_config_flags(sys.argv[1:]), prepared])
    print(f"Next:     {as_typed('python -m sedd_jax.train')} {command} --workdir=RUN")


def _config_flags(arguments: list[str]) -> list[str]:
    """Returns the arguments without those of this binary alone, --output=data or --output data."""
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
