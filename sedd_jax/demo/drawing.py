"""What the demo draws: a request of one page, checked, and its moments as JSON lines."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from sedd_jax.errors import BadInput
from sedd_jax.inference.load import TrainedModel
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import FIRST_HITTING, SAMPLER_NAMES
from sedd_jax.inference.stream import live
from sedd_jax.inference.template import fill, pad, width_of
from sedd_jax.jobs.frames import texts
from sedd_jax.jobs.page import setting

# a drawing with another setting is another program, so there are few: choices, the one at first
_CHOICES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "sampler": (SAMPLER_NAMES, "tweedie"),
    "steps": ((8, 16, 32, 64, 128, 256), 64),
    "samples": ((1, 2, 4), 2),
    "temperature": ((0.0, 0.5, 0.7, 0.9, 1.0), 1.0),
    "top_p": ((0.5, 0.8, 0.9, 0.95, 1.0), 1.0),
}
_EXAMPLES = (
    "Once upon a time[MASK:16] and they lived[MASK:12] ever after.",
    "once upon a time[MASK:16] and they lived[MASK:12] ever after",
    "[MASK:16]",
)

Drawing = Iterator[dict[str, Any]]


class Studio:
    """Draws texts with holes from a diffusion model, for the page.

    Attributes:
      example: a template that the tokenizer takes.
      choices: of every setting, the values that there may be, and the one at first.
      length: the most tokens of a text.
    """

    def __init__(self, checkpoint: TrainedModel):
        """BadInput for a model that fills no holes."""
        if checkpoint.config.family != "diffusion":
            raise BadInput(
                "This model is autoregressive: it goes on from a text, and cannot fill holes; give "
                "the checkpoint of a diffusion model."
            )
        self._checkpoint = checkpoint
        self.length = checkpoint.config.model.length
        self.choices = _choices_of(checkpoint.graph)
        self.example = next(filter(self._takes, _EXAMPLES), "[MASK:*]")

    def warm_up(self) -> None:
        """Compiles what the first request takes, if it changes nothing but the text."""
        first = {name: default for name, (_, default) in self.choices.items()}
        for _ in self._drawing({"template": self.example, "seed": 0} | first):
            pass

    def drawing(self, body: bytes) -> Drawing:
        """Returns the lines of a drawing: what the player is told, then a line for every moment.

        Raises:
          BadInput: a request that cannot be, before anything is drawn.
        """
        return self._drawing(_parsed(body, self.choices))

    def _drawing(self, wish):
        tokenizer, most = self._checkpoint.tokenizer, self.length
        row = fill(wish["template"], tokenizer, None, most)
        prompt = pad([row] * wish["samples"], width_of(len(row.tokens), most))
        settings = {name: wish[name] for name in self.choices if name != "samples"}
        if wish["sampler"] == FIRST_HITTING:
            settings["steps"] = None  # one token a call: the page does not offer steps
        moments = live(jax.random.key(wish["seed"]), self._checkpoint, prompt, **settings)
        return self._lines(prompt, moments)

    def _lines(self, prompt: Prompt, moments) -> Drawing:
        yield {"note": "Waiting for the model; the first drawing of a size is compiled first."}
        for moment in moments:
            if not moment.calls:
                yield setting(self._checkpoint, prompt, moment.most)
            yield {
                "calls": moment.calls,
                "evaluations": np.asarray(moment.evaluations).tolist(),
                "rows": texts(self._checkpoint, moment.tokens, prompt),
            }

    def _takes(self, template):
        try:
            fill(template, self._checkpoint.tokenizer, None, self.length)
        except BadInput:
            return False
        return True


def _choices_of(graph):
    """First hitting takes masks."""
    samplers = tuple(name for name in SAMPLER_NAMES if name != FIRST_HITTING or graph.mask_id)
    return {**_CHOICES, "sampler": (samplers, "tweedie")}


def _parsed(body, of_settings):
    """The wish of a request, every field of it in its range."""
    try:
        wish = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadInput("The request is no JSON; send it from the page.") from error
    fields = {"template", "seed", *of_settings}
    if not isinstance(wish, dict) or wish.keys() != fields:
        raise BadInput(f"The request must be an object with {', '.join(sorted(fields))}.")
    if not isinstance(wish["template"], str):
        raise BadInput("template must be text.")
    if type(wish["seed"]) is not int or not 0 <= wish["seed"] < 2**32:
        raise BadInput("seed must be a whole number from 0 to 4294967295.")
    for name, (choices, _) in of_settings.items():
        # True is 1
        if isinstance(wish[name], bool) or wish[name] not in choices:
            raise BadInput(f"{name} must be one of {', '.join(map(str, choices))}.")
        wish[name] = choices[choices.index(wish[name])]  # 1.0 where JSON says 1
    return wish
