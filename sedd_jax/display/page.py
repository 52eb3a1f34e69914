"""HTML pages that hold all they show, rendered from Jinja2 templates."""

import base64
import functools
import hashlib
import importlib.resources
import re
from collections.abc import Iterable
from typing import Any

import jinja2
from markupsafe import Markup

from sedd_jax.display.plot import COLOURS, inline_svg
from sedd_jax.display.table import Table, shown

# control characters of samples, which a page cannot hold, become their Unicode pictures
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_NUMBER = re.compile(r"((<=|=) )?(-?[\d,.]+(e[+-]\d+)?|-?inf|nan)( \+- \S+)?")
_SIGNS = {  # a number stays on the line of its sign and its error
    " +- ": "\u00a0±\u00a0", "<= ": "≤\u00a0", ">= ": "≥\u00a0",
    "+-": "±", "<=": "≤", ">=": "≥",
}  # fmt: skip


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
    environment.globals |= {
        "inlined": inlined,
        "num_colours": len(COLOURS),
        "svg": lambda plot: Markup(inline_svg(plot)),
    }
    environment.filters |= {
        "numeric_columns": _numeric_columns,
        "sha256": _sha256,
        "shown": shown,
        "slug": _slug,
        "typeset": _typeset,
    }
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _asset(package, name):
    owner, _, file = name.rpartition(":")
    return (importlib.resources.files(owner or package) / "assets" / file).read_text("utf-8")


def _drawable(value):
    return value.translate(_CONTROLS) if type(value) is str else value


def _slug(name):
    """A name as the id of an element, and as a fragment of an address."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def _sha256(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _typeset(text):
    for plain, sign in _SIGNS.items():
        text = text.replace(plain, sign)
    return text


def _numeric_columns(table: Table) -> list[bool]:
    """Says of each column whether it holds numbers, perhaps with their errors or missing."""

    def is_number(value):
        return not isinstance(value, str) or not value or bool(_NUMBER.fullmatch(value))

    return [
        all(map(is_number, column)) and any(it not in (None, "") for it in column)
        for column in zip(*table.rows, strict=True)
    ]
