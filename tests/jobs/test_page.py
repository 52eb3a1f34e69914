"""The page that plays a drawing stands alone, and holds no markup but its own."""

import base64
import hashlib
import html
import json
import re

import jax
import numpy as np
import pytest

from sedd_jax.display.page import data
from sedd_jax.errors import BadInput
from sedd_jax.inference.stream import generate_stream
from sedd_jax.inference.template import fill, pad
from sedd_jax.jobs.page import write_page

pytestmark = pytest.mark.usefixtures("quick_compilation")
NASTY = "</script><!--"


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """The page of two rows of different lengths, and the tokens that were drawn."""
    checkpoint, path = tiny, tmp_path_factory.mktemp("page") / "page.html"
    rows = [fill(f"{NASTY}[MASK:2]", checkpoint.tokenizer, None, 32)]
    rows.append(fill("a[MASK:3]", checkpoint.tokenizer, None, 32))
    prompt = pad(rows, 16)
    moments = generate_stream(jax.random.key(0), checkpoint, prompt, steps=4)
    last = write_page(path, checkpoint, prompt, moments, {"model": NASTY}, most=3)
    return path, last.tokens


def test_the_page_holds_the_moments(written):
    path, tokens = written
    (found,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text()
    )
    assert not set("<>&") & set(found)
    shown = json.loads(found)
    assert shown["held"] == [[1] * len(NASTY) + [0] * 2, [1, 0, 0, 0]]
    assert (shown["masks"], shown["most"]) == (True, 5)
    assert [frame["calls"] for frame in shown["frames"]] == [0, 2, 5]
    assert shown["frames"][0]["rows"][1] == ["a", None, None, None]
    assert "".join(shown["frames"][-1]["rows"][0]).startswith(NASTY)
    likeliest, drawn = shown["frames"][0]["guesses"][1][2]
    name, share = likeliest[drawn] if isinstance(drawn, int) else drawn
    assert len(likeliest) == 5 and 0 < share < 1
    assert name == bytes([tokens[1, 2]]).decode(errors="replace") or tokens[1, 2] == 256
    np.testing.assert_array_equal(tokens[1, 4:], 0)


def test_the_page_needs_nothing_and_runs_its_own_program_alone(written):
    text = written[0].read_text()
    assert html.escape(NASTY) in text and text.count("<!--") == 0
    assert "http:" not in text and "https:" not in text and not re.search(r"<(link|img)|src=", text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for kind, content in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy


def test_a_page_is_written_over_nothing(written, tiny, tmp_path):
    checkpoint, never = tiny, iter(lambda: 1 / 0, 0)
    before = written[0].read_bytes()
    with pytest.raises(BadInput, match="exists already; give --html another name"):
        write_page(written[0], checkpoint, None, never, {})
    assert written[0].read_bytes() == before
    with pytest.raises(BadInput, match="does not exist; make it first"):
        write_page(tmp_path / "no" / "page.html", checkpoint, None, never, {})


def test_data_of_a_page_is_json_without_markup():
    value = ["</script>", "\u2028\u2029", "&amp;", "\ud800", "é"]
    text = data("x", value)
    inside = text.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert inside.isascii() and not set("<>&") & set(inside)
    assert json.loads(inside) == value
