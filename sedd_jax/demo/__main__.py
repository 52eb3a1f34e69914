"""A page that fills in texts while one looks on: `python -m sedd_jax.demo --checkpoint=runs/tiny`.

Type a text with holes, choose how it is to be drawn, and watch. The page is served to this machine
alone unless `--host` says otherwise: it has no passwords.
"""

import signal
import sys
import threading

from absl import flags

from sedd_jax.demo.drawing import Studio
from sedd_jax.demo.page import watch_page
from sedd_jax.demo.server import Limits, Server
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.inference.load import load
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
    checkpoint = load(**_MODEL())
    studio = Studio(checkpoint)
    limits = Limits(drawings=_DRAWINGS.value, drawing=_SECONDS.value)
    try:
        server = Server(_HOST.value, _PORT.value, studio, watch_page(checkpoint, studio), limits)
    except OSError as error:
        raise BadInput(
            f"Cannot listen on --host={_HOST.value} --port={_PORT.value}: {error.strerror}; give "
            "others, --port=0 takes any free one."
        ) from error
    with server:
        with end_on_signal():
            studio.warm_up()
        for number in (signal.SIGINT, signal.SIGTERM):
            # shutdown waits for the loop, which is this very thread
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"Serving {server.url}; Ctrl-C ends it.", flush=True)
        server.serve_forever()
    print("Ended.", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
