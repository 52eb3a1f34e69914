"""The pages in a real browser: headless Chromium, where there is one."""

import time

import jax
import pytest

from sedd_jax.demo.app import Limits, Server
from sedd_jax.demo.request import RequestHandler
from sedd_jax.inference.stream import generate_stream
from sedd_jax.inference.template import pad, row_from_template
from sedd_jax.jobs.page import write_page

pytestmark = [pytest.mark.slow, pytest.mark.unsteady]
TEXTS = "[...document.querySelectorAll('.text')].map(row => row.textContent)"
HOLES = "document.querySelectorAll('.text .hole').length"
RESULT = "document.getElementById('result').textContent"


@pytest.fixture(scope="module")
def url(tiny):
    """Of a demo that is served."""
    with Server(RequestHandler(tiny), "127.0.0.1", 0, Limits()) as server:
        yield server.url


def replace_template(browser, text):
    browser.click("#template")
    browser.ask("document.getElementById('template').select()")
    browser.type(text)


@pytest.mark.parametrize("width", [1280, 420])
def test_type_click_and_text_appears(browser, url, width):
    browser.open(url, width)
    replace_template(browser, "<b>one</b> ")
    browser.click("#insert")  # a hole of 12
    browser.type(" two")
    browser.click("#fill")
    browser.wait(f"{RESULT}.startsWith('Done: 65 network evaluations')")
    assert browser.ask("document.getElementById('template').value") == "<b>one</b> [MASK:12] two"
    texts = browser.ask(TEXTS)
    assert len(texts) == 2 and browser.ask(HOLES) == 0
    for text in texts:
        assert text.startswith("<b>one</b> ") and text.endswith(" two")
    assert browser.ask("document.querySelectorAll('b').length") == 0
    # back to the start: the words stand as they were, the holes are open
    browser.click("button[aria-label='Step back']")
    browser.ask("(it => { it.value = 0; it.dispatchEvent(new Event('input')) })"
                "(document.querySelector('input[type=range]'))")  # fmt: skip
    assert browser.ask(TEXTS) == ["<b>one</b>  two"] * 2 and browser.ask(HOLES) == 24
    assert browser.ask("document.documentElement.scrollWidth") <= width


def test_what_cannot_be_drawn_is_said_on_the_page(browser, url):
    browser.open(url)
    replace_template(browser, "<img src=x onerror=alert(1)>")
    browser.click("#fill")
    browser.wait(f"{RESULT}.includes('no hole to fill')")
    assert browser.ask("document.querySelectorAll('img').length") == 0
    browser.faults.clear()  # the browser reports the status 400


def test_stop_ends_a_drawing(browser, url):
    browser.open(url)
    browser.ask("document.getElementById('steps').value = '256'")
    browser.ask("document.getElementById('fill').click(); document.getElementById('stop').click()")
    browser.wait(f"{RESULT}.startsWith('Stopped.')")
    assert browser.ask("document.getElementById('fill').disabled") is False


def test_a_drawing_leaves_nothing_of_the_one_before(browser, url):
    browser.open(url)
    browser.ask("document.getElementById('steps').value = '8'")
    # how often the card is put away by one turn of the wheel: once, by the one player there is
    browser.ask("""
        window.count = 0;
        window.players = [];
        const { point, show } = Player.prototype;
        Player.prototype.point = function (token) {
          window.count += 1;
          return point.call(this, token);
        };
        Player.prototype.show = function (index) {
          if (!players.includes(this)) players.push(this);
          return show.call(this, index);
        };
    """)
    for drawn in (1, 2, 3):
        browser.click("#fill")
        browser.wait(f"players.length === {drawn} && {RESULT}.startsWith('Done')")
        browser.ask("window.count = 0; window.dispatchEvent(new Event('scroll'))")
        assert browser.ask("window.count") == 1
        token = "document.querySelector('.text .token')"
        moved = "new MouseEvent('mouseover', {bubbles: true})"
        browser.ask(f"window.count = 0; {token}.dispatchEvent({moved})")
        assert browser.ask("window.count") == 1
        browser.click("button[aria-label='Play or pause']")
        assert browser.ask("players.filter(player => player.timer).length") == 1


def test_what_changes_at_every_moment_is_not_read_aloud(browser, url):
    browser.open(url)
    browser.ask("window.said = []; new MutationObserver(() => said.push("
                "document.querySelector('[role=status]').textContent)).observe("
                "document.querySelector('[role=status]'), {childList: true})")  # fmt: skip
    browser.click("#fill")
    browser.wait(f"{RESULT}.startsWith('Done')")
    said = browser.ask("said")
    assert len(said) <= 4 and said[-1].startswith("Done: 65 network evaluations")
    assert browser.ask("document.querySelector('output').ariaLive") == "off"


def test_nothing_plays_by_itself_where_motion_is_not_wanted(browser, written):
    path, _ = written
    browser.open(path.as_uri(), still=True)
    assert browser.ask("document.querySelector('output').textContent").startswith("call 0 of 17")
    time.sleep(1)
    assert browser.ask(HOLES) == 12
    hole = "document.querySelector('.text .hole')"
    assert browser.ask(f"[{hole}.role, {hole}.ariaLabel]") == ["img", "masked"]
    browser.click("button[aria-label='Play or pause']")
    browser.wait(f"{HOLES} === 0")
    assert browser.ask("document.querySelectorAll('.text [role=img]').length") == 0


@pytest.fixture
def written(tiny, tmp_path):
    """The page of a drawing, and its tokens."""
    row = row_from_template("ab[MASK:6]<i>", tiny.tokenizer, None, 32)
    prompt = pad([row, row], 16)
    path = tmp_path / "page.html"
    last = write_page(
        path, tiny, prompt, generate_stream(jax.random.key(1), tiny, prompt, steps=16), {}
    )
    return path, last.tokens


def test_the_player_plays_steps_and_explains(browser, tiny, written):
    path, tokens = written
    browser.open(path.as_uri(), dark=True)
    browser.wait("document.querySelector('output').textContent.startsWith('call 17 of 17')")
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {
        127: 0x2421
    }
    texts = ["".join(tiny.tokenizer.pieces(row[:11])) for row in tokens]
    assert browser.ask(TEXTS) == [text.translate(pictures) for text in texts]
    for _ in range(17):
        browser.click("button[aria-label='Step back']")
    assert browser.ask(HOLES) == 12 and browser.ask(TEXTS) == ["ab<i>"] * 2
    card = "document.querySelector('.guess')"
    assert browser.ask(f"{card}.hidden") is True
    browser.ask("document.querySelector('.text .token').focus()")
    assert browser.ask(f"{card}.hidden") is True  # a given word
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.ask(f"{card}.hidden") is False
    assert browser.ask(f"{card}.textContent").startswith("Position 3: the model expects")
    assert browser.ask(f"{card}.querySelectorAll('.bar').length") in (5, 6)
    browser.click("button[aria-label='Play or pause']")
    browser.wait(f"{HOLES} === 0")
