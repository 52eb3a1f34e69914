"""A page that fills in texts with holes: `python -m sedd_jax.demo --checkpoint=runs/tiny`.

Type a text with holes, choose how to draw, and watch. The page is served to this machine alone
unless `--host` says otherwise: it has no passwords.
"""

import contextlib
import signal
import sys
import threading

from absl import flags

from sedd_jax.demo.request import RequestHandler
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.inference.load import load
from sedd_jax.system.packages import package
from sedd_jax.system.processes import end_on_signal

_MODEL = cli.define_model_flags()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address or name to listen on.")
_PORT = flags.DEFINE_integer(
    "port", 8080, "Port to listen on; 0 for any free one.", lower_bound=0, upper_bound=65535
)
_DRAWINGS = flags.DEFINE_integer("drawings", 2, "Drawings at a time.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 120.0, "That a drawing may take.", lower_bound=1.0)


def main() -> None:
    """Serves the page until a signal ends it."""
    model = _MODEL()
    for name in ("starlette", "uvicorn"):
        package(name, '"sedd_jax[demo]"', "The demo")
    from sedd_jax.demo.app import Limits, Server  # imports them

    handler = RequestHandler(load(**model))
    limits = Limits(drawings=_DRAWINGS.value, drawing=_SECONDS.value)
    try:
        server = Server(handler, _HOST.value, _PORT.value, limits)
    except OSError as error:
        reason = error.strerror.partition(" (while")[0]
        raise BadInput(
            f"Cannot listen on --host={_HOST.value} --port={_PORT.value}: {reason}; give others, "
            "--port=0 takes any free one."
        ) from error
    with end_on_signal():
        handler.warm_up()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), server:
        print(f"Serving {server.url}; Ctrl-C ends it.", flush=True)
        threading.Event().wait()
    print("Ended.", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
