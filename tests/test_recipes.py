"""The named recipes: from a corpus of the same form, small and local, to a batch of tokens.

OpenWebText and One Billion Words cannot be had here: a Hugging Face folder and a TFDS builder of
the same columns stand for them.
"""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from sedd_jax.data.pipeline import train_batches
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.experiment.config import parse

GPT2 = Path(__file__).parents[2] / "shared" / "data" / "gpt2_bpe"
WORDS = ["the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be"]


def sentences(count, seed=0):
    draws = np.random.default_rng(seed)
    return [" ".join(draws.choice(WORDS, draws.integers(5, 30))) for _ in range(count)]


def text8(folder):
    (folder / "text8").write_text(" ".join(sentences(300)))
    return {"corpus": str(folder / "text8")}


def openwebtext(folder):
    datasets = pytest.importorskip("datasets")
    if not GPT2.is_dir():
        pytest.skip("GPT-2's vocabulary is not here")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    datasets.Dataset.from_dict({"text": sentences(400)}).save_to_disk(folder / "owt")
    gpt2 = {"tokenizer_path": str(GPT2), "heldout_fraction": 0.4}
    return {"corpus": f"hf:{folder / 'owt'}", **gpt2}


def lm1b(folder):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Lm1bLike(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = code_path = None  # TFDS would look for files beside this one

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

        def _generate_examples(self, seed):
            yield from enumerate({"text": text} for text in sentences(300, seed))

    builder = Lm1bLike(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    where = f"tfds:{folder / 'lm1b_like' / '1.0.0'}"
    return {"corpus": where, "heldout_corpus": f"{where}:test", "vocab_size": 300}


def dna(folder):
    draws = np.random.default_rng(0)
    letters = ["".join(draws.choice(list("acgt"), 1024)) for _ in range(40)]
    records = [f">chr1:{i}\n{text[:600]}\n{text[600:]}\n" for i, text in enumerate(letters)]
    (folder / "sequences.fa").write_text("".join(records) + ">short\nACGT\n>unknown\n" + "N" * 1024)
    return {"corpus": str(folder / "sequences.fa")}


RECIPES = {
    "text8_absorb": text8,
    "text8_uniform": text8,
    "owt_small": openwebtext,
    "owt_medium_uniform": openwebtext,
    "ar_small": openwebtext,
    "lm1b": lm1b,
    "lm1b_unwrapped": lm1b,
    "dna_uniform": dna,
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """What each corpus changes in the settings of a recipe that reads it; made once."""
    made = {}

    def corpus(make):
        if make not in made:
            made[make] = make(tmp_path_factory.mktemp(make.__name__))
        return made[make]

    return corpus


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_batches_of_its_model(name, corpora, tmp_path):
    config = parse(importlib.import_module(f"configs.{name}").get_config())
    recipe = dataclasses.replace(config.data, **corpora(RECIPES[name]))
    length = config.model.length
    dataset = prepare_blocks(tmp_path / "data", recipe, length)
    vocab_size = dataset.tokenizer.vocab_size
    assert recipe.vocab_size in (0, vocab_size)
    with train_batches(dataset.train, batch_size=4, seed=0, crop=recipe.crop) as batches:
        batch = next(batches)
    assert batch.shape == (4, length)
    assert 0 <= batch.min() <= batch.max() < vocab_size
    known = set("ACGT") if name == "dna_uniform" else set(" ".join([*WORDS, "<|endoftext|>"]))
    assert set(dataset.tokenizer.decode(batch[0])) <= known


def test_a_sentence_a_block_is_filled_up_with_ends(corpora, tmp_path):
    config = parse(importlib.import_module("configs.lm1b_unwrapped").get_config())
    recipe = dataclasses.replace(config.data, **corpora(lm1b))
    dataset = prepare_blocks(tmp_path / "data", recipe, config.model.length)
    assert len(dataset.train) == 300 and len(dataset.heldout) == 300
    block, end = dataset.train[7], dataset.tokenizer.eod_id
    text, _, filling = dataset.tokenizer.decode(block).partition("<|endoftext|>")
    assert text in sentences(300)
    assert block[-1] == end and set(filling.split("<|endoftext|>")) == {""}


def test_sequences_that_are_no_dna_or_too_short_are_counted(corpora, tmp_path):
    config = parse(importlib.import_module("configs.dna_uniform").get_config())
    recipe = dataclasses.replace(config.data, **corpora(dna))
    prepare_blocks(tmp_path / "data", recipe, config.model.length)
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert sorted(manifest["skipped"].values()) == [1, 1]
    assert sum(split["documents"] for split in manifest["splits"].values()) == 40
