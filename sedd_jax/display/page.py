"""HTML pages that hold all they show, rendered from Jinja2 templates."""

import base64
import functools
import hashlib
import html
import importlib.resources
import json
import re
from collections.abc import Iterable
from typing import Any

import jinja2
from markupsafe import Markup

from sedd_jax.display.plot import Plot, inline_svg
from sedd_jax.display.table import Cell, Table, shown

# a sample may hold any character: those that a page cannot hold are shown by their pictures
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_NUMBER = re.compile(r"((<=|=) )?(-?[\d,.]+(e[+-]\d+)?|-?inf|nan)( \+- \S+)?")
_SIGNS = {"+-": "±", "<=": "≤", ">=": "≥"}


def render(package: str, template: str, **values: Any) -> str:
    """Returns the page of a template in `assets/` of a package, which every value enters escaped.

    Templates extend `sedd_jax.display:document.html`, which inlines the styles and scripts they
    name. A name without a package means an asset of `package`; of another, it is
    "PACKAGE:NAME". A value that is not defined is an error.

    Args:
      package: the dotted name of the package, `__package__` of the caller.
      template: the name of the template.
      **values: what the template shows.
    """
    return _environment(package).get_template(template).render(values)


@functools.cache
def _environment(package):
    asset = functools.partial(_asset, package)

    def inlined(names: Iterable[str]) -> Markup:
        return Markup("".join(map(asset, names)))

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_drawable,
        trim_blocks=True,
    )
    environment.globals |= {"inlined": inlined, "svg": lambda plot: Markup(inline_svg(plot))}
    environment.filters |= {
        "numeric_columns": _numeric_columns,
        "sha256": _sha256,
        "shown": shown,
        "typeset": _typeset,
    }
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _asset(package, name):
    owner, _, file = name.rpartition(":")
    return (importlib.resources.files(owner or package) / "assets" / file).read_text("utf-8")


def _drawable(value):
    return value.translate(_CONTROLS) if type(value) is str else value


def _sha256(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _typeset(text):
    for plain, sign in _SIGNS.items():
        text = text.replace(plain, sign)
    return text


def _numeric_columns(table: Table) -> list[bool]:
    """Says of each column whether it holds numbers, perhaps with their errors or missing."""

    def is_number(value):
        return not isinstance(value, str) or bool(_NUMBER.fullmatch(value))

    return [
        all(map(is_number, column)) and any(it is not None for it in column)
        for column in zip(*table.rows, strict=True)
    ]


_VOID = {"input"}  # elements that have no end
_LONG = 40  # signs of a cell that is broken into lines


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
    styles = _asset(__package__, "page.css") + style
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
