import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sedd_jax.data.documents import Recipe
from sedd_jax.data.pipeline import batch_blocks, heldout_batches, train_batches
from sedd_jax.data.preparation import prepare_blocks
from sedd_jax.data.prepared import check_name, link_prepared, open_blocks, open_data
from sedd_jax.data.token_blocks import Mixture
from sedd_jax.errors import BadInput

LENGTH = 8
ANY = Recipe(vocab_size=0)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Two prepared folders, a of lower case and B of upper case letters."""
    monkeypatch.chdir(tmp_path)
    for name, lines in (("a", 90), ("B", 60)):
        corpus = tmp_path / f"{name}.txt"
        corpus.write_text("\n".join(f"{name * 7}{i}" for i in range(lines)))
        prepare_blocks(name, Recipe(corpus=str(corpus), separator="\n"), LENGTH)
    return tmp_path


def test_one_folder_is_just_that_folder(prepared):
    link_prepared("run/data", "a", ANY, LENGTH)
    linked, direct = open_data("run/data", LENGTH), open_blocks(prepared / "a", LENGTH)
    assert linked.manifest == direct.manifest
    assert repr(linked.train) == repr(direct.train)
    manifest = json.loads((prepared / "run" / "data" / "manifest.json").read_text())
    (entry,) = manifest["prepared"]
    assert entry == {"folder": str(prepared / "a"), "weight": 1.0, "manifest": direct.manifest}
    assert (prepared / "run" / "data" / "tokenizer" / "tokenizer.json").is_file()
    link_prepared("run/data", "a", ANY, LENGTH)  # again, after a kill before the run began
    with pytest.raises(BadInput, match="links to other data than B"):
        link_prepared("run/data", "B", ANY, LENGTH)


def test_a_mixture_draws_on_each_set_by_its_weight(prepared):
    link_prepared("data", "a:3,B:1", ANY, LENGTH)
    dataset = open_data("data", LENGTH)
    assert isinstance(dataset.train, Mixture)
    alone = [open_blocks(name, LENGTH) for name in "aB"]
    options = {"batch_size": 10, "seed": 5}
    with train_batches(dataset.train, **options) as batches:
        rows = np.concatenate([next(batches) for _ in range(60)])
    named = [batch_blocks(dataset.train, **options, step=step) for step in range(60)]
    sets, numbers = (np.concatenate(parts) for parts in zip(*named, strict=True))
    for start in (0, 100, 333):  # evenly all along
        assert abs((sets[start : start + 100] == 0).sum() - 75) <= 1
    for number, single in enumerate(alone):
        own = rows[sets == number]
        np.testing.assert_array_equal(own, single.train.take(numbers[sets == number]))
        # the order of a set is the one it has alone, epochs and all
        with train_batches(single.train, batch_size=1, seed=5) as batches:
            order = np.concatenate([next(batches) for _ in range(len(own))])
        np.testing.assert_array_equal(own, order)
        assert len(own) > len(single.train)  # into another epoch
    # a jump, in rows of its own, to the same tokens
    with train_batches(dataset.train, **options, start_step=41, rows=np.array([2, 7])) as batches:
        np.testing.assert_array_equal(next(batches), rows[410:420][[2, 7]])


def test_a_random_grid_moves_each_set_in_its_own_epochs(prepared):
    link_prepared("data", "a:1,B:1", ANY, LENGTH)
    mixture = open_data("data", LENGTH).train
    with train_batches(mixture, batch_size=4, seed=5, crop="random") as batches:
        rows = np.concatenate([next(batches) for _ in range(120)])
    sets, _ = batch_blocks(mixture, batch_size=480, seed=5, step=0)
    for number, single in enumerate(mixture.sets):
        count = int((sets == number).sum())
        with train_batches(single, batch_size=1, seed=5, crop="random") as batches:
            order = np.concatenate([next(batches) for _ in range(count)])
        np.testing.assert_array_equal(rows[sets == number], order)


def test_held_out_blocks_come_by_weight_too(prepared):
    link_prepared("data", "a:3,B:1", ANY, LENGTH)
    dataset = open_data("data", LENGTH)
    (batch,) = heldout_batches(dataset.heldout, batch_size=8, max_blocks=8)
    lower = [dataset.tokenizer.decode(row).count("B") == 0 for row in batch]
    assert lower == [True] * 6 + [False] * 2
    parts = [open_blocks(name, LENGTH).manifest["splits"]["heldout"] for name in "aB"]
    expected = 0.75 * parts[0]["bytes_per_token"] + 0.25 * parts[1]["bytes_per_token"]
    assert dataset.manifest["splits"]["heldout"]["bytes_per_token"] == pytest.approx(expected)
    assert dataset.manifest["splits"]["train"]["utf8_bytes"] == sum(
        open_blocks(name, LENGTH).manifest["splits"]["train"]["utf8_bytes"] for name in "aB"
    )


def test_the_order_of_a_mixture_stays_what_it_was(prepared):
    link_prepared("data", "a:3,B:1", ANY, LENGTH)
    mixture = open_data("data", LENGTH).train
    sets, numbers = batch_blocks(mixture, batch_size=8, seed=3, step=10**6)
    assert (sets.tolist(), numbers.tolist()) == RECORDED


# Written down on 2026-11-22 with Grain 0.2.18; see test_pipeline.py.
RECORDED = ([0, 0, 0, 1, 0, 0, 0, 1], [24, 50, 37, 15, 23, 46, 78, 38])


@pytest.mark.parametrize("text", ["a:x", "a:0", "a:-1", "a:1,a:2", ":3", "a,", "a:inf", "a:nan"])
def test_what_names_no_folders_with_weights_is_refused(prepared, text):
    with pytest.raises(BadInput, match="give a folder, or different folders with positive weights"):
        link_prepared("data", text, ANY, LENGTH)


@pytest.mark.parametrize(
    ("changes", "length", "message"),
    [
        ({"tokenizer": "text8"}, 8, "config.data.tokenizer=bytes, but it is text8 here; set it to"),
        (
            {"vocab_size": 300},
            8,
            "config.data.vocab_size=257, but it is 300 here.*sedd_jax.prepare",
        ),
        ({"wrap": False}, 8, "config.data.wrap=True, but it is False here"),
    ],
)
def test_data_for_other_settings_are_refused(prepared, changes, length, message):
    with pytest.raises(BadInput, match=message):
        link_prepared("data", "a", Recipe(**{"vocab_size": 0, **changes}), length)
    assert not (prepared / "data").exists()


def test_unwrapped_data_have_one_length(prepared):
    recipe = Recipe(corpus=str(prepared / "a.txt"), separator="\n", wrap=False)
    prepare_blocks("c", recipe, LENGTH)
    link_prepared("data", "c", recipe, LENGTH)
    with pytest.raises(BadInput, match="with config.model.length=8, but it is 16 here"):
        link_prepared("other", "c", recipe, 16)


def test_settings_that_the_data_do_not_have_are_told(prepared, capsys):
    link_prepared("data", "a", Recipe(vocab_size=0, separator=r"\n"), LENGTH)
    assert not capsys.readouterr().err
    given = {"separator": "|", "heldout_fraction": 0.5, "bad_documents": "refuse"}
    link_prepared("other", "a", Recipe(vocab_size=0, **given), LENGTH)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: config.data.{name} has no effect: a was prepared with {there}."
        for name, there in (("separator='|'", r"'\n'"), ("heldout_fraction=0.5", "0.1"))
    ]


def test_data_that_are_not_there_are_asked_for(prepared):
    message = "no prepared data are there.*python -m sedd_jax.prepare --config=CONFIG --output=owt"
    with pytest.raises(BadInput, match=message):
        link_prepared("data", "owt", ANY, LENGTH)


def test_the_data_of_another_run_are_not_taken_for_prepared_ones(prepared):
    link_prepared("data", "a:3,B:1", ANY, LENGTH)
    with pytest.raises(BadInput, match="data is the data/ of a run, which links to .*/a and .*/B"):
        link_prepared("other", "data", ANY, LENGTH)


def test_data_may_move_but_not_change(prepared, monkeypatch):
    link_prepared("data", "a:3,B:1", ANY, LENGTH)
    shutil.move("B", "C")
    with pytest.raises(BadInput, match="links to other data than a:3,C:2, or with other weights"):
        link_prepared("data", "a:3,C:2", ANY, LENGTH)
    link_prepared("data", "a:3,C:1", ANY, LENGTH)
    monkeypatch.chdir(prepared / "C")  # from anywhere
    assert [Path(e["folder"]).name for e in open_data("../data", LENGTH).manifest["prepared"]] == [
        "a",
        "C",
    ]


def test_a_tokenizer_that_is_given_must_be_that_of_the_data(prepared):
    for name in "aB":
        given = {"corpus": f"{name}.txt", "separator": "\n", "tokenizer": "characters"}
        prepare_blocks(f"{name}2", Recipe(vocab_size=0, **given), LENGTH)
    recipe = Recipe(vocab_size=0, tokenizer="characters", tokenizer_path="a2/tokenizer")
    link_prepared("data", "a2", recipe, LENGTH)
    with pytest.raises(
        BadInput, match="B2 was prepared with another tokenizer than that of .*a2/tok"
    ):
        link_prepared("other", "B2", recipe, LENGTH)


@pytest.mark.parametrize("name", ["a,b", "data:3", "data:x"])
def test_names_that_the_config_could_not_give_are_refused(name):
    with pytest.raises(BadInput, match=f"{name} cannot be named in config.data.prepared"):
        check_name(name)
    check_name("c:/data")


def test_sets_of_different_tokenizers_are_not_mixed(prepared):
    recipe = Recipe(corpus=str(prepared / "a.txt"), separator="\n", tokenizer="characters")
    for name in "aB":
        changes = {"corpus": str(prepared / f"{name}.txt"), "tokenizer": "characters"}
        prepare_blocks(f"{name}2", Recipe(separator="\n", vocab_size=0, **changes), LENGTH)
    recipe = Recipe(tokenizer="characters", vocab_size=0)
    with pytest.raises(BadInput, match="a2 and B2 were prepared with different tokenizers"):
        link_prepared("data", "a2,B2", recipe, LENGTH)


def test_data_that_are_gone_or_changed_are_told(prepared):
    link_prepared("data", "a:3,B:1", ANY, LENGTH)
    shutil.move("B", "C")
    with pytest.raises(
        BadInput, match="data of this run are gone: .*/B was named in data/manifest"
    ):
        open_data("data", LENGTH)
    shutil.copytree("a", "B")
    with pytest.raises(BadInput, match="B holds other data than those this run began with"):
        open_data("data", LENGTH)
    shutil.rmtree("B")
    shutil.move("C", "B")
    assert len(open_data("data", LENGTH).train) > 0
