"""Pages of HTML that hold all they show. Text is escaped where it enters an element."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from typing import Any

from sedd_jax.display.plot import Plot, inline_svg
from sedd_jax.display.table import Cell, Table, shown

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --faint: #777; --accent: #1f77b4 }
@media (prefers-color-scheme: dark) { :root { --faint: #999; --accent: #6cb4e8 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; border-bottom: 2px solid var(--accent) }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; overflow-wrap: anywhere }
p, footer { color: var(--faint) }
nav a { margin-right: 1rem; white-space: nowrap; display: inline-block; color: var(--accent) }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)) }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .25rem 1rem 1rem; min-width: 0 }
.wide { overflow-x: auto; margin-bottom: 1rem }
table { border-collapse: collapse; font-size: .8125rem }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line) }
thead th { vertical-align: bottom; color: var(--faint); font-weight: 600; line-height: 1.25 }
.figures td { white-space: nowrap; font-variant-numeric: tabular-nums }
.figures td.long { white-space: normal; min-width: 18rem }
.figures .number { text-align: right }
.facts { width: 100% }
.facts th { width: 1%; color: var(--faint); font-weight: 400; white-space: nowrap }
.facts td { overflow-wrap: anywhere }
figure { margin: 0; min-width: 0 }
figure svg { width: 100%; height: auto; max-width: 34rem; display: block }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: .4rem; padding: .75rem; font-size: .8rem; max-height: 24rem; overflow-y: auto }
summary { cursor: pointer; color: var(--accent); margin: .5rem 0 }
"""  # noqa: E501
# a sample may hold any character: those that a page cannot hold are shown by their pictures
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_VOID = {"input"}  # elements that have no end
_LONG = 40  # signs of a cell that is broken into lines
_NUMBER = re.compile(r"((<=|=) )?(-?[\d,.]+(e[+-]\d+)?|-?inf|nan)( \+- \S+)?")
_SIGNS = {"+-": "±", "<=": "≤", ">=": "≥"}


class Html(str):
    """Text that is HTML already; any other is escaped."""


def element(name: str, /, *children: str, **attributes: str) -> Html:
    """Returns an element; `class_` stands for the attribute `class`."""
    named = "".join(
        f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    end = "" if name in _VOID else f"</{name}>"
    return Html(f"<{name}{named}>{''.join(map(_escaped, children))}{end}")


def page(title: str, sections: dict[str, Html], foot: str) -> str:
    """Returns the whole page: its title, its sections with links to them, a foot.

    A section without content is left out.
    """
    parts = {name: content for name, content in sections.items() if content}
    anchors = {name: name.lower().replace(" ", "-") for name in parts}
    return document(
        title,
        element("h1", title),
        element("nav", *(element("a", name, href=f"#{anchors[name]}") for name in parts)),
        *(
            element("section", element("h2", name), content, id=anchors[name])
            for name, content in parts.items()
        ),
        element("footer", foot),
    )


def document(title: str, *body: Html, style: str = "", script: str = "") -> str:
    """Returns a whole page of these elements, with a style and a program of its own.

    A page with a program runs no other, and asks nobody but the server it came from.
    """
    styles = _STYLE + style
    programs = [element("script", Html(script))] if script else []
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        *([_policy(styles, script)] if script else []),
        element("title", title),
        element("style", Html(styles)),
    )
    whole = element("html", head, element("body", *body, *programs), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _policy(style, script):
    """What the browser is to allow: these very texts."""
    digests = (hashlib.sha256(text.encode()).digest() for text in (style, script))
    of_style, of_script = (base64.b64encode(digest).decode() for digest in digests)
    allowed = (
        f"default-src 'none'; style-src 'sha256-{of_style}'; script-src 'sha256-{of_script}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    return Html(f'<meta http-equiv="Content-Security-Policy" content="{allowed}">')


def data(name: str, value: Any) -> Html:
    """Returns an element that holds a value as JSON for the program of the page, under an id."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return element("script", Html(text), type="application/json", id=name)


def joined(parts: Iterable[Html]) -> Html:
    """Returns elements one after another."""
    return Html("".join(parts))


def paragraph(text: str) -> Html:
    """Returns a text on its own."""
    return element("p", _typeset(text))


def card(title: str, *children: str) -> Html:
    """Returns a box under a small heading."""
    return element("div", element("h3", title), *children, class_="card")


def grid(*children: str) -> Html:
    """Returns boxes or figures side by side, as many as there is room for."""
    return element("div", *children, class_="grid") if children else Html()


def figures(table: Table) -> Html:
    """Returns a table, under its title if it has one; columns of numbers end at the right."""
    title = [element("h3", table.title)] if table.title else []
    numeric = [
        all(map(_is_number, column)) and any(it is not None for it in column)
        for column in zip(*table.rows, strict=True)
    ]
    head = element("tr", *map(_cell, ["th"] * len(numeric), table.columns, numeric))
    rows = (element("tr", *map(_cell, ["td"] * len(numeric), row, numeric)) for row in table.rows)
    body = (element("thead", head), element("tbody", *rows))
    return joined([*title, _wide(element("table", *body, class_="figures"))])


def _is_number(value: Cell) -> bool:
    """Whether it is one, perhaps with its error, or missing."""
    return not isinstance(value, str) or bool(_NUMBER.fullmatch(value))


def _cell(name, value, numeric):
    text = "–" if value is None else _typeset(shown(value))
    kind = "number" if numeric else "long" if len(text) > _LONG else ""
    return element(name, text, **({"class_": kind} if kind else {}))


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Returns names and what they stand for, or nothing if there are none."""
    rows = [element("tr", element("th", name), element("td", text)) for name, text in pairs]
    return _wide(element("table", element("tbody", *rows), class_="facts")) if rows else Html()


def _wide(table):
    return element("div", table, class_="wide")


def _typeset(text):
    for plain, sign in _SIGNS.items():
        text = text.replace(plain, sign)
    return text


def drawing(plot: Plot) -> Html:
    """Returns a plot."""
    return element("figure", Html(inline_svg(plot)))


def unfolding(title: str, *children: str) -> Html:
    """Returns what is to be seen once its title is touched, or nothing if there is nothing."""
    return element("details", element("summary", title), *children) if any(children) else Html()


def verbatim(text: str) -> Html:
    """Returns a text with its own line breaks."""
    return element("pre", text)


def _escaped(text):
    return text if isinstance(text, Html) else Html(html.escape(text.translate(_CONTROLS)))
