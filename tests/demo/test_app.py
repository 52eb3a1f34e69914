"""The demo's server: it draws, and it withstands hostile clients."""

import contextlib
import dataclasses
import functools
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from sedd_jax.demo.app import MAX_BYTES, Limits, Server
from sedd_jax.demo.request import RequestHandler
from sedd_jax.errors import BadInput
from sedd_jax.inference.build import build_family
from sedd_jax.inference.stream import generate_stream
from sedd_jax.inference.template import pad, row_from_template

REQUEST = {
    "template": "ab[MASK:5]<b>&",
    "sampler": "tweedie",
    "steps": 8,
    "samples": 2,
    "temperature": 1,
    "top_p": 1,
    "seed": 7,
}
JSON = {"Content-Type": "application/json"}


class Endless:
    """Has a page, and draws lines, of these sizes; its drawings never end."""

    def __init__(self, size=1, pause=0.01, page="the page"):
        self.size, self.pause, self.page = size, pause, lambda: page
        self.ended = threading.Event()

    def handle(self, body):
        try:
            while True:
                time.sleep(self.pause)
                yield {"calls": 1, "rows": "x" * self.size}
        finally:
            self.ended.set()


@pytest.fixture(scope="module")
def handler(tiny):
    return RequestHandler(tiny)


@pytest.fixture(scope="module")
def without_model():
    """A handler that refuses what is not a request."""
    handler = RequestHandler.__new__(RequestHandler)
    handler.choices, handler.page = {}, lambda: "the page"
    return handler


@pytest.fixture(scope="module")
def serve():
    """Starts servers, one for each handler and limits, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(handler, **limits):
            return stack.enter_context(Server(handler, "127.0.0.1", 0, Limits(**limits)))

        yield start


def ask(server, method="POST", path="/draw", body=None, headers=JSON):
    """The status, the headers and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def draw(server, **changes):
    """The status and the lines of a drawing."""
    status, _, text = ask(server, body=json.dumps(REQUEST | changes))
    return status, [json.loads(line) for line in text.splitlines()]


def begun(server):
    """A connection on which a drawing is asked for."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    body = json.dumps(REQUEST)
    client.sendall(
        b"POST /draw HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return client


def hung_up(server):
    """A connection on which a drawing has begun, to be closed."""
    client = begun(server)
    assert client.recv(12) == b"HTTP/1.1 200"
    return client


def test_a_drawing_is_what_is_generated_and_keeps_the_words(serve, handler, tiny):
    status, (note, begun, *moments) = draw(serve(handler))
    assert status == 200 and "note" in note
    held = [[1] * 2 + [0] * 5 + [1] * 4] * 2
    assert begun == {"held": held, "masks": True, "absorbs": True}
    assert [moment["calls"] for moment in moments] == list(range(10))
    assert {moment["most"] for moment in moments} == {9} and moments[-1]["evaluations"] == [9, 9]
    for moment in moments:
        for row in moment["rows"]:
            assert [*row[:2], *row[7:]] == [*"ab<b>&"]
    prompt = pad([row_from_template(REQUEST["template"], tiny.tokenizer, None, 32)] * 2, 16)
    *_, last = generate_stream(jax.random.key(7), tiny, prompt, steps=8)  # compiled already
    assert moments[-1]["rows"] == [tiny.tokenizer.pieces(row[:11]) for row in last.tokens]


def test_a_model_that_cannot_fill_holes_is_refused(tiny):
    config = dataclasses.replace(tiny.config, family="autoregressive")
    family = build_family(config, 257)
    with pytest.raises(BadInput, match="autoregressive: .* cannot fill holes; give the checkpoint"):
        RequestHandler(dataclasses.replace(tiny, family=family, config=config))


def test_tempering_is_offered_where_it_differs(tiny, handler):
    config = dataclasses.replace(tiny.config, graph="uniform")
    uniform = dataclasses.replace(tiny, family=build_family(config, 257), config=config)
    assert RequestHandler(uniform).choices["tempering"] == (("token", "conditional"), "token")
    assert "tempering" not in handler.choices


@pytest.mark.parametrize("sampler", ["first_hitting", "entropy_bounded"])
def test_some_samplers_take_at_most_as_many_calls_as_the_holes_need(serve, handler, sampler):
    _, (*_, last) = draw(serve(handler), sampler=sampler, samples=1)
    assert last["evaluations"] == [last["most"]] and last["calls"] == last["most"] <= 5
    assert None not in last["rows"][0]


def test_the_page_is_served_to_the_same_machine(serve):
    server = serve(Endless(page="<p>the page"))
    for headers in ({}, {"Host": "localhost:99"}, {"Host": "[::1]:8080"}):
        status, headers, text = ask(server, "GET", "/", headers=headers)
        assert (status, text) == (200, "<p>the page")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "reason"),
    [
        ("GET", "/etc/passwd", {}, None, 404, "There is nothing at '/etc/passwd'"),
        ("GET", "/../demo.py", {}, None, 404, "nothing at"),
        ("POST", "/", {}, "{}", 405, "Method Not Allowed"),
        ("PUT", "/draw", {}, "{}", 405, "Method Not Allowed"),
        ("GET", "/", {"Host": "evil.example"}, None, 421, "not go by the name 'evil.example'"),
        ("GET", "/", {"Host": "[::1"}, None, 421, "not go by the name"),
        ("POST", "/draw", {"Origin": "http://evil.example"}, "{}", 403, "page of another site"),
        ("POST", "/draw", {"Origin": "null"}, "{}", 403, "page of another site"),
        ("POST", "/draw", {"Origin": "http://["}, "{}", 403, "page of another site"),
        ("POST", "/draw", {"Origin": "http://127.0.0.1]"}, "{}", 403, "page of another site"),
        ("POST", "/draw", {"Sec-Fetch-Site": "cross-site"}, "{}", 403, "page of another site"),
        ("POST", "/draw", {"Content-Type": "text/plain"}, "{}", 415, "must be JSON"),
        ("POST", "/draw", {"Content-Length": "-1"}, None, 400, "not valid HTTP"),
        ("POST", "/draw", {"Content-Length": "9" * 5000}, None, 400, "not valid HTTP"),
        ("POST", "/draw", {"Transfer-Encoding": "chunked"}, "{}", 411, "Content-Length"),
        ("POST", "/draw", {"Content-Length": "9" * 20}, None, 413, "at most 65536 are read"),
        ("POST", "/draw", {}, "{", 400, "is not JSON"),
        ("POST", "/draw", {}, b"\xff\xfe", 400, "is not JSON"),
        ("POST", "/draw", {}, "[" * 60000, 400, "is not JSON"),
        ("POST", "/draw", {}, "9" * 6000, 400, "is not JSON"),
        ("POST", "/draw", {}, "[]", 400, "must be an object with"),
    ],
)
def test_bad_requests_are_refused_with_a_sentence(
    serve, without_model, method, path, headers, body, status, reason, capsys
):
    server = serve(without_model)
    found, answer, text = ask(server, method, path, body, JSON | headers)
    assert found == status and reason in json.loads(text)["error"]
    assert "default-src 'none'" in answer["Content-Security-Policy"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"refused {status} from 127.0.0.1: ") and len(line) < 500


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"template": "[MASK:1]" * 8000}, "too many for a row of at most 32 tokens"),
        ({"template": "[MASK:100000]"}, "more than 32 positions"),
        ({"template": "<script>alert(1)</script>"}, "no hole to fill"),
        ({"template": "\ud800[MASK:1]"}, "half a surrogate pair"),
        ({"template": 5}, "template must be text"),
        ({"steps": 10**9}, "steps must be one of 8, 16"),
        ({"steps": True}, "steps must be one of"),
        ({"samples": 3}, "samples must be one of 1, 2, 4"),
        ({"samples": []}, "samples must be one of"),
        ({"sampler": "__init__"}, "sampler must be one of"),
        ({"temperature": float("nan")}, "temperature must be one of"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"extra": 1}, "must be an object with"),
    ],
)
def test_requests_out_of_range_are_refused_before_drawing(serve, handler, changes, reason):
    began = time.monotonic()
    status, (line,) = draw(serve(handler), **changes)
    assert status == 400 and reason in line["error"]
    assert time.monotonic() - began < 2


def test_a_body_of_10_mb_is_not_read(serve, handler, capsys):
    server = serve(handler)
    # the answer is there before any of the body is
    status, _, text = ask(server, headers=JSON | {"Content-Length": "10000000"})
    assert status == 413 and "10000000 bytes, at most 65536" in text
    assert draw(server, template="[MASK:1]" * 100_000)[0] == 413
    assert capsys.readouterr().err.count("refused 413") == 2
    assert draw(server)[0] == 200


def test_what_was_written_enters_no_answer_as_markup(serve, handler):
    text = "</b>[MASK:1]\u202e\u2028"
    _, _, raw = ask(serve(handler), body=json.dumps(REQUEST | {"template": text}))
    assert raw.isascii() and "\u202e" in "".join(json.loads(raw.splitlines()[-1])["rows"][0][5:])
    renamed = dataclasses.replace(handler._checkpoint, name="<img src=x>")
    page = RequestHandler(renamed).page()
    assert "&lt;img src=x&gt; sees" in page and "<img" not in page
    assert page.count("<script") == 1 and "src=" not in page.replace("&lt;img src=", "")


def test_50_at_once_are_all_answered(serve, handler):
    server = serve(handler, drawings=2, wait=0.2)
    draw(server)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda seed: draw(server, seed=seed), range(50)))
    drawn = [lines for status, lines in answers if status == 200]
    assert {status for status, _ in answers} <= {200, 503}
    assert drawn and all(None not in lines[-1]["rows"][0] for lines in drawn)
    assert all("try again soon" in lines[0]["error"] for status, lines in answers if status == 503)
    assert draw(server)[0] == 200


def test_more_connections_than_there_may_be_are_turned_away(serve, capsys):
    server = serve(Endless(), connections=2)
    clients = [hung_up(server)]
    clients.append(socket.create_connection(("127.0.0.1", server.port)))
    time.sleep(0.1)
    status, _, text = ask(server, "GET", "/")
    assert status == 503 and "2 connections are open" in text
    for client in clients:
        client.close()
    time.sleep(0.2)
    assert ask(server, "GET", "/")[0] == 200
    assert "refused 503 from 127.0.0.1: 2 connections" in capsys.readouterr().err


def test_who_hangs_up_frees_the_place_at_once(serve):
    endless = Endless()
    server = serve(endless, drawings=1, wait=1)
    for _ in range(3):
        endless.ended.clear()
        hung_up(server).close()
        assert endless.ended.wait(1)


def test_who_hangs_up_before_the_first_line_frees_the_place(serve):
    endless = Endless(pause=0.3)
    server = serve(endless, drawings=1, wait=1)
    for _ in range(3):
        client = begun(server)
        time.sleep(0.1)
        client.close()
    hung_up(server).close()


def test_who_does_not_read_the_page_is_cut_off(serve, capsys):
    server = serve(Endless(page="x" * 10**7), request=0.5)
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(1)
    with client, client.makefile("rb") as answer:
        assert len(answer.read()) < 10**7
    assert capsys.readouterr().err == "refused 408 from 127.0.0.1: The client does not read.\n"


def test_who_does_not_read_loses_the_place(serve, capsys):
    endless = Endless(size=10**6, pause=0)
    client = hung_up(serve(endless, request=0.5))
    assert endless.ended.wait(5)
    with client, client.makefile("rb") as answer:
        assert b"HTTP/1.1" not in answer.read()  # the one head was read before
    assert capsys.readouterr().err == "refused 408 from 127.0.0.1: The client does not read.\n"


class Failing:
    """A handler that meets what nobody expects, before a drawing or in it."""

    def __init__(self, early):
        self.early, self.page = early, lambda: "the page"

    def handle(self, body):
        if self.early:
            raise ArithmeticError("too\nearly")
        return self.lines()

    def lines(self):
        yield {"note": "begun"}
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_what_nobody_expects_is_one_line(serve, capsys):
    _, _, text = ask(serve(Failing(early=False)), body="{}")
    reason = "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert json.loads(text.splitlines()[-1]) == {"error": reason}
    assert capsys.readouterr().err == f"refused 500 from 127.0.0.1: {reason}\n"
    status, _, text = ask(serve(Failing(early=True)), body="{}")
    assert (status, json.loads(text)) == (500, {"error": "ArithmeticError: too\nearly"})
    assert capsys.readouterr().err == "refused 500 from 127.0.0.1: ArithmeticError: too early\n"


def test_a_thread_that_cannot_start_takes_no_place(serve, capsys, monkeypatch):
    server = serve(Endless(), connections=1, drawings=1, wait=1)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    assert ask(server, "GET", "/")[0] == 200
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", refuse)
        status, _, text = ask(server, body="{}")
    assert status == 500 and "can't start new thread" in text
    assert "RuntimeError: can't start new thread" in capsys.readouterr().err
    hung_up(server).close()


def test_who_drips_a_request_is_cut_off_while_others_are_served(serve, capsys):
    server = serve(Endless(), request=0.6)
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(b"POST /draw HTTP/1.0\r\nHost: localhost\r\nX: ")
    for _ in range(4):
        client.sendall(b"x")
        assert ask(server, "GET", "/")[0] == 200
        time.sleep(0.05)
    began = time.monotonic()
    assert not client.recv(4096)
    assert time.monotonic() - began < 2
    client.close()
    assert "refused 408 from 127.0.0.1: No whole head" in capsys.readouterr().err
    body = b"POST /draw HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(body + b"Content-Length: 100\r\n\r\n{")
        assert client.recv(12) == b"HTTP/1.1 408"
    assert "refused 408 from 127.0.0.1: The request took more than 0.6 s" in capsys.readouterr().err


def test_a_drawing_ends_at_its_deadline(serve, capsys):
    status, _, text = ask(serve(Endless(), drawing=0.3), body="{}")
    assert status == 200
    assert "took more than 0.3 s and was ended" in json.loads(text.splitlines()[-1])["error"]
    assert "The drawing took more than 0.3 s" in capsys.readouterr().err


def test_weights_of_no_use_are_said_so(serve, handler, capsys):
    broken = dataclasses.replace(
        handler._checkpoint,
        params=jax.tree.map(lambda x: x * float("nan"), handler._checkpoint.params),
    )
    _, lines = draw(serve(RequestHandler(broken)))
    assert "not finite" in lines[-1]["error"]
    assert "refused 500" in capsys.readouterr().err


def test_closing_ends_drawings():
    endless = Endless()
    with Server(endless, "127.0.0.1", 0, Limits()) as server:
        client = hung_up(server)
    assert endless.ended.is_set()
    client.close()


def test_the_most_that_is_read_is_read(serve, handler):
    body = json.dumps(REQUEST | {"template": ""})
    body = body.replace('""', '"' + "x" * (MAX_BYTES - len(body)) + '"')
    assert len(body) == MAX_BYTES
    assert ask(serve(handler), body=body)[0] == 400
    assert ask(serve(handler), body=body + " ")[0] == 413
