"""The demo's server: a page, and drawings as streams of JSON lines.

It is made for one person at their own machine and withstands others: what a request may cost is
bounded before it is read or computed.
"""

import asyncio
import contextlib
import functools
import ipaddress
import json
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sedd_jax.demo.request import RequestHandler
from sedd_jax.errors import BadInput

MAX_BYTES = 2**16  # of the head of a request, and of its body
_GRACE = 10  # seconds in which drawings end when the server does
_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",  # the limits of a connection are those of its one request
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# what the page may do is in the page
_PAGE_HEADERS = _HEADERS | {"Content-Security-Policy": "frame-ancestors 'none'"}


class Limits(NamedTuple):
    """What the server allows.

    Attributes:
      drawings: at a time; others wait.
      connections: open at a time; others are turned away.
      wait: seconds that a drawing waits for its turn.
      request: seconds in which the head and the body of a request must each arrive, and in which
        the client must read what is sent.
      drawing: seconds that a drawing may take, compilation included.
    """

    drawings: int = 2
    connections: int = 64
    wait: float = 10.0
    request: float = 10.0
    drawing: float = 120.0


class Server:
    """Listens at once, and answers while used as a context manager; its end ends all drawings."""

    def __init__(self, handler: RequestHandler, host: str, port: int, limits: Limits):
        """Listens on an address; OSError where that cannot be.

        Args:
          handler: makes the page, and draws what requests ask for.
          host: address or name to listen on, and to be called by.
          port: 0 for any free one.
          limits: what the server allows.
        """
        self.limits, self._handler, self._page = limits, handler, handler.page()
        self._places, self._closing = asyncio.Semaphore(limits.drawings), False
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        dual = kind == socket.AF_INET6 and socket.has_dualstack_ipv6()
        self._socket = socket.create_server((host, port), family=kind, dualstack_ipv6=dual)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        self._names = ("localhost", host.lower())
        self._routes = Starlette(
            routes=[Route("/", self._show), Route("/draw", self._draw, methods=["POST"])],
            exception_handlers={BadInput: _refuse, HTTPException: _refuse, Exception: _refuse},
        )
        self._routes.router.redirect_slashes = False
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",  # uvicorn takes a bound method for ASGI 2
            http=functools.partial(_Protocol, limits),
            h11_max_incomplete_event_size=MAX_BYTES,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # refusals are logged here
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        self._uvicorn = uvicorn.Server(config)
        # a daemon: a program on the device that does not end in time does not keep the process
        run = functools.partial(self._uvicorn.run, [self._socket])
        self._thread = threading.Thread(target=run, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = self._uvicorn.should_exit = True
        self._thread.join(_GRACE + 2)

    async def _answer(self, scope, receive, send):
        await (self._refusal(scope) or self._routes)(scope, receive, send)

    def _refusal(self, scope):
        """Refuses what exceeds the server, and what another site may be asking.

        A name that others own could be made to point here, so a request must call the server by its
        own name, by `localhost` or by an address; at any port, which may be forwarded.
        """
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        limit = self.limits.connections
        if len(self._uvicorn.server_state.connections) > limit:
            return _Refusal(503, f"{limit} connections are open, the most; try again soon.")
        if not _is_named(host, self._names):
            return _Refusal(
                421,
                f"The server does not go by the name {host[:80]!r}; use its address, or start it "
                "with --host=NAME.",
            )
        site = headers.get("sec-fetch-site", "none")
        foreign = origin not in (None, f"http://{host}", f"https://{host}")
        if scope["method"] == "POST" and (foreign or site not in ("same-origin", "none")):
            return _Refusal(403, "A page of another site may not ask for this.")
        return None

    async def _show(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def _draw(self, request: Request) -> Response:
        lines = await run_in_threadpool(self._handler.handle, await self._body(request))
        try:
            async with asyncio.timeout(self.limits.wait):
                await self._places.acquire()
        except TimeoutError as error:
            raise HTTPException(
                503,
                f"{self.limits.drawings} drawings are running, and none ended within "
                f"{self.limits.wait:g} s; try again soon.",
            ) from error
        return _Drawing(self._encode(lines, request.client), self._places.release)

    async def _body(self, request):
        headers, seconds = request.headers, self.limits.request
        length = headers.get("content-length")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "The request must be JSON.")
        if length is None or "transfer-encoding" in headers:
            raise HTTPException(411, "The request must say its Content-Length.")
        if int(length) > MAX_BYTES:
            raise HTTPException(
                413, f"The request has {length} bytes, at most {MAX_BYTES} are read."
            )
        try:
            async with asyncio.timeout(seconds):
                return await request.body()
        except TimeoutError as error:
            raise HTTPException(408, f"The request took more than {seconds:g} s.") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The request ended before its Content-Length.") from error

    def _encode(self, lines, client):
        """Yields the lines of a drawing until it ends, fails or takes too long."""
        began = time.monotonic()
        try:
            for line in lines:
                seconds = time.monotonic() - began
                if self._closing:
                    return
                if seconds > self.limits.drawing:
                    reason = f"The drawing took more than {self.limits.drawing:g} s and was ended."
                    _log(client, 503, reason)
                    yield _json({"error": f"{reason} Ask for fewer steps or a shorter text."})
                    return
                yield _json(line | {"seconds": round(seconds, 3)} if "calls" in line else line)
        except Exception as error:  # the memory of the device may be full
            reason = _reason(error)
            _log(client, 500, reason)
            yield _json({"error": reason})


def _is_named(host, names):
    """Whether a Host header has one of the names or any address."""
    with contextlib.suppress(ValueError):
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ipaddress.ip_address(name))
    return False


class _Drawing(StreamingResponse):
    """A stream of lines in a place, which is released however the stream ends.

    The `finally` of a generator would not do: it does not run if the client leaves before the first
    line is asked for.
    """

    def __init__(self, lines: Iterator[bytes], release: Callable[[], None]):
        super().__init__(lines, headers=_HEADERS, media_type="application/x-ndjson")
        self._lines, self._release = lines, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()
            self._lines.close()


class _Refusal(Response):
    """A sentence about a request, to the client and to stderr."""

    def __init__(self, status: int, reason: str):
        super().__init__(_json({"error": reason}), status, _HEADERS, "application/json")
        self.reason = reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _log(scope["client"], self.status_code, self.reason)
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start"} | head)
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # a socket that is closed with bytes unread is reset, and the client loses the answer
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        absent = f"There is nothing at {request.scope['path'][:80]!r}."
        return _Refusal(error.status_code, absent if error.status_code == 404 else error.detail)
    return _Refusal(400 if isinstance(error, BadInput) else 500, _reason(error))


def _reason(error):
    expected = isinstance(error, BadInput | FloatingPointError)
    return str(error) if expected else f"{type(error).__name__}: {error}"


def _json(value):
    return json.dumps(value).encode() + b"\n"


def _log(client, status, reason):
    """Says on stderr, in one line of printable characters, who was refused and why."""
    shown = "".join(sign if sign.isprintable() else " " for sign in reason)[:400]
    shown = shown.encode("ascii", "backslashreplace").decode()
    print(f"refused {status} from {client[0]}: {shown}", file=sys.stderr, flush=True)


class _Protocol(H11Protocol):
    """HTTP/1.1 with deadlines that uvicorn lacks: for a head to arrive, and to read an answer."""

    def __init__(self, limits: Limits, **options: Any):
        super().__init__(**options)
        self._limits = limits

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # `pause_writing` is called once the client lags
        full = len(self.connections) > self._limits.connections
        self._timer = self.loop.call_later(0.1 if full else self._limits.request, self._check_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._timer.cancel()
        reason = "The client does not read."
        self._timer = self.loop.call_later(self._limits.request, self._abort, reason)

    def resume_writing(self) -> None:
        self._timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        refusal = _Refusal(400, "The request is not valid HTTP.")
        _log(self.client, 400, refusal.reason)
        head = h11.Response(status_code=400, headers=refusal.raw_headers)
        with contextlib.suppress(h11.LocalProtocolError):  # another answer has begun
            for event in (head, h11.Data(data=refusal.body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _check_head(self):
        if self.cycle is None:
            self._abort("No whole head in time.")

    def _abort(self, reason):
        _log(self.client, 408, reason)
        self.transport.abort()
