"""What a manifest says of prepared data, in words."""

import re

import pytest

from sedd_jax.data import account

COUNTS = {
    "documents": 20,
    "tokens": 3000,
    "characters": 1990,
    "utf8_bytes": 2000,
    "bytes_per_token": 2 / 3,
    "filling": 1000,
    "cut_off": 0,
}


def test_every_count_is_told(capsys):
    counts = COUNTS | {"cut_off": 123}
    splits = {"train": COUNTS | {"documents": 1}, "heldout": counts}
    manifest = {"splits": splits, "skipped": {"is blank": 2}}
    manifest["passed_by"] = {".md": 1200, **{f".{i}": 1 for i in range(9)}}
    told = "3,000 tokens, 1,990 characters, 2,000 bytes, 0.667 bytes a token, 1,000 "
    account.tell(manifest)
    assert capsys.readouterr().out.splitlines() == [
        f"train:    1 document, {told}tokens are filling",
        f"heldout:  20 documents, {told}tokens are filling, 123 more tokens cut off",
        "left out: 2 documents: each is blank",
        "passed by: 1,209 files (.md 1,200, .0 1, .1 1, .2 1, .3 1, .4 1, .5 1, .6 1, others 2)",
    ]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"splits": {"train": COUNTS | {"cut_off": 250}}}, "11% of the tokens .*wrap=True"),
        ({"splits": {"train": COUNTS}, "skipped": {"is x": 40}}, "40 of 60 documents are left out"),
    ],
)
def test_a_large_loss_is_a_warning(manifest, message, capsys):
    (warning,) = account.warnings(manifest)
    assert re.search(message, warning)
    account.tell(manifest)
    assert capsys.readouterr().err == f"warning: {warning}\n"


def test_files_without_documents_are_named():
    found = [("corpus", "a.txt[0:9]", 0), ("corpus", "a.txt[9:12]", 3), ("corpus", "b.txt", 0)]
    found += [("heldout_corpus", "b.txt", 2), ("heldout_corpus", "tfds:x:train[:5%][0:7]", 0)]
    sources = [{"corpus": corpus, "name": name} for corpus, name, _ in found]
    contents = {
        name: {
            "pieces": [
                {"documents": count, "sha256": f"{name} {file}"}
                for corpus, file, count in found
                if corpus == name
            ]
        }
        for name in ("corpus", "heldout_corpus")
    }
    manifest = {"splits": {"train": COUNTS}, "sources": sources, "contents": contents}
    message = "b.txt and 1 more have no document that can be used."
    assert account.warnings(manifest) == [message]
    contents["heldout_corpus"]["pieces"][1]["documents"] = 1
    assert account.warnings(manifest) == ["b.txt has no document that can be used."]


def test_a_file_that_is_held_out_and_trained_on_is_told():
    pieces = [{"sha256": digest, "documents": 3} for digest in "abc"]
    contents = {"corpus": {"pieces": pieces[:2]}, "heldout_corpus": {"pieces": pieces[1:]}}
    sources = [{"corpus": name, "name": it} for name in contents for it in "xy"]
    (warning,) = account.warnings({"contents": contents, "sources": sources})
    assert warning.startswith("3 documents that are held out are trained on too: files of held")


def test_a_small_loss_is_none_and_folders_follow_each_other(capsys):
    manifest = {"splits": {"train": COUNTS | {"cut_off": 200}}, "skipped": {"is blank": 2}}
    assert account.warnings(manifest) == []
    entries = [{"folder": name, "weight": 2.0, "manifest": manifest} for name in ("a", "b")]
    account.tell({"prepared": entries})
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 6 and told[0] == "a, weight 2:" and told[3] == "b, weight 2:"
