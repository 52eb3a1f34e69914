import dataclasses
import json

import pytest

from sedd_jax.data.characters import Bytes
from sedd_jax.errors import BadInput
from sedd_jax.experiment import card
from sedd_jax.experiment.config import Config, ModelConfig, NoiseConfig, TrainConfig

ROWS = [
    {"step": 10, "loss": 3.0},
    {"step": 10, "bound": 2.5, "bound_stderr": 0.01, "perplexity": 12.18, "bits_per_byte": 1.2},
    {"step": 20, "bound": 2.75, "bound_stderr": 0.02, "perplexity": 15.64, "bits_per_byte": 1.5},
    {"step": 20, "sample_0": "text | with a bar"},
]
MANIFEST = {
    "format": 2,
    "recipe": {"heldout_fraction": 0.1, "wrap": True},
    "sources": [
        {"corpus": "corpus", "name": "/home/someone/a|b.txt[0:9000]", "size": 9000},
        {"corpus": "corpus", "name": "/home/someone/a|b.txt[9000:12345]", "size": 3345},
    ],
    "skipped": {"is blank": 2},
    "splits": {"train": {"documents": 3, "utf8_bytes": 12345, "tokens": 6000}},
}


def known(**changes):
    return card.RunFacts(
        **{
            "config": Config(
                model=ModelConfig(length=32), train=TrainConfig(batch_size=4), seed=17
            ),
            "parameters": 1234567,
            "tokenizer": Bytes(),
            "step": 20,
            "manifest": MANIFEST,
            "rows": ROWS,
            "weights": "averaged",
        }
        | changes
    )


def cells(text):
    """The rows of all tables, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]


def test_the_facts_are_those_of_the_files():
    rows = cells(card.card(known(), "owner/name"))
    for fact in (
        ["Kind", "score entropy discrete diffusion (SEDD), graph absorb"],
        ["Noise", "loglinear, eps 0.001"],
        ["Parameters", "1,234,567, the padding of the vocabulary included"],
        ["Length", "32 tokens"],
        ["Tokenizer", "bytes, 257 tokens"],
        ["Weights", "averaged"],
        ["Source", r"a\|b.txt"],
        ["Blocks", "documents in a row"],
        ["Left out", "2 documents: each is blank"],
        ["Held out", "0.1 of the text, whole documents"],
        ["Split train", "3 documents, 6,000 tokens, 12,345 bytes"],
        ["Steps", "20 of 4 sequences, 2,560 tokens in all"],
        ["Seed", "17"],
        ["last", "20", "2.7500", "0.0200", "15.6400", "1.5000"],
        ["best", "10", "2.5000", "0.0100", "12.1800", "1.2000"],
    ):
        assert fact in rows


def test_bits_per_byte_of_a_changed_text_say_so():
    rows = [row | {"lost_characters": 0.125} for row in ROWS]
    assert "no code length" not in card.card(known(), "a/b")
    text = card.card(known(rows=rows), "a/b")
    assert "Bits per byte (of a text that the tokenizer changes: 12.50% of its cha" in text


def test_the_front_matter_is_what_the_hub_reads():
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card.card(known(), "owner/name")).data.to_dict()
    assert data == {
        "library_name": "sedd_jax",
        "tags": ["text-generation", "jax", "sedd", "discrete-diffusion"],
    }


def test_the_same_files_give_the_same_card_and_it_loads_by_its_name():
    text = card.card(known(), "owner/name")
    assert text == card.card(known(), "owner/name")
    assert text.startswith("---\n")
    assert "\n# name\n" in text
    assert "--checkpoint=owner/name\n" in text and 'sedd.load("owner/name")' in text


def test_what_is_not_known_is_not_told():
    text = card.card(known(step=None, manifest=None, rows=[], tokenizer=None), "owner/name")
    for title in ("Data", "Training", "Held-out", "Tokenizer", "Weights"):
        assert title not in text
    assert "Parameters" in text


def test_other_models_are_called_by_their_names():
    config = dataclasses.replace(
        Config(),
        graph="uniform",
        noise=NoiseConfig(schedule="geometric"),
        model=ModelConfig(scale_by_sigma=False),
    )
    facts = dict(card.model_facts(known(config=config)))
    assert facts["Kind"].endswith("graph uniform")
    assert facts["Noise"] == "geometric, sigma from 0.0001 to 20"
    softmax = ModelConfig(scale_by_sigma=False, output="leave_one_out")
    facts = dict(card.model_facts(known(config=dataclasses.replace(config, model=softmax))))
    assert facts["Kind"] == (
        "discrete diffusion, a softmax that leaves its position out, graph uniform"
    )
    facts = dict(card.model_facts(known(config=Config(family="autoregressive"))))
    assert facts["Kind"] == "autoregressive transformer"
    assert "Noise" not in facts


def test_sets_prepared_apart_are_told_one_after_the_other():
    sources = [{"corpus": "heldout_corpus", "name": f"{i}.txt", "size": 1000} for i in range(7)]
    entries = [
        {"folder": "/data/owt", "weight": 3.0, "manifest": {"sources": sources}},
        {"folder": "books", "weight": 0.5, "manifest": MANIFEST},
    ]
    assert card.data_facts({"prepared": entries})[:4] == [
        ("Prepared data", "owt, weight 3"),
        (
            "Source of what is held out",
            "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more",
        ),
        ("Prepared data", "books, weight 0.5"),
        ("Source", "a|b.txt"),
    ]


def test_large_losses_of_the_data_are_warnings():
    counts = {"documents": 3, "tokens": 300, "cut_off": 700}
    facts = dict(card.data_facts({"splits": {"train": counts}}))
    assert facts["Split train"] == "3 documents, 300 tokens, 700 more tokens cut off"
    assert facts["Warning"].startswith("70% of the tokens are cut off")


def test_a_run_that_did_not_start_from_nothing_says_so():
    facts = card.training_facts(known(config=Config(train=TrainConfig(initial="/runs/first"))))
    assert facts[0] == ("Started from", "first")
    assert "Started from" not in dict(card.training_facts(known()))


def test_the_baseline_has_a_likelihood_and_its_own_call():
    rows = [{"step": 20, "nll": 2.5, "nll_stderr": 0.01, "perplexity": 12.18, "bits_per_byte": 1}]
    text = card.card(known(config=Config(family="autoregressive"), rows=rows), "run")
    assert ["last", "20", "2.5000", "0.0100", "12.1800", "1.0000"] in cells(text)
    assert "sedd.generate(" in text and "bound" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/a.txt[0:5]", "a.txt[0:5]"),
        ("tfds:/home/me/lm1b/1.0.0:test", "tfds:1.0.0:test"),
        ("../data/owt:3,/big/books:1", "owt:3,books:1"),
        ("hf:owner/data:train", "hf:owner/data:train"),
        ("data/owt", "data/owt"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("gs://bucket/data/owt:3,/big/books:1", "gs://bucket/data/owt:3,books:1"),
    ],
)
def test_a_copy_names_no_folders_of_this_machine(text, expected):
    assert card.without_folders({"a": [{"b": text}], "c": 1}) == {"a": [{"b": expected}], "c": 1}


def test_the_card_is_made_anew_and_another_is_left(tmp_path, capsys):
    path = tmp_path / "README.md"
    card.write_card(tmp_path, known(step=10), "run")
    card.write_card(tmp_path, known(), "run")
    assert path.read_text() == card.card(known(), "run")
    path.write_text("My own words.")
    card.write_card(tmp_path, known(), "run")
    assert path.read_text() == "My own words."
    assert "and is kept" in capsys.readouterr().out


def test_the_history_ends_with_the_step(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(MANIFEST))
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3']) + "\n")
    found = card.find_records(tmp_path)
    assert card.read_history(found, 10) == {"step": 10, "manifest": MANIFEST, "rows": ROWS[:2]}
    assert card.read_history(found, None)["rows"] == []
    assert card.read_history({}, 3) == {"step": 3, "manifest": None, "rows": []}
    found["manifest.json"].write_text('{"format": ')
    with pytest.raises(BadInput, match="data/manifest.json is damaged or no JSON"):
        card.read_history(found, 10)


def test_a_run_ends_with_its_card(smoke_run):
    rows = cells((smoke_run / "README.md").read_text())
    assert ["Steps", "20 of 16 sequences, 10,240 tokens in all"] in rows
    assert [row[:2] for row in rows if row[0] in ("last", "best")] == [
        ["last", "20"],
        ["best", "20"],
    ]
