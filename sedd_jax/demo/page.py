"""The page of the demo: a text with holes goes in, and one watches it being filled in."""

from sedd_jax.demo.drawing import Studio
from sedd_jax.display import page
from sedd_jax.display.page import Html, element
from sedd_jax.inference.load import TrainedModel
from sedd_jax.jobs.page import asset

_TITLE = "Fill in the holes"


def watch_page(checkpoint: TrainedModel, studio: Studio) -> str:
    """Returns the page, for the server of a studio."""
    lead = (
        f"{checkpoint.name or 'This model'} sees all given words at once, those after a hole too, "
        "and writes what lies between them. [MASK:12] is a hole of 12 tokens; one [MASK:*] fills "
        f"the text up to {studio.length}."
    )
    return page.document(
        _TITLE,
        element("h1", _TITLE),
        element("p", lead, class_="lead"),
        _form(studio),
        element(
            "p",
            element("span", id="result", role="status"),
            element("span", id="running"),
            class_="result",
        ),
        element("main", id="stage"),
        style=asset("show.css"),
        script=asset("player.js") + asset("demo.js"),
    )


def _form(studio):
    size = _number("hole", "12", "Tokens of the hole", class_="short")
    template = element(
        "textarea",
        studio.example,
        name="template",
        rows="4",
        spellcheck="false",
        id="template",
        **{"aria-label": "Text with holes"},
    )
    choices = (_choice(name, *of_name) for name, of_name in studio.choices.items())
    return element(
        "form",
        template,
        element(
            "div",
            _button("Insert a hole", "insert", "button"),
            _labelled("of tokens", size),
            element("span", class_="gap"),
            _button("Stop", "stop", "button", disabled=""),
            _button("Fill in", "fill", "submit", class_="main"),
            class_="line",
        ),
        element(
            "div",
            *choices,
            _labelled("seed", _number("seed", "0", "Seed", name="seed", **{"data-number": ""})),
            class_="line",
        ),
        id="form",
    )


def _choice(name, choices, first):
    options = (
        element("option", str(it), value=str(it), **({"selected": ""} if it == first else {}))
        for it in choices
    )
    kind = {} if isinstance(first, str) else {"data-number": ""}
    return _labelled(
        name.replace("_", " "), element("select", *options, name=name, id=name, **kind)
    )


def _labelled(text, field):
    return element("label", text, field)


def _number(id_, value, label, **attributes):
    fixed = {"type": "number", "min": "0", "id": id_, "value": value, "aria-label": label}
    return element("input", **fixed, **attributes)


def _button(text: str, id_: str, kind: str, **attributes: str) -> Html:
    return element("button", text, type=kind, id=id_, **attributes)
