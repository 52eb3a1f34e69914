"""A metadata server of a cloud machine, of Google and of Amazon at the same address."""

import contextlib
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Metadata:
    """Values that can be changed while they are asked for; `asked` has the requests."""

    def __init__(self):
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()
        self.asked: list[str] = []

    def set(self, key: str, value: str) -> None:
        """Changes a value, and answers the requests that wait for it."""
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def answer(self, method: str, path: str, headers) -> tuple[int, str, str]:
        """Returns the status, the text and the ETag of an answer."""
        place = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(place.query))
        key = place.path.rpartition("/")[2]
        with self._changed:
            self.asked.append(f"{method} {place.path}")
            self._changed.notify_all()
            if place.path == "/latest/api/token":
                return (200, "a token", "") if method == "PUT" else (405, "", "")
            google = place.path.startswith("/computeMetadata/v1/instance/")
            if google and headers["Metadata-Flavor"] != "Google":
                return 403, "", ""
            if not google and headers["X-aws-ec2-metadata-token"] != "a token":
                return 401, "", ""
            if query.get("wait_for_change") == "true":
                known = query["last_etag"]
                self._changed.wait_for(lambda: self._tag(key) != known, float(query["timeout_sec"]))
            return (
                (200, self._values[key], self._tag(key)) if key in self._values else (404, "", "")
            )

    def _tag(self, key):
        return f"{hash(self._values.get(key)):x}"

    def wait_for(self, request: str, count: int = 1) -> None:
        """Waits until a request has been made some times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked.count(request) >= count, 60)


@contextlib.contextmanager
def metadata_server() -> Iterator[tuple[Metadata, str]]:
    """Starts a server on this machine; yields it and its host:port."""
    values = Metadata()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            status, text, tag = values.answer(self.command, self.path, self.headers)
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        do_PUT = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield values, f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
