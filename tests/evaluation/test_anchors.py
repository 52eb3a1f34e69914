"""Published rows stand beside what can be compared with them."""

import pytest

from sedd_jax.evaluation.anchors import ANCHORS, published
from sedd_jax.evaluation.datasets import TEXT_SETS
from sedd_jax.evaluation.record import Record

MODEL = {
    "name": "owt",
    "step": 7,
    "weights": "00",
    "length": 1024,
    "parameters": 169_000_000,
    "tokenizer": "gpt2",
}


def measured(name, perplexity, protocol="sedd", **model):
    figures = {"perplexity": perplexity, "bits_per_byte": 1.5}
    return Record("likelihood", name, MODEL | model, {"protocol": protocol}, figures)


def models(table):
    return [(row[0], row[1].split(",")[0]) for row in table.rows]


def test_the_rows_of_the_same_size_and_protocol_stand_below():
    table = published([measured("ptb", 120.0), measured("lambada", 50.0)])
    assert table.columns == ("model", "source", "LAMBADA", "PTB", "caution")
    assert table.rows[0] == ("owt, step 7", "measured, protocol sedd", "50.00", "120.00", "")
    assert table.rows[1][2:4] == ("45.04", "138.43")  # GPT-2 small, Table 1 of the paper
    assert table.rows[2][2:4] == ("50.92", "114.24")  # SEDD absorb small
    assert len(table.rows) == 11
    assert all(" small, " in row[1] for row in table.rows[1:])


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"parameters": 424_000_000}, "35.66"),
        ({"protocol": "mdlm"}, "51.28"),
    ],
)
def test_others_have_other_rows(change, first):
    assert published([measured("lambada", 50.0, **change)]).rows[1][2] == first


@pytest.mark.parametrize(
    "change", [{"parameters": 60_000}, {"length": 128}, {"tokenizer": "bytes"}]
)
def test_what_cannot_be_compared_has_no_rows_unless_they_are_asked_for(change):
    records = [measured("lambada", 50.0, **change)]
    assert published(records) is None
    everything = published(records, everything=True)
    assert len(everything.rows) == 1 + sum("lambada" in anchor.figures for anchor in ANCHORS)


def test_text8_is_in_bits():
    table = published([measured("text8", 3.0, length=256, tokenizer="characters")])
    assert table.columns[2] == "text8, bits"
    assert table.rows[0][2] == "1.50"
    assert ("SEDD absorb", "SEDD") in models(table)


def test_the_anchors_name_data_sets():
    assert set().union(*(anchor.figures for anchor in ANCHORS)) <= TEXT_SETS.keys()
