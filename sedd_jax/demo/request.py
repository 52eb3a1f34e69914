"""What the demo draws: a request of the page, checked, and its snapshots as JSON lines."""

import json
from collections.abc import Iterator
from typing import Any

import jax

from sedd_jax.display.page import render
from sedd_jax.errors import BadInput
from sedd_jax.inference.conditions import told_prompt
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.sampling import TEMPERINGS, samplers_for
from sedd_jax.inference.stream import generate_stream
from sedd_jax.inference.template import pad, padded_length, row_from_template
from sedd_jax.jobs.page import frame, player_setup

# every other setting is another program to compile, so the page offers a few: choices, default
_CHOICES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "steps": ((8, 16, 32, 64, 128, 256), 64),
    "samples": ((1, 2, 4), 2),
    "temperature": ((0.0, 0.5, 0.7, 0.9, 1.0), 1.0),
    "top_p": ((0.5, 0.8, 0.9, 0.95, 1.0), 1.0),
}
_GUIDANCE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
_NOT_TOLD = "(not told)"  # in the menu of a label
_EXAMPLES = (
    "Once upon a time[MASK:16] and they lived[MASK:12] ever after.",
    "once upon a time[MASK:16] and they lived[MASK:12] ever after",
    "[MASK:16]",
)


class RequestHandler:
    """Fills in texts with holes by a diffusion model, as requests of the page ask for.

    Attributes:
      choices: the values that every setting may have, and its default.
    """

    def __init__(self, checkpoint: TrainedModel):
        """BadInput for a model that cannot fill holes."""
        if not checkpoint.family.infills:
            raise BadInput(
                f"This model is {checkpoint.config.family}: it cannot fill holes; give the "
                "checkpoint of a diffusion model."
            )
        self._checkpoint = checkpoint
        self.choices = {"sampler": (samplers_for(checkpoint.graph), "tweedie")} | _CHOICES
        if not checkpoint.graph.absorbs:
            self.choices["tempering"] = (TEMPERINGS, "token")
        columns = checkpoint.conditions.columns if checkpoint.conditions else ()
        labels = [column for column in columns if column.kind == "label"]
        self._labels = {f"condition.{label.name}": label.name for label in labels}
        for label in labels:
            self.choices[f"condition.{label.name}"] = ((_NOT_TOLD, *label.counts), _NOT_TOLD)
        if labels and checkpoint.config.train.condition_dropout:
            self.choices["guidance"] = (_GUIDANCE, 1.0)
        self._example = next(filter(self._is_encodable, _EXAMPLES), "[MASK:*]")

    def page(self) -> str:
        """Returns the page from which requests are sent."""
        return render(
            __package__,
            "demo.html",
            name=self._checkpoint.name,
            length=self._checkpoint.config.model.length,
            example=self._example,
            choices=self.choices,
        )

    def warm_up(self) -> None:
        """Compiles the programs of the page's default settings."""
        defaults = {name: default for name, (_, default) in self.choices.items()}
        for _ in self._draw({"template": self._example, "seed": 0} | defaults):
            pass

    def handle(self, body: bytes) -> Iterator[dict[str, Any]]:
        """Returns what the player shows of a drawing: its setting, then a line for every snapshot.

        Raises:
          BadInput: the request is malformed or out of range; before anything is drawn.
        """
        return self._draw(_parse(body, self.choices))

    def _draw(self, request):
        checkpoint = self._checkpoint
        length = checkpoint.config.model.length
        row = row_from_template(request["template"], checkpoint.tokenizer, None, length)
        prompt = pad([row] * request["samples"], padded_length(len(row.tokens), length))
        chosen = {label: request[name] for name, label in self._labels.items()}
        told = {label: value for label, value in chosen.items() if value != _NOT_TOLD}
        prompt = told_prompt(checkpoint, prompt, told or None)
        others = {"samples", *self._labels}
        settings = {name: request[name] for name in self.choices if name not in others}
        snapshots = generate_stream(jax.random.key(request["seed"]), checkpoint, prompt, **settings)
        return self._lines(prompt, snapshots)

    def _lines(self, prompt, snapshots):
        yield {"note": "Waiting for the model; the first drawing of a size is compiled first."}
        for snapshot in snapshots:
            if not snapshot.nfe:
                yield player_setup(self._checkpoint, prompt)
            yield frame(self._checkpoint, prompt, snapshot)

    def _is_encodable(self, template):
        try:
            row_from_template(
                template, self._checkpoint.tokenizer, None, self._checkpoint.config.model.length
            )
        except BadInput:
            return False
        return True


def _parse(body, settings):
    """The fields of a request, each in its range."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadInput("The request is not JSON; send it from the page.") from error
    fields = {"template", "seed", *settings}
    if not isinstance(request, dict) or request.keys() != fields:
        raise BadInput(f"The request must be an object with {', '.join(sorted(fields))}.")
    if not isinstance(request["template"], str):
        raise BadInput("template must be text.")
    if type(request["seed"]) is not int or not 0 <= request["seed"] < 2**32:
        raise BadInput("seed must be a whole number from 0 to 4294967295.")
    for name, (choices, _) in settings.items():
        # True is 1
        if isinstance(request[name], bool) or request[name] not in choices:
            raise BadInput(f"{name} must be one of {', '.join(map(str, choices))}.")
        request[name] = choices[choices.index(request[name])]  # 1.0 where JSON says 1
    return request
