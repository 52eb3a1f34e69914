"""A small local page on which texts with holes are filled in while one looks on.

It is made for one person at their own machine, and holds out against others: what is asked for is
bounded before it is read or computed, and nothing that was written by anyone enters a page but as
text. A drawing is a stream of JSON lines over one POST.
"""

import contextlib
import io
import ipaddress
import json
import select
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from sedd_jax.demo.drawing import Drawing, Studio
from sedd_jax.errors import BadInput

MOST_BYTES = 2**16  # of a request


class Limits(NamedTuple):
    """What the server allows.

    Attributes:
      drawings: that go on at a time; others wait.
      connections: open at a time; others are turned away.
      wait: seconds that a drawing waits for its turn.
      request: seconds in which a request must have arrived.
      drawing: seconds that a drawing may take, compilation included.
    """

    drawings: int = 2
    connections: int = 64
    wait: float = 10.0
    request: float = 10.0
    drawing: float = 120.0


class Refusal(Exception):
    """A request that is answered with this status and sentence."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Server(ThreadingHTTPServer):
    """Serves the page and the drawings of a studio.

    Close it after `serve_forever` has returned: drawings that go on are ended, and waited for.
    """

    daemon_threads = True  # one that does not end in time does not keep the program
    request_queue_size = 128

    def __init__(self, host: str, port: int, studio: Studio, page: str, limits: Limits):
        """Listens on the host and the port, 0 for any free one; OSError where that cannot be."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host, self.studio, self.page, self.limits = host, studio, page.encode(), limits
        self.closing = threading.Event()
        self.drawings = threading.Semaphore(limits.drawings)
        self._connections = threading.Semaphore(limits.connections)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the network for the name of this machine
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Where to look."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # there is no thread that would do it
                self._connections.release()
                raise
        else:
            self._turn_away(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def _turn_away(self, request, client_address):
        reason = f"{self.limits.connections} connections are open, the most there may be."
        log_refusal(client_address, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        body = json.dumps({"error": f"{reason} Try again soon."}) + "\n"
        head = "HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n"
        with contextlib.suppress(OSError):
            # this is the thread that all others wait for
            request.settimeout(0.1)
            request.recv(MOST_BYTES)
            request.sendall((head + body).encode())
        self.shutdown_request(request)

    def server_close(self) -> None:
        self.closing.set()
        super().server_close()
        end = time.monotonic() + 10.0
        for _ in range(self.limits.connections):
            self._connections.acquire(timeout=max(end - time.monotonic(), 0))

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client that went away
            reason = f"{type(error).__name__}: {error}"
            log_refusal(client_address, HTTPStatus.INTERNAL_SERVER_ERROR, reason)


def log_refusal(client: Any, status: HTTPStatus, reason: str) -> None:
    """Says on stderr, in one line, who was refused and why."""
    shown = "".join(sign if sign.isprintable() else " " for sign in reason)[:400]
    shown = shown.encode("ascii", "backslashreplace").decode()
    print(f"refused {status.value} from {client[0]}: {shown}", file=sys.stderr, flush=True)


class _Timely(io.RawIOBase):
    """What a socket receives until a moment; TimeoutError after it, however slowly bytes drip."""

    def __init__(self, connection, end):
        self._connection, self._end = connection, end

    def readable(self):
        return True

    def readinto(self, buffer):
        self._connection.settimeout(max(self._end - time.monotonic(), 1e-3))
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "sedd_jax", ""

    def setup(self):
        super().setup()
        self.rfile = io.BufferedReader(
            _Timely(self.connection, time.monotonic() + self.server.limits.request)
        )

    def do_GET(self):
        self._answer(self._page)

    def do_POST(self):
        self._answer(self._draw)

    def _answer(self, action):
        try:
            self._check_origin()
            action()
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.reason)
        except TimeoutError:
            # an answer has begun: another would be taken for its end
            reason = "The client does not read."
            log_refusal(self.client_address, HTTPStatus.REQUEST_TIMEOUT, reason)

    def _check_origin(self):
        """Refuses what a page of another site asks, or one that calls this machine by its name."""
        host = self.headers.get("Host", "")
        if not _is_own(host, self.server.host):
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"The server does not go by the name {host[:80]!r}; use its address, or start it "
                "with --host=NAME.",
            )
        site = self.headers.get("Sec-Fetch-Site", "none")
        origin = self.headers.get("Origin")
        foreign = origin not in (None, f"http://{host}", f"https://{host}")
        if self.command == "POST" and (foreign or site not in ("same-origin", "none")):
            raise Refusal(HTTPStatus.FORBIDDEN, "A page of another site may not ask for this.")

    def _page(self):
        if self.path.partition("?")[0] != "/":
            raise Refusal(HTTPStatus.NOT_FOUND, f"There is nothing at {self.path[:80]!r}.")
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8", len(self.server.page))
        self.wfile.write(self.server.page)

    def _draw(self):
        if self.path != "/draw":
            raise Refusal(HTTPStatus.NOT_FOUND, f"There is nothing at {self.path[:80]!r}.")
        try:
            drawing = self.server.studio.drawing(self._body())
        except BadInput as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        wait = self.server.limits.wait
        if not self.server.drawings.acquire(timeout=wait):
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.server.limits.drawings} drawings go on already, and none has ended within "
                f"{wait:g} s; try again soon.",
            )
        try:
            self._stream(drawing)
        finally:
            self.server.drawings.release()

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The request must be JSON.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "The request must say its Content-Length.")
        if len(length) > 15 or int(length) > MOST_BYTES:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The request has {length[:20]} bytes, at most {MOST_BYTES} are read.",
            )
        try:
            body = self.rfile.read(int(length))
        except TimeoutError as error:
            seconds = self.server.limits.request
            reason = f"The request took more than {seconds:g} s."
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, reason) from error
        if len(body) < int(length):
            raise Refusal(HTTPStatus.BAD_REQUEST, "The request ended before its Content-Length.")
        return body

    def _stream(self, drawing: Drawing):
        """Sends the moments of a drawing for as long as someone looks on."""
        limits, began = self.server.limits, time.monotonic()
        self.connection.settimeout(limits.request)  # of every line: for those who do not read
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        for line in self._lines(drawing):
            if self.server.closing.is_set() or self._is_gone():
                return
            seconds = time.monotonic() - began
            if seconds > limits.drawing:
                reason = f"The drawing took more than {limits.drawing:g} s and was ended."
                log_refusal(self.client_address, HTTPStatus.SERVICE_UNAVAILABLE, reason)
                line = {"error": f"{reason} Ask for fewer steps or a shorter text."}
            elif "calls" in line:
                line |= {"seconds": round(seconds, 3)}
            self.wfile.write(json.dumps(line).encode() + b"\n")
            if "error" in line:
                return

    def _lines(self, drawing) -> Iterator[dict]:
        try:
            yield from drawing
        except Exception as error:  # the memory of the device may be full
            expected = isinstance(error, BadInput | FloatingPointError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            log_refusal(self.client_address, HTTPStatus.INTERNAL_SERVER_ERROR, reason)
            yield {"error": reason}

    def _is_gone(self):
        """Whether the client has hung up: it sends nothing more after its request."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _begin(self, status, content_type, length=None):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        # what a page may do is in the page; an answer that is none may do nothing
        ground = "" if content_type.startswith("text/html") else "default-src 'none'; "
        self.send_header("Content-Security-Policy", f"{ground}frame-ancestors 'none'")
        self.end_headers()

    def _refuse(self, status, reason):
        log_refusal(self.client_address, status, reason)
        body = json.dumps({"error": reason}).encode() + b"\n"
        self.connection.settimeout(self.server.limits.request)
        self._begin(status, "application/json", len(body))
        if self.command != "HEAD":
            self.wfile.write(body)
        self._drain()

    def _drain(self):
        """Takes in what is left of a request for a moment: else the client sees no answer."""
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            end = time.monotonic() + 1.0
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(MOST_BYTES):
                    return

    def send_error(self, code, message=None, explain=None):
        """What the base class refuses: a request that is no HTTP, or another method."""
        self.command = self.command or ""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_error(self, format, *args):
        """What the base class says of a head that did not arrive in time, which it cuts off."""
        log_refusal(self.client_address, HTTPStatus.REQUEST_TIMEOUT, "No whole head in time.")

    def log_message(self, format, *args):
        """Says nothing of what went well."""


def _is_own(host, bound):
    """Whether a Host header names this server: a name that others own could be made to lead here.

    Any port: it may be forwarded from another.
    """
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", bound.lower()):
        return True
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
