"""The page of the demo: a text with holes goes in, and one watches it being filled in."""

from sedd_jax.display import page
from sedd_jax.display.page import Html, element
from sedd_jax.inference.load import Checkpoint
from sedd_jax.serving.drawing import CHOICES, Studio
from sedd_jax.serving.play import asset

_TITLE = "Fill in the holes"
_SEED = {"type": "number", "name": "seed", "id": "seed", "value": "0", "min": "0"}
_HOLE = {"type": "number", "id": "hole", "value": "12", "min": "1", "class_": "short"}


def watch_page(checkpoint: Checkpoint, studio: Studio) -> str:
    """Returns the page, for the server of a studio."""
    trained = f"at step {checkpoint.step:,}" if checkpoint.step is not None else "as published"
    lead = (
        f"{checkpoint.name or 'This model'}, {trained}, sees all given words at once and fills in "
        f"what lies between them. [MASK:12] is a hole of 12 tokens, [MASK:*] fills up to "
        f"{studio.length}."
    )
    return page.document(
        _TITLE,
        element("h1", _TITLE),
        element("p", lead, class_="lead"),
        element("main", _form(studio), element("p", class_="result", id="result", role="status"), element("div", id="stage")),
        style=asset("show.css"),
        script=asset("player.js") + asset("demo.js"),
    )


def _form(studio):
    text = element(
        "textarea", studio.example, name="template", id="template", rows="4", spellcheck="false",
        aria_label="Text with holes",
    )
    hole = element("button", "Insert hole", type="button", id="insert")
    ...
