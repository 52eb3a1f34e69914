"""A model of lm-evaluation-harness: what it asks, passed on to a `Backend`."""

import collections
from typing import Any

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.harness import Backend
from sedd_jax.evaluation.harness_settings import settings_from, texts_from
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system.packages import package

_NO_BATCH_SIZE = (None, 1, "1")  # the harness's own default is not told from a given 1

_model, _utils = (
    package(f"lm_eval.{module}", '"sedd_jax[lm_eval]"', "The harness")
    for module in ("api.model", "utils")
)


class SeddJax(_model.LM):
    """A model of this package, as a model of the harness."""

    def __init__(self, checkpoint: str | TrainedModel | None = None, **arguments: Any):
        """Loads a model, or takes a loaded one.

        Args:
          checkpoint: see `harness.Settings`; or the model itself.
          **arguments: the other fields of `harness.Settings`.
        """
        super().__init__()
        if isinstance(checkpoint, TrainedModel):
            settings = settings_from({"checkpoint": checkpoint.name or "", **arguments})
            self.backend = Backend(checkpoint, settings)
        else:
            named = {} if checkpoint is None else {"checkpoint": checkpoint}
            self.backend = Backend.load(settings_from(named | arguments))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "SeddJax":
        """Returns the model of `--model_args`.

        Args:
          arg_dict: these; their batch_size goes before that of the flag.
          additional_config: `--batch_size`, where 1 and auto are the default of `Settings`; its
            other entries have no effect: JAX chooses the device.
        """
        size, given = (additional_config or {}).get("batch_size"), {}
        if size not in _NO_BATCH_SIZE and not str(size).startswith("auto"):
            if not str(size).isdigit():
                raise BadInput(f"--batch_size={size} must be a whole number, or auto.")
            given = {"batch_size": int(size)}
        return cls(**given | arg_dict)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "SeddJax":
        """As `create_from_arg_obj`, of a text.

        Args:
          arg_string: NAME=VALUE,...
          additional_config: see there.
        """
        arguments = _utils.simple_parse_args_string(arg_string)
        return cls.create_from_arg_obj(arguments, additional_config)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        del disable_tqdm
        questions = [(request.task_name, request.doc_id) for request in requests]
        return self.backend.loglikelihood([request.args for request in requests], questions)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        del disable_tqdm
        return self.backend.loglikelihood_rolling([request.args[0] for request in requests])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        del disable_tqdm
        alike, times = collections.defaultdict(list), collections.Counter()
        for index, request in enumerate(requests):
            context, kwargs = request.args[:2]
            document = request.task_name, request.doc_id
            name = (*document, times[document])  # the same request may be repeated
            times[document] += 1
            alike[repr(kwargs)].append((index, context, name, kwargs))
        found = [""] * len(requests)
        for group in alike.values():
            indices, contexts, names, (kwargs, *_) = zip(*group, strict=True)
            texts = self.backend.generate_until(contexts, names, **texts_from(kwargs))
            for index, text in zip(indices, texts, strict=True):
                found[index] = text
        return found

    def get_model_info(self) -> dict[str, Any]:
        """Returns what the harness records with its results."""
        return {"sedd_jax": self.backend.describe()}
