"""An HTTP proxy that counts the requests to an emulator of buckets and does harm to some of them.

proxy.inject(refuse(503), methods="PUT POST", path="checkpoints", times=3)
"""

import asyncio
import json
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import unquote

HOST = "127.0.0.1"
WRITES = "PUT POST DELETE PATCH"
ALL = f"GET HEAD {WRITES}"
_PART = 2**18  # bytes that are passed on at once


class _Fault:
    """An action on the requests of some methods whose path a pattern finds."""

    def __init__(self, action, methods, path, skip, times, every):
        self.action, self.met = action, 0
        self._turns = range(skip + 1, skip + times + 1, every)
        self._methods, self._path = methods.split(), re.compile(path)

    def meets(self, method, path):
        """Whether it is this request's turn."""
        if method not in self._methods or not self._path.search(path):
            return False
        self.met += 1
        return self.met in self._turns


class Proxy:
    """Passes requests on to the server of a port; its thread ends with the process.

    Attributes:
      url: its own address.
      requests: all that have come, each an `Exchange`.
    """

    def __init__(self, port):
        self.requests, self._faults, self._port = [], [], port
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        starting = asyncio.start_server(self._serve, HOST, 0, limit=2**20)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.url = "http://{}:{}".format(*server.sockets[0].getsockname())

    def inject(self, action, methods=ALL, path="", skip=0, times=10**9, every=1):
        """Does `action` to requests from now on, after `skip` of them, to every n-th of `times`.

        Of several faults the first one injected counts. Returns the fault: `met` requests so far.
        """
        fault = _Fault(action, methods, path, skip, times, every)
        self._faults.append(fault)
        return fault

    def heal(self):
        """Ends all faults."""
        self._faults.clear()

    def count(self, methods=ALL, path=""):
        """How many requests of these methods have passed whose path the pattern finds."""
        passed = [r for r in self.requests if r.method in methods.split()]
        return sum(re.search(path, r.path) is not None for r in passed)

    async def _serve(self, reader, writer):
        client, server = _Connection(reader, writer), None
        try:
            while head := await client.head():
                if server is None or server.reader.at_eof():
                    server = _Connection(
                        *await asyncio.open_connection(HOST, self._port, limit=2**20)
                    )
                # the links in its answers lead back here
                rename = (f"http://{HOST}:{self._port}", self.url)
                exchange = Exchange(client, server, head, rename)
                self.requests.append(exchange)
                faults = [f for f in tuple(self._faults) if f.meets(exchange.method, exchange.path)]
                await (faults[0].action(exchange) if faults else exchange.forward())
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # one of the two is gone
        finally:
            for connection in filter(None, (client, server)):
                connection.writer.close()


class _Connection(NamedTuple):
    """One side of the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self):
        """The first line and the headers of a message, or None at the end of the connection."""
        try:
            raw = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        return raw[:-4].decode("latin-1").split("\r\n")

    async def body(self, head, until_closed=False, raw=True):
        """Yields the parts of a message's body, as they are on the wire if it is `raw`."""
        if "chunked" in _header(head, "transfer-encoding"):
            size = None
            while size != 0:
                line = await self.reader.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                part = await self.reader.readexactly(size + 2) if size else b""
                yield line + part if raw else part[:-2]
            while line != b"\r\n":
                line = await self.reader.readuntil(b"\r\n")
                yield line if raw else b""
        elif length := _header(head, "content-length"):
            left = int(length)
            while left:
                part = await self.reader.read(min(left, _PART))
                if not part:
                    raise ConnectionResetError
                left -= len(part)
                yield part
        elif until_closed:
            while part := await self.reader.read(_PART):
                yield part

    async def send(self, head, parts):
        """Sends a message."""
        self.writer.write("\r\n".join([*head, "", ""]).encode("latin-1"))
        async for part in parts:
            self.writer.write(part)
            await self.writer.drain()
        await self.writer.drain()

    def reset(self):
        """Ends it as a machine on the way does that has forgotten it."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
        raise ConnectionResetError


class Exchange:
    """A request and its answer; what actions act on.

    Attributes:
      method: GET, ...
      path: with the query, decoded.
      status: of the answer as the client got it, 0 if it got none.
      sent: bytes of the request's body that came from the client.
      received: bytes of the answer's body that went to the client.
    """

    def __init__(self, client, server, head, rename):
        self._client, self._server, self._head, self._rename = client, server, head, rename
        self.method, target, _ = head[0].split(" ")
        self.path = unquote(target)
        self.status = self.sent = self.received = 0

    async def upload(self):
        """Yields the parts of the request's body."""
        if _header(self._head, "expect"):
            self._client.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for part in self._client.body(self._head):
            self.sent += len(part)
            yield part

    async def _reply(self, status, head, parts):
        self.status = status  # before the client can know: it may look at once

        async def counted():
            async for part in parts:
                self.received += len(part)
                yield part

        await self._client.send(head, counted())

    async def forward(self, upload=1.0, answer=1.0, edit=None):
        """Passes the request on, and the answer back.

        Args:
          upload: the share of the request's body that reaches the server before the connections
            to both sides are reset.
          answer: the share of the answer that reaches the client before that; with 0 it sees a
            reset connection, though all was done.
          edit: makes another body of the answer's.
        """
        head = [line for line in self._head if not line.lower().startswith("expect:")]
        if edit:
            head = [line for line in head if not line.lower().startswith("accept-encoding:")]
        if upload < 1:
            content = await _joined(self.upload())
            await self._server.send(head, _one(content[: int(upload * len(content))]))
            self._server.writer.close()
            self._client.reset()
        await self._server.send(head, self.upload())
        head = await self._server.head()
        if head is None:
            raise ConnectionResetError
        status = int(head[0].split(" ")[1])
        head = [line.replace(*self._rename) for line in head]
        empty = self.method == "HEAD" or status in (204, 304)
        parts = _one(b"") if empty else self._server.body(head, True, raw=not edit)
        if edit:
            content = edit(await _joined(parts)).encode()
            dropped = ("content-length:", "transfer-encoding:")
            head = [line for line in head if not line.lower().startswith(dropped)]
            head, parts = [*head, f"Content-Length: {len(content)}"], _one(content)
        if answer < 1:
            content = await _joined(parts)
            if answer:
                await self._reply(0, head, _one(content[: int(answer * len(content))]))
            self._client.reset()
        await self._reply(status, head, parts)
        if "close" in _header(head, "connection") or head[0].startswith("HTTP/1.0"):
            raise ConnectionResetError

    async def answer(self, status, reason, message):
        """Answers in the server's place, as Google Cloud Storage or S3 would say it."""
        await _joined(self.upload())
        if "/b/" in self.path or "/b?" in self.path:
            errors = [{"reason": reason, "message": message}]
            content = json.dumps({"error": {"code": status, "message": message, "errors": errors}})
        else:
            content = f"<Error><Code>{reason}</Code><Message>{message}</Message></Error>"
        content = b"" if self.method == "HEAD" else content.encode()
        head = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(content)}"]
        await self._reply(status, head, _one(content))

    def reset(self):
        """Resets the client's connection; the server hears of nothing."""
        self._client.reset()


Action = Callable[[Exchange], Awaitable[None]]
_SAYS = {
    401: ("UNAUTHENTICATED", "Invalid Credentials"),
    403: ("AccessDenied", "The account has no permission to do this."),
    404: ("NoSuchBucket", "The specified bucket does not exist."),
    429: ("SlowDown", "The object exceeded the rate limit. Reduce your request rate."),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("ServiceUnavailable", "We are unable to serve the request. Please try again."),
}


def refuse(status: int) -> Action:
    """Answers with an error; 401: expired credentials, 403: no right, 404: no such bucket."""
    return lambda exchange: exchange.answer(status, *_SAYS[status])


def delay(seconds: float) -> Action:
    """Passes on after some time."""

    async def action(exchange):
        await asyncio.sleep(seconds)
        await exchange.forward()

    return action


async def reset(exchange: Exchange) -> None:
    """Resets the connection before the server hears of the request."""
    exchange.reset()


async def cut_upload(exchange: Exchange) -> None:
    """Lets half of the request's body reach the server."""
    await exchange.forward(upload=0.5)


async def cut_answer(exchange: Exchange) -> None:
    """Lets half of the answer's body reach the client."""
    await exchange.forward(answer=0.5)


async def lose_answer(exchange: Exchange) -> None:
    """Has the server do it, and tells the client nothing."""
    await exchange.forward(answer=0)


def hide(key: str, seconds: float) -> Action:
    """Hides objects whose key a pattern finds from listings until some time after their writing.

    Prefixes (folders) stay. Stores of old were so; those of today list at once what is written.
    """

    def late(name, written):
        return re.search(key, name) and datetime.now(UTC) - _time(written) < timedelta(0, seconds)

    def edit(content):
        text = content.decode()
        if text.startswith("{"):
            page = json.loads(text)
            items = page.get("items") or []
            page["items"] = [x for x in items if not late(x["name"], x["updated"])]
            return json.dumps(page)
        entry = r"<Contents>.*?<Key>(.*?)</Key>.*?<LastModified>(.*?)</LastModified>.*?</Contents>"
        return re.sub(entry, lambda m: "" if late(m[1], m[2]) else m[0], text, flags=re.DOTALL)

    async def action(exchange):
        listing = re.search(r"/o(\?|$)|list-type=2|[?&]prefix=", exchange.path)
        listing = listing and exchange.method == "GET"
        await exchange.forward(edit=edit if listing else None)

    return action


def _time(written):
    return datetime.fromisoformat(written)


def _header(head, name):
    lines = (line.partition(":") for line in head[1:])
    return next((value.strip() for key, _, value in lines if key.lower() == name), "")


async def _joined(parts):
    return b"".join([part async for part in parts])


async def _one(content):
    yield content
