import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sedd_jax.data import documents as documents_module
from sedd_jax.data.documents import BLANK, Fault, Recipe
from sedd_jax.data.sources import pieces
from sedd_jax.errors import BadInput

TEXTS = [f"document {i} é 😀" for i in range(200)]
TOO_LARGE = Fault("is larger than the 1 MB of config.data.max_document_mb")


def read(corpus, **settings):
    """All documents of `corpus` as (content, place)."""
    parts = pickle.loads(pickle.dumps(pieces(Recipe(**settings), str(corpus))))
    assert len({part.name for part in parts}) == len(parts)
    assert all(part.version() and part.size > 0 for part in parts)
    return [(d.content, part.place(d.where)) for part in parts for d in part.documents()]


def write_parquet(path, column, **settings):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"id": list(range(len(column))), "text": column})
    pyarrow.parquet.write_table(table, path, **settings)


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "string_view"])
def test_a_row_of_a_parquet_file_is_a_document(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.array(TEXTS, getattr(pa, kind)()), row_group_size=70)
    expected = [(text, f"{path}, record {i + 1}") for i, text in enumerate(TEXTS)]
    assert len(pieces(Recipe(), str(path))) == 3
    assert read(path) == expected


def test_a_parquet_column_of_few_distinct_texts(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.array(["a", "b", "a"]).dictionary_encode())
    assert [content for content, _ in read(path)] == ["a", "b", "a"]


def test_bad_rows_of_a_parquet_file_are_faults(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.array([b"a", None, b"", b"na\xefve", b"x" * 2**20, b"y" * (2**20 + 1)]))
    assert [content for content, _ in read(path, max_document_mb=1)] == [
        "a",
        Fault("has no text in the field 'text'", " but NoneType"),
        BLANK,
        Fault("is not UTF-8 text", ": the byte at offset 2 of the field 'text' does not decode"),
        "x" * 2**20,
        TOO_LARGE,
    ]


@pytest.mark.parametrize("kind", ["list_", "large_list", "fixed"])
@pytest.mark.parametrize("item", ["uint8", "int32", "uint64"])
def test_lists_of_integers_in_a_parquet_column_are_ids(tmp_path, kind, item):
    pa = pytest.importorskip("pyarrow")
    value = getattr(pa, item)()
    type_ = pa.list_(value, 2) if kind == "fixed" else getattr(pa, kind)(value)
    path = tmp_path / "a.parquet"
    rows = [[i % 100, 7] for i in range(150)]
    write_parquet(path, pa.array([*rows, None, [1, None]], type_))
    *found, missing, hole = [content for content, _ in read(path)]
    assert [ids.tolist() for ids in found] == rows
    assert missing == Fault("has no text in the field 'text'", " but NoneType")
    message = "has neither text nor a list of integers in the field 'text': None at position 1"
    assert hole.reason == message


def test_a_parquet_file_without_the_field_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ["x"])
    with pytest.raises(
        BadInput, match="a.parquet has no field 'body' but id, text; set config.data.field"
    ):
        read(path, field="body")
    with pytest.raises(
        BadInput, match="The field 'id' of .*a.parquet has the type int64, neither text nor a list"
    ):
        read(path, field="id")


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, TEXTS, use_dictionary=False, compression="none", write_page_checksum=True)
    content = path.read_bytes()
    for damaged in (
        content[:-50],
        b"no table",
        b"",
        content.replace(b"document 77", b"document 99"),  # only the sum of the page tells
    ):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="a.parquet is damaged, cut short or of another"):
            read(path)


def test_memory_is_flat_in_the_size_of_a_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{i} " + "word " * 200 for i in range(20_000)]
    write_parquet(path, texts, use_dictionary=False, compression="none", data_page_size=2**16)
    code = (
        "import sys, pyarrow; from sedd_jax.data.columns import Fields; "
        "from sedd_jax.data.tables import parquet;"
        "(part,) = parquet(sys.argv[1], Fields('text'), 2**20);"
        "print(sum(len(d.content) for d in part.documents()));"
        "print(pyarrow.default_memory_pool().max_memory())"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    characters, peak = map(int, done.stdout.split())
    assert characters == sum(map(len, texts)) > 20_000_000
    assert 0 < peak < 6 * 2**20


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory, write_tfds):
    """A data set of TFDS with TEXTS in "train" and two texts in "test", in two shards each."""
    train, test = ({"text": texts, "number": range(len(texts))} for texts in (TEXTS, ["a", "b"]))
    return write_tfds(tmp_path_factory.mktemp("tfds"), {"train": train, "test": test}, 2)


def test_the_examples_of_a_tfds_folder_are_documents(tfds_folder, monkeypatch):
    corpus = f"tfds:{tfds_folder}"
    expected = [(text, f"{corpus}, example {i + 1}") for i, text in enumerate(TEXTS)]
    assert read(corpus) == expected
    monkeypatch.setattr(documents_module, "PIECE_BYTES", 1000)
    assert len(pieces(Recipe(), corpus)) > 5
    assert read(corpus) == expected
    corpus = f"tfds:{tfds_folder}:test"
    assert read(corpus) == [("a", f"{corpus}, example 1"), ("b", f"{corpus}, example 2")]
    corpus = f"tfds:{tfds_folder}:train[:50%]"
    assert read(corpus) == [
        (text, f"{corpus}, example {i + 1}") for i, text in enumerate(TEXTS[:100])
    ]


@pytest.mark.parametrize("damage", ["cut", "lengthened", "empty", "gone", "flipped", "another"])
def test_a_damaged_shard_of_a_tfds_data_set_is_named(tfds_folder, tmp_path, damage):
    folder = shutil.copytree(tfds_folder, tmp_path / "1.0.0")
    shard = folder / "small-train.array_record-00001-of-00002"
    content = shard.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "lengthened": content + b"more",
        "empty": b"",
        "flipped": content[:500] + bytes([content[500] ^ 255]) + content[501:],
    }
    damaged["another"] = (folder / "small-test.array_record-00000-of-00002").read_bytes()
    shard.unlink()
    if damage in damaged:
        shard.write_bytes(damaged[damage])
    reason = {
        "flipped": "example 1..: Corrupted Riegeli/records file",
        "another": "it does not have the 100 records that dataset_info.json says",
    }.get(damage, "no record is found in it")
    with pytest.raises(BadInput, match=f"train.array_record-00001-of-00002 is damaged.*{reason}"):
        read(f"tfds:{folder}")
    assert len(read(f"tfds:{folder}:train[:50%]")) == 100  # without that shard


def test_a_registered_tfds_data_set_is_found_by_its_name(tfds_folder, monkeypatch):
    import tensorflow_datasets

    # Where TFDS looks when nothing else is said.
    monkeypatch.setattr(
        tensorflow_datasets.core.utils.file_utils.constants, "DATA_DIR", str(tfds_folder.parents[1])
    )
    for name in ("small", "small:1.0.0", "small:1.*.*"):
        assert [content for content, _ in read(f"tfds:{name}:test")] == ["a", "b"]
        assert len(read(f"tfds:{name}")) == len(TEXTS)


def test_a_tfds_data_set_that_cannot_be_opened_is_named(tfds_folder):
    for rest, reason in (
        (":valid", "Unknown split 'valid'"),
        (":train[:50%", "Error parsing split"),
        ("x", "'tfds build .*x --file_format=array_record' and give the folder"),
        (":", "check the name, the split and"),
    ):
        with pytest.raises(BadInput, match=f"The corpus tfds:.* cannot be opened .*{reason}"):
            pieces(Recipe(), f"tfds:{tfds_folder}{rest}")
    with pytest.raises(BadInput, match="has no field 'body' but "):
        pieces(Recipe(field="body"), f"tfds:{tfds_folder}")
    assert read(f"tfds:{tfds_folder}", field="number")[0][0] == Fault(
        "has no text in the field 'number'", " but int"
    )
    with pytest.raises(BadInput) as caught:
        pieces(Recipe(), "tfds:no_such_data_set")
    assert "\n" not in str(caught.value) and "no_such_data_set not found" in str(caught.value)


def test_a_package_that_a_tfds_data_set_lacks_is_named(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def builder(name, file_format):
        raise ModuleNotFoundError("No module named 'parser'", name="parser")

    monkeypatch.setattr(tfds, "builder", builder)
    with pytest.raises(BadInput, match="tfds:x needs one more package .*: pip install parser"):
        pieces(Recipe(), "tfds:x")


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("hf")
    train = datasets.Dataset.from_dict({"text": [*TEXTS, None, " "], "id": list(range(202))})
    train.save_to_disk(folder / "one")
    test = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict(train=train, test=test).save_to_disk(folder / "two")
    return folder


def test_the_rows_of_a_saved_dataset_are_documents(hub_folder, monkeypatch):
    contents = [*TEXTS, Fault("has no text in the field 'text'", " but NoneType"), BLANK]
    for name in ("one", "two", "two:train"):
        corpus = f"hf:{hub_folder}/{name}"
        expected = [(text, f"{corpus}, example {i + 1}") for i, text in enumerate(contents)]
        assert read(corpus) == expected
        with monkeypatch.context() as patch:
            patch.setattr(documents_module, "PIECE_BYTES", 1000)
            assert len(pieces(Recipe(), corpus)) == 5
            assert read(corpus) == expected
    assert [content for content, _ in read(f"hf:{hub_folder}/two:test")] == ["a", "b"]


def test_a_damaged_file_of_a_saved_dataset_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    datasets.Dataset.from_dict({"text": TEXTS * 15}).save_to_disk(tmp_path / "one")
    (path,) = (tmp_path / "one").glob("*.arrow")
    content = path.read_bytes()
    with pa.memory_map(str(path)) as file:
        pa.ipc.open_stream(file).read_next_batch()
        batch = file.tell()
    # cut after a batch the package itself reads 1,000 of the 3,000 rows and says nothing
    for damaged in (content[:batch], content[:-1], content[:500], b"", content + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(
            BadInput, match="arrow is damaged.*does not begin and end as a stream of"
        ):
            read(f"hf:{tmp_path / 'one'}")


def test_an_offset_into_nowhere_of_a_saved_dataset_is_damage(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "one")
    (path,) = (tmp_path / "one").glob("*.arrow")
    content = path.read_bytes()
    offsets = np.cumsum([0, *(len(text.encode()) for text in TEXTS)]).astype("<i4")
    begin = content.index(offsets.tobytes())
    for number, wrong in ((70, 2**30), (199, -5)):  # which the package itself follows
        offsets[number] = wrong
        path.write_bytes(content[:begin] + offsets.tobytes() + content[begin + offsets.nbytes :])
        with pytest.raises(BadInput, match="one, example 65 or a later one is damaged, cut short"):
            read(f"hf:{tmp_path / 'one'}")
    path.write_bytes(content.replace("document 77 é".encode(), b"document 77 \xff\xff"))
    (bad,) = [
        (found, place) for found, place in read(f"hf:{tmp_path / 'one'}") if found not in TEXTS
    ]
    assert bad[0].kind == "is not UTF-8 text" and bad[1].endswith("one, example 78")


def test_a_name_on_the_hub_is_split_into_its_parts(hub_folder, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return datasets.load_from_disk(hub_folder / "one")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for corpus in ("hf:owner/name", "hf:owner/name/config:train[:10%]"):
        assert len(pieces(Recipe(), corpus)) == 1
    assert asked == [("owner/name", "train"), ("owner/name", "config", "train[:10%]")]


def test_a_saved_dataset_that_cannot_be_opened_is_named(hub_folder, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    for name, reason in (
        ("one:test", "it has no splits"),
        ("two:valid", "valid"),
        ("", "neither a `Dataset` directory nor"),
    ):
        with pytest.raises(BadInput, match=f"The corpus hf:.*cannot be opened .*{reason}"):
            pieces(Recipe(), f"hf:{hub_folder}/{name}")
    with pytest.raises(BadInput, match="has no field 'body' but text, id; set config.data.field"):
        pieces(Recipe(field="body"), f"hf:{hub_folder}/one")

    def load_dataset(*names, split):
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BadInput, match=r"cannot be opened \(Couldn't reach the Hub\); check the"):
        pieces(Recipe(), "hf:owner/name")


def test_lists_of_integers_of_a_saved_dataset_are_ids(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [[1, 2, 3], [4], [-5]]
    datasets.Dataset.from_dict({"ids": rows}).save_to_disk(tmp_path / "a")
    one, two, fault = [content for content, _ in read(f"hf:{tmp_path / 'a'}", field="ids")]
    assert [one.tolist(), two.tolist()] == rows[:2]
    assert fault.reason == "has a negative id: -5 at position 0"


@pytest.mark.parametrize(
    ("corpus", "package", "requirement"),
    [
        ("tfds:x", "tensorflow_datasets", "tensorflow-datasets"),
        ("hf:x/y", "datasets", r'"sedd_jax\[hub\]"'),
    ],
)
def test_a_missing_package_is_named(monkeypatch, corpus, package, requirement):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        BadInput, match=f"{corpus} needs the package {package}: pip install {requirement}"
    ):
        pieces(Recipe(), corpus)
