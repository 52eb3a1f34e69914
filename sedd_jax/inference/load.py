"""Loading a trained model: a run folder or a PyTorch layout of others, here or on the hub."""

import contextlib
import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from sedd_jax.data import conditions
from sedd_jax.data.characters import SETTINGS_FILE
from sedd_jax.data.tokenizer import (
    GPT2,
    GPT2_FILES,
    Tokenizer,
    find_tokenizer,
    has_gpt2_files,
)
from sedd_jax.errors import BadInput
from sedd_jax.experiment import card
from sedd_jax.experiment import checkpoint as checkpoints
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.checkpoint_folder import FOLDER, has
from sedd_jax.experiment.config import Config, MeshConfig
from sedd_jax.experiment.published_config import from_published
from sedd_jax.experiment.run import DATA_FOLDER
from sedd_jax.inference.build import build_family, check_trusted
from sedd_jax.inference.family import Family
from sedd_jax.inference.model import TrainedModel
from sedd_jax.model import denoiser_layouts, gpt2, pretrained, published_run
from sedd_jax.model.sharding import ANYWHERE, AXES, shardings
from sedd_jax.system import hub, mirror

TOKENIZER_FOLDER = "tokenizer"
_TOKENIZER_FILES = (SETTINGS_FILE, *(name for names in GPT2_FILES for name in names), "*.model")
_FILES = (
    "config.json",
    *_TOKENIZER_FILES,
    f"{TOKENIZER_FOLDER}/*",
    f"{DATA_FOLDER}/{TOKENIZER_FOLDER}/*",
    f"{DATA_FOLDER}/{conditions.FILE}",
    f"{FOLDER}/*",
    *card.RECORDS,
)
_LIGHTNING = ".ckpt"
_REWRITE = (
    "whose pickle holds more than tensors: write its averages as model.safetensors beside a "
    "config.json (docs/checkpoints.md has the lines)."
)
_SHOWN = 6  # names of files in a message
_WEIGHTS = ((pretrained.WEIGHTS[0], *gpt2.PARTS), pretrained.WEIGHTS[1:])
# of a bucket: also what evaluations of a run read, and what is in the folder of another kind
_FETCHED = (
    *_FILES,
    *_WEIGHTS[0],
    *_WEIGHTS[1],
    f"{DATA_FOLDER}/*",
    *published_run.FILES,
    "*.json",
)


@mirror.errors_by_address()
def load(
    path: str | Path,
    *,
    step: int | str | None = None,
    ema: bool = True,
    mesh: MeshConfig | Mesh | None = None,
    tokenizer: str | Path | None = None,
    trust_code: bool | Collection[str] = False,
) -> TrainedModel:
    """Loads a model.

    Args:
      path: a run folder that `train` wrote, a folder in the published PyTorch layout
        (`config.json` with `model.safetensors` or `pytorch_model.bin`), a run folder of the
        published training script or a checkpoint in it (`RUN/checkpoints/checkpoint_3.pth`), an
        MDLM, UDLM, Duo or RADD, or a GPT-2, in the layout of Hugging Face, or a repository of the
        hub with one of them, OWNER/NAME or OWNER/NAME@REVISION. A folder may be in a bucket:
        gs://BUCKET/KEY or s3://BUCKET/KEY. For all but a run folder, the `config` knows only the
        family, graph, noise, model and vocabulary; the rest are defaults. `config.model.dtype` is
        the type of matrix products, by default bfloat16 on accelerators; float32 for a GPT-2.
      step: the step of a run folder to load, or "best", see `config.eval.oracle`; the latest by
        default.
      ema: load the averaged weights of a run folder, as evaluation and sampling do.
      mesh: the devices that hold the weights in parts, and compute: the sizes of a mesh of all
        devices, or what `experiment.mesh.build_mesh` returns; by default one device. It may differ
        from that of the training.
      tokenizer: a folder that `Tokenizer.save` wrote or one with GPT-2's files, here or on the
        hub; by default the one beside the weights.
      trust_code: whether code that the model names (a graph, a schedule or a family by its dotted
        path) may be imported and run: True, or the dotted paths that may be.

    Raises:
      BadInput: no such folder, no checkpoint in it, one that does not fit its config, or a damaged
        one, even if there is another. Or a mesh or a tokenizer that does not fit the model, or a
        tokenizer other than that of the run.
    """
    if isinstance(mesh, MeshConfig):
        mesh = meshes.build_mesh(mesh)
    if mesh is not None and mesh.axis_names != AXES:
        raise BadInput(f"The mesh has the axes {mesh.axis_names}, it must have {AXES}.")
    found = None if tokenizer is None else _given_tokenizer(tokenizer)
    request = _Request(step, ema, mesh, found, trust_code)
    folder = path = fetched(path)
    if folder.is_file() and folder.suffix == _LIGHTNING:
        raise BadInput(f"{path} is a checkpoint of Lightning, {_REWRITE}")
    if not (folder.is_file() and published_run.is_published_run(folder)):  # a checkpoint
        folder = hub.folder(path, _FILES, functools.partial(_is_whole, request), _WEIGHTS)
    for is_it, load_it in _LAYOUTS:
        if is_it(folder):
            # a folder of the hub's cache is called by its revision
            name = folder.absolute().name if Path(path).exists() else str(path)
            return dataclasses.replace(load_it(folder, request), name=name)
    raise BadInput(
        f"{folder} holds neither {FOLDER}/ (a run of train), nor config.json with "
        "model.safetensors or pytorch_model.bin (SEDD as published, MDLM, UDLM, Duo, RADD or "
        "GPT-2), nor .hydra/config.yaml (a run of the published training script)"
        + _what_is_there(folder)
    )


def fetched(path: str | Path) -> Path:
    """Returns the folder of a model as a local one; of one in a bucket without the checkpoints.

    Raises:
      BadInput: there is nothing at that address, or no access to it.
    """
    return mirror.local(path, "The model", _FETCHED)


def _what_is_there(folder):
    """The end of a sentence about a folder without a model."""
    if unfinished := next(folder.rglob("*.incomplete"), None):
        return f"; {unfinished} was not fetched to its end, fetch it again."
    if lightning := next(folder.rglob(f"*{_LIGHTNING}"), None):
        return f"; {lightning} is a checkpoint of Lightning, {_REWRITE}"
    found = sorted(path.name for path in folder.iterdir())[:_SHOWN]
    return f"; it holds {', '.join(found)}." if found else "; it is empty."


class _Request(NamedTuple):
    """The arguments of `load`, except the folder."""

    step: int | str | None
    ema: bool
    mesh: Mesh | None
    tokenizer: "_Found | None"
    trust_code: bool | Collection[str]


class _Found(NamedTuple):
    """A tokenizer, and its folder."""

    tokenizer: Tokenizer
    folder: Path


def _load_run(folder, request):
    with checkpoints.Checkpoints(folder) as saved:
        step = saved.step_named(request.step)
        if step is None:
            raise BadInput(f"{folder} holds no complete checkpoint yet.")
        config = saved.config(step)
        own = _find(folder / DATA_FOLDER / TOKENIZER_FOLDER)
        tokens = own.tokenizer.vocab_size if own else config.data.vocab_size
        if not tokens:
            raise BadInput(f"{folder} lacks its {DATA_FOLDER}/{TOKENIZER_FOLDER}.")
        tokenizer = _fitting(request.tokenizer or own, tokens, folder)
        if own and tokenizer.fingerprint() != own.tokenizer.fingerprint():
            raise BadInput(
                f"The {tokenizer.kind} tokenizer in {request.tokenizer.folder} gives other ids "
                f"than the one that the model in {folder} was trained with; leave it out."
            )
        check_trusted(config, request.trust_code, folder)
        told = _conditions(config, folder)
        family, abstract = build_trained(config, tokens, request.mesh, told)
        params = saved.restore_weights(step, abstract, ema=request.ema)
    return TrainedModel(
        family, params, config, tokenizer, step, folder, request.mesh, conditions=told
    )


def _conditions(config, folder):
    """What a run's network is told."""
    if not config.data.condition:
        return None
    if (found := conditions.find_conditions(folder / DATA_FOLDER)) is None:
        raise BadInput(
            f"{folder} lacks its {DATA_FOLDER}/{conditions.FILE}, the conditions "
            f"{config.data.condition} that it was trained with; copy it there."
        )
    return found


def _load_published_run(folder, request):
    if request.step is not None:
        raise BadInput(
            f"{folder} is a run of the published training script: leave the step out, or load a "
            "checkpoint by its path, RUN/checkpoints/checkpoint_N.pth."
        )
    return _load_state_dict(published_run, folder, request._replace(ema=True), ema=request.ema)


def _load_state_dict(layout, folder, request, **options):
    """A state dict of PyTorch with its config, as the module `layout` reads them."""
    if request.step is not None or not request.ema:
        raise BadInput(f"{folder} is in a PyTorch layout, which has one set of weights.")
    found = layout.read_config(folder)
    try:
        config = from_published(found)
    except BadInput as error:
        path = folder / "config.json"
        raise BadInput(
            f"{path if path.is_file() else folder} describes no model: {error}"
        ) from error
    place = folder if folder.is_dir() else folder.absolute().parent.parent  # of a checkpoint
    tokenizer = request.tokenizer or _find(place / TOKENIZER_FOLDER)
    if tokenizer is None and has_gpt2_files(folder):
        tokenizer = _Found(GPT2(folder), folder)
    if layout is denoiser_layouts:
        tokenizer = _padded(tokenizer, found.tokens)
    tokenizer = _fitting(tokenizer, found.tokens, folder)
    check_trusted(config, request.trust_code, folder)
    family, abstract = build_trained(config, found.tokens, request.mesh)
    read = layout.read_params(folder, abstract, family.num_states, **options)
    params = jax.tree.map(_put, read, abstract)
    return TrainedModel(family, params, config, tokenizer, None, folder, request.mesh)


# (whether a folder has this layout, how to load it); the first match is used
_LAYOUTS = (
    # first, since it has a folder checkpoints/ too
    (published_run.is_published_run, _load_published_run),
    (has, _load_run),
    (gpt2.is_gpt2, functools.partial(_load_state_dict, gpt2)),
    (denoiser_layouts.is_denoiser, functools.partial(_load_state_dict, denoiser_layouts)),
    (pretrained.is_published, functools.partial(_load_state_dict, pretrained)),
)


def _is_whole(request, folder):
    """Returns whether a cached repository can be loaded, a GPT-2 with its tokenizer."""
    if gpt2.is_gpt2(folder) and not request.tokenizer:
        return has_gpt2_files(folder) or _has_tokenizer(folder / TOKENIZER_FOLDER)
    return any(is_it(folder) for is_it, _ in _LAYOUTS)


def build_trained(
    config: Config, tokens: int, mesh: Mesh | None, told: conditions.Conditions | None = None
) -> tuple[Family, Any]:
    """Returns a trained model's family, and the shapes, types and placement of its parameters.

    Imports what the settings name: call `check_trusted` before it with settings of somebody else.

    Args:
      config: the settings of the run.
      tokens: of the tokenizer.
      mesh: the devices; None for one.
      told: the conditions of its data.

    Raises:
      BadInput: the heads do not divide over the devices.
    """
    # the machine that trained it may have had another kind of device
    model = dataclasses.replace(config.model, attention="auto")
    here = dataclasses.replace(config, model=model)
    if mesh is not None:
        meshes.check_heads(config, mesh)
    placement = ANYWHERE if mesh is None else meshes.placement(mesh)
    family = build_family(here, tokens, placement, told)
    shapes = jax.eval_shape(family.model.init, jax.random.key(0))
    if mesh is None:
        return family, meshes.placed(shapes, SingleDeviceSharding(jax.devices()[0]))
    return family, meshes.placed(shapes, shardings(shapes, mesh))


def _put(array, abstract):
    # in parts: no device receives more than it holds
    return jax.make_array_from_callback(array.shape, abstract.sharding, array.__getitem__)


def _given_tokenizer(name):
    local = mirror.local(name, "The tokenizer", (*_TOKENIZER_FILES, "*.json"))
    folder = hub.folder(local, _TOKENIZER_FILES, _has_tokenizer)
    if (found := _find(folder)) is None:
        raise BadInput(
            f"There is no tokenizer in {folder}: it holds neither what Tokenizer.save writes nor "
            f"{' or '.join(' and '.join(names) for names in GPT2_FILES)} (those of GPT-2)."
        )
    return found


def _find(folder):
    tokenizer = find_tokenizer(folder)
    return None if tokenizer is None else _Found(tokenizer, folder)


def _has_tokenizer(folder):
    with contextlib.suppress(BadInput):  # tokenizer.json may be another's, its own not yet there
        return find_tokenizer(folder) is not None
    return False


def _padded(found, tokens):
    """GPT-2's tokenizer with [PAD], where a model was trained with it."""
    if found and isinstance(found.tokenizer, GPT2) and tokens == found.tokenizer.vocab_size + 1:
        return found._replace(tokenizer=found.tokenizer.padded())
    return found


def _fitting(found, tokens, folder):
    if found is None:
        return None
    tokenizer, place = found
    if tokenizer.vocab_size != tokens:
        raise BadInput(
            f"The {tokenizer.kind} tokenizer in {place} has {tokenizer.vocab_size} tokens and the "
            f"model in {folder} {tokens}; give the tokenizer that it was trained with."
        )
    return tokenizer
