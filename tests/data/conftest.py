"""What tests of several modules need: the rule of the split, and data sets of TFDS."""

import hashlib
import sys

import numpy as np
import pytest

from sedd_jax.data.corpus_statistics import cut
from sedd_jax.data.documents import Fault, Recipe
from sedd_jax.data.sources import pieces


@pytest.fixture(scope="session")
def split_documents():
    """(documents, fraction) to (train, heldout), the order kept.

    Distinct texts are held out in the order of their SHA-256 until the fraction of all characters
    is reached, at least one is left on each side, and a single one is cut.
    """
    return _split_documents


def _split_documents(documents, fraction):
    by_digest = sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(by_digest) < 2:
        halves = [cut(document, fraction) for document in documents]
        return [head for head, _ in halves], [tail for _, tail in halves]
    wanted = fraction * sum(map(len, documents))
    heldout, characters = set(), 0
    for text in by_digest[:-1]:
        if characters >= wanted:
            break
        heldout.add(text)
        characters += documents.count(text) * len(text)
    return (
        [document for document in documents if document not in heldout],
        [document for document in documents if document in heldout],
    )


@pytest.fixture(scope="session")
def load_documents():
    """(corpus, separator) to the texts, the bad ones left out."""

    def load(corpus, separator=""):
        contents = (
            document.content
            for piece in pieces(Recipe(separator=separator), corpus)
            for document in piece.documents()
        )
        return [content for content in contents if not isinstance(content, Fault)]

    return load


@pytest.fixture(scope="session")
def write_tfds():
    """(folder, splits, number of shards) to the folder of a data set; a split is its columns."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Small(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        # TFDS would look for files beside this one.
        url_infos = code_path = splits = None

        def _info(self):
            columns = next(iter(self.splits.values()))
            kinds = {
                name: tfds.features.Text() if isinstance(values[0], str) else np.int64
                for name, values in columns.items()
            }
            features = tfds.features.FeaturesDict(kinds)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(split) for name, split in self.splits.items()}

        def _generate_examples(self, columns):
            for number, row in enumerate(zip(*columns.values(), strict=True)):
                yield number, dict(zip(columns, row, strict=True))

    def write(folder, splits, num_shards):
        Small.splits = splits
        builder = Small(data_dir=folder, file_format="array_record")
        config = tfds.download.DownloadConfig(num_shards=num_shards)
        builder.download_and_prepare(download_config=config)
        return builder.data_path

    yield write
    assert "tensorflow" not in sys.modules
