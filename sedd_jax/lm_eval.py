"""lm-evaluation-harness with our models: `python -m sedd_jax.lm_eval`, with all flags of `lm_eval`.

    python -m sedd_jax.lm_eval run --model=sedd_jax --model_args checkpoint=runs/tiny --tasks=blimp

The harness has no way to find models of other packages (version 0.4.13: its list is in its code),
so this registers `sedd_jax`, as `import sedd_jax.lm_eval` does, and calls its command.
"""

import functools
import multiprocessing
import sys

from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.system.packages import package

NAME = "sedd_jax"
_MODEL = "sedd_jax.evaluation.harness_model:SeddJax"
_UNKNOWN_TASK = "Tasks not found"


def _harness(module):
    return package(f"lm_eval.{module}", '"sedd_jax[lm_eval]"', "The harness")


def register() -> None:
    """Makes `sedd_jax` a model of the harness.

    Raises:
      BadInput: the harness is not installed.
    """
    _harness("models")  # which registers its own only where there are none yet
    models = _harness("api.registry").model_registry
    if NAME not in models:
        models.register(NAME, target=_MODEL)


def main(arguments: list[str]) -> None:
    """Runs the harness's command with its arguments.

    Raises:
      BadInput: a task that does not exist, or no harness.
    """
    register()
    sys.argv[1:] = arguments
    # the harness forks for its standard errors, which may hang once JAX has threads
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        _harness("__main__").cli_evaluate()
    except ValueError as error:
        if str(error).startswith(_UNKNOWN_TASK):
            raise BadInput(f"{error}: `python -m sedd_jax.lm_eval ls tasks` lists them.") from error
        raise


if __name__ == "__main__":
    arguments, sys.argv[1:] = sys.argv[1:], []  # none is a flag of ours
    cli.run(functools.partial(main, arguments))
elif __name__ != "__mp_main__":  # of the processes that compute standard errors
    register()
