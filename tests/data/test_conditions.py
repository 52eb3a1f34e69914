import json

import numpy as np
import pytest

from sedd_jax.data import account, column_statistics
from sedd_jax.data.conditions import FILE, Conditions, find_conditions
from sedd_jax.data.documents import Recipe
from sedd_jax.data.pipeline import batch_blocks, heldout_batches, train_batches
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import link_prepared, open_blocks, open_data
from sedd_jax.errors import BadInput

LENGTH = 4
CONDITION = "class,activity:number"
CLASSES = ("N", "EI", "IE")


def told_of(name, i):
    """What document i of a folder tells; its text says the same."""
    return {"class": CLASSES[i % 3] + name, "activity": 10.0 * i + ord(name)}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(path, condition=CONDITION, **changes):
    return Recipe(str(path), condition=condition, wrap=False, **{"heldout_fraction": 0.3} | changes)


@pytest.fixture
def folder(tmp_path):
    """Folder a, whose document i has the text i in three digits."""
    return prepared(tmp_path, "a", 30)


def prepared(tmp_path, name, count):
    rows = [{"text": f"{i:03}"} | told_of(name, i) for i in range(count)]
    path = write(tmp_path / f"{name}.jsonl", rows)
    prepare_blocks(tmp_path / name, recipe_of(path), LENGTH)
    return tmp_path / name


def expected(conditions, tokens, name):
    """The tree of blocks by their texts."""
    texts = [bytes(row[:3].tolist()).decode() for row in tokens]
    return conditions.encode([told_of(name, int(text)) for text in texts])


def check(conditions, tokens, condition, name):
    wanted = expected(conditions, tokens, name)
    assert condition.keys() == wanted.keys()
    for each in wanted:
        assert condition[each].dtype == wanted[each].dtype
        np.testing.assert_array_equal(condition[each], wanted[each])


def test_a_block_tells_what_its_document_does(folder):
    data = open_blocks(folder, LENGTH)
    assert data.conditions == find_conditions(folder)
    for blocks in (data.train, data.heldout):
        numbers = np.arange(len(blocks))[::-1]
        check(data.conditions, blocks.take(numbers), blocks.condition(numbers), "a")


def test_classes_are_sorted_and_counted_and_numbers_standardised(folder):
    label, numbers = open_blocks(folder, LENGTH).conditions.columns
    assert list(label.counts.items()) == [("EIa", 10), ("IEa", 10), ("Na", 10)]
    values = 10.0 * np.arange(30) + ord("a")
    assert numbers.count == 30
    np.testing.assert_allclose(
        (numbers.mean, numbers.std), (values.mean(), values.std()), rtol=1e-12
    )
    leaf = numbers.leaf(values[:, None])
    np.testing.assert_allclose((leaf.mean(), leaf.std()), (0, 1), atol=1e-6)
    facts = dict(account.facts(open_blocks(folder, LENGTH).manifest))
    assert facts["told class"] == "3 classes (EIa 10, IEa 10, Na 10)"
    assert facts["told activity"].startswith("numbers, mean 242, standard deviation 86.5")


def test_batches_of_training_bring_their_conditions(folder):
    data = open_blocks(folder, LENGTH)
    options = {"batch_size": 8, "seed": 3}
    with train_batches(data.train, **options) as batches:
        found = [next(batches) for _ in range(5)]
    for step, (tokens, condition) in enumerate(found):
        check(data.conditions, tokens, condition, "a")
        _, numbers = batch_blocks(data.train, **options, step=step)
        np.testing.assert_array_equal(tokens, data.train.take(numbers))
    # resumed, on one of two hosts
    with train_batches(data.train, **options, start_step=3, rows=np.arange(4, 8)) as batches:
        tokens, condition = next(batches)
    np.testing.assert_array_equal(tokens, found[3].tokens[4:])
    for name, values in condition.items():
        np.testing.assert_array_equal(values, found[3].condition[name][4:])


def test_a_mixture_has_the_classes_and_the_moments_of_all(tmp_path, folder):
    other = prepared(tmp_path, "b", 60)
    link_prepared(tmp_path / "data", f"{folder}:1,{other}:2", recipe_of(""), LENGTH)
    data = open_data(tmp_path / "data", LENGTH)
    label, numbers = data.conditions.columns
    assert list(label.counts) == ["EIa", "EIb", "IEa", "IEb", "Na", "Nb"]
    values = np.concatenate([10.0 * np.arange(30) + ord("a"), 10.0 * np.arange(60) + ord("b")])
    np.testing.assert_allclose(
        (numbers.mean, numbers.std), (values.mean(), values.std()), rtol=1e-12
    )
    with train_batches(data.train, batch_size=9, seed=0) as batches:
        tokens, condition = next(batches)
    sets, _ = batch_blocks(data.train, batch_size=9, seed=0, step=0)
    for batch in heldout_batches(data.heldout, batch_size=9):
        check_mixed(data.conditions, *batch)
    check_mixed(data.conditions, tokens, condition)
    assert set(sets) == {0, 1}


def check_mixed(conditions, tokens, condition):
    names = list(conditions.columns[0].counts)
    of_set = np.array([names[number][-1] for number in condition["class"]])
    for name in "ab":
        part = {key: values[of_set == name] for key, values in condition.items()}
        check(conditions, tokens[of_set == name], part, name)


def test_a_run_may_leave_columns_out(tmp_path, folder, capsys):
    for condition, names in [("", None), ("activity:number", ["activity"])]:
        link_prepared(tmp_path / f"data{condition}", str(folder), recipe_of("", condition), LENGTH)
        data = open_data(tmp_path / f"data{condition}", LENGTH)
        assert (data.conditions and data.conditions.names) == names
        batch = next(heldout_batches(data.heldout, batch_size=2))
        assert isinstance(batch, np.ndarray) if names is None else list(batch.condition) == names
    assert "no effect" not in capsys.readouterr().err
    with pytest.raises(BadInput, match="which lacks colour:label; set it to what is there"):
        link_prepared(tmp_path / "c", str(folder), recipe_of("", "colour"), LENGTH)


def prepare(tmp_path, rows, condition=CONDITION, **changes):
    path = write(tmp_path / "x.jsonl", rows)
    return prepare_blocks(tmp_path / "x", recipe_of(path, condition, **changes), LENGTH)


def test_classes_of_different_types_are_refused(tmp_path, monkeypatch):
    rows = [{"text": f"{i}", "class": "1"} for i in range(5)] + [{"text": "x", "class": 1}]
    with pytest.raises(BadInput, match=r"x.jsonl, line 6: .*different types, int \(1\) and str"):
        prepare(tmp_path, rows, "class")
    # in two pieces
    monkeypatch.setattr("sedd_jax.data.documents.PIECE_BYTES", 30)
    with pytest.raises(BadInput, match="different types"):
        prepare(tmp_path, rows, "class")


def test_too_many_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(column_statistics, "MAX_CLASSES", 3)
    rows = [{"text": f"{i}", "class": i} for i in range(4)]
    with pytest.raises(BadInput, match="more than 3 classes and is probably a number or an id"):
        prepare(tmp_path, rows, "class")


def test_vectors_of_several_lengths_are_refused(tmp_path):
    rows = [{"text": "a", "v": [1, 2]}, {"text": "b", "v": [1]}]
    with pytest.raises(BadInput, match=r"line 2: The vector 'v' has 2 entries, and here 1"):
        prepare(tmp_path, rows, "v:vector")


@pytest.mark.parametrize("rows", [[1e200, 2e200], [[1e300, -1e300]], [[1e308, 1e308]]])
def test_numbers_that_are_too_large_are_refused(tmp_path, rows):
    rows = [{"text": "a", "v": value} for value in rows]
    kind = "vector" if isinstance(rows[0]["v"], list) else "number"
    with pytest.raises(BadInput, match=r"line [12]: .*'v', whose numbers are too large"):
        prepare(tmp_path, rows, f"v:{kind}")


def test_rows_that_tell_nothing_are_refused_or_left_out(tmp_path):
    rows = [{"text": f"{i}", "class": "ab"[i % 2]} for i in range(9)] + [{"text": "x"}]
    with pytest.raises(BadInput, match=r"x.jsonl, line 10 tells no 'class', which .*; mend it"):
        prepare(tmp_path, rows, "class")
    data = prepare(tmp_path, rows, "class", bad_documents="skip")
    assert data.manifest["skipped"] == {"tells no 'class', which config.data.condition names": 1}


def test_a_class_of_held_out_documents_alone_is_refused(tmp_path):
    heldout = write(tmp_path / "h.jsonl", [{"text": "abc", "class": "c"}])
    rows = [{"text": f"{i}", "class": "ab"[i % 2]} for i in range(9)]
    with pytest.raises(
        BadInput, match=r"h.jsonl, line 1 .*no class 'c' of 'class'; there are a, b"
    ):
        prepare(tmp_path, rows, "class", heldout_corpus=str(heldout))


def test_a_damaged_file_is_refused(folder):
    path = next(folder.glob("train-*.told"))
    content = path.read_bytes()
    for wrong, message in [(content[:-8], "holds 328 bytes where"), (content[::-1], "SHA-256")]:
        path.write_bytes(wrong)
        with pytest.raises(BadInput, match=message):
            open_blocks(folder, LENGTH)
    path.write_bytes(content)
    (folder / FILE).write_text("{}")
    with pytest.raises(BadInput, match=f"{FILE} is damaged"):
        find_conditions(folder)


def test_values_are_told_by_name(folder):
    conditions = find_conditions(folder)
    tree = conditions.encode([{"class": "Na", "activity": 242.0}, {"activity": None}, {}])
    assert tree["class"].tolist() == [2, -1, -1]
    np.testing.assert_array_equal(np.isnan(tree["activity"][:, 0]), [False, True, True])
    assert abs(tree["activity"][0, 0]) < 1e-6
    assert conditions.parse("class=Na, activity=242") == {"class": "Na", "activity": "242"}
    assert conditions.every({"class": "Na"}) == {"class": "Na", "activity": None}
    assert conditions.every({"activity": "242"}) == {"class": None, "activity": 242.0}
    assert Conditions.from_json(json.loads(json.dumps(conditions.to_json()))) == conditions
    for text, message in [
        ("class=X", "There is no class 'X' of 'class'; there are EIa, IEa, Na"),
        ("colour=red", "no condition 'colour'; it has class, activity"),
        ("activity=nan", "no finite number in 'activity' but nan"),
        ("activity=1e300", "number in 'activity' that is too large once it is standardised"),
        ("class=Na,class=EIa", "tells each column once"),
        ("Na", "written NAME=VALUE"),
    ]:
        with pytest.raises(BadInput, match=message):
            conditions.parse(text)


def test_a_vector_in_a_text_may_have_commas(tmp_path):
    rows = [{"text": f"{i}", "v": [i, 1.0], "class": "a"} for i in range(5)]
    conditions = prepare(tmp_path, rows, "v:vector,class").conditions
    assert conditions.parse("v=1,2,class=a") == {"v": "1,2", "class": "a"}
    assert conditions.encode([{"v": "1,2"}])["v"].shape == (1, 2)
    assert conditions.constant == ["class"]
