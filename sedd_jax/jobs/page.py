"""A page that plays how texts came about: one file that needs nothing else."""

import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

import sedd_jax
from sedd_jax.display import page
from sedd_jax.display.page import Html, element
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.stream import Snapshot
from sedd_jax.jobs.frames import frames, keep, lengths
from sedd_jax.system.files import atomic_write, check_output_path
from sedd_jax.system.progress import progress

_LEAD = (
    "Every text begins as masks, or as noise, and is filled in wherever the model pleases. Play, "
    "step, or point at a position that is still open to see what the model expects there."
)


def write_page(
    path: Path,
    checkpoint: TrainedModel,
    prompt: Prompt,
    moments: Iterable[Snapshot],
    facts: Mapping[str, str],
    most: int = 32,
) -> Snapshot:
    """Writes the page that plays a drawing, and returns its last moment.

    Args:
      path: a new file.
      checkpoint: the model.
      prompt: what was held.
      moments: from `inference.live`.
      facts: what to say of the drawing, by name: model, sampler, seed and the like.
      most: moments that are kept, at least 2; each costs an evaluation of every row.

    Raises:
      BadInput: see `check_output_path` and `keep`; before anything is drawn.
    """
    check_output_path(path, "--html")
    kept = keep(moments, most)
    last, shown = kept[-1].moment, []
    with progress("page", unit="moment") as advance:
        for frame in frames(checkpoint, prompt, kept):
            shown.append(frame._asdict())
            advance(len(shown), len(kept))
    data = setting(checkpoint, prompt, last.most) | {"frames": shown}
    text = page.document(
        "How these texts came about",
        element("h1", "How these texts came about"),
        element("p", _LEAD, class_="lead"),
        element("main", id="stage"),
        page.unfolding("How they were drawn", page.facts(facts.items())),
        element("footer", f"Made by sedd_jax {sedd_jax.__version__}."),
        page.data("data", data),
        style=asset("show.css"),
        script=asset("player.js") + asset("play.js"),
    )
    atomic_write(path, text)
    return last


def setting(checkpoint: TrainedModel, prompt: Prompt, most: int) -> dict[str, object]:
    """Returns what the player is told of a drawing of `most` calls before its first moment."""
    rows = zip(np.asarray(prompt.held).tolist(), lengths(prompt), strict=True)
    return {
        "held": [[int(it) for it in held[:length]] for held, length in rows],
        "masks": checkpoint.graph.mask_id is not None,
        "most": most,
    }


def asset(name: str) -> Html:
    """Returns the text of a file in assets/."""
    return Html((importlib.resources.files(__package__) / "assets" / name).read_text("utf-8"))
