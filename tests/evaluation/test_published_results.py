"""Published rows stand beside what can be compared with them."""

import pytest

from sedd_jax.evaluation.datasets import TEXT_SETS
from sedd_jax.evaluation.protocol import CONVENTIONS
from sedd_jax.evaluation.published_results import RESULTS, published
from sedd_jax.evaluation.published_samples import SAMPLES, published_samples
from sedd_jax.evaluation.record import Record

MODEL = {
    "name": "owt",
    "step": 7,
    "weights": "00",
    "length": 1024,
    "parameters": 169_000_000,
    "tokenizer": "gpt2",
}


PROTOCOL = {
    "protocol": "sedd",
    "source": "a.txt",
    "sha256": "0123456789abcdef",
    "split": "test",
    "part": "all",
    "bound": "published: mean over [t_min, 1]",
    "seed": 0,
}


def measured(name, perplexity, *, protocol=(), **model):
    figures = {
        "perplexity": perplexity,
        "perplexity_stderr": 0.12,
        "bits_per_byte": 1.5,
        "nats_per_token": 3.0,
        "stderr": 0.024,
    }
    return Record("likelihood", name, MODEL | model, PROTOCOL | dict(protocol), figures)


def models(table):
    return [(row[0], row[1].split(",")[0]) for row in table.rows]


def test_the_rows_of_the_same_size_and_protocol_stand_below():
    (table,) = published([measured("ptb", 120.0), measured("lambada", 50.0)])
    assert table.columns == ("model", "source", "LAMBADA", "PTB", "caution")
    assert table.rows[0] == (
        "owt, step 7",
        "measured, protocol sedd",
        "50.00 +- 0.12",
        "120.00 +- 0.12",
        "",
    )
    assert table.rows[1][2:4] == ("45.04", "138.43")  # GPT-2 small, Table 1 of the paper
    assert table.rows[2][2:4] == ("50.92", "114.24")  # SEDD absorb small
    assert len(table.rows) == 13
    assert all(" small, " in row[1] for row in table.rows[1:])


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"parameters": 424_000_000}, "35.66"),
        ({"protocol": {"protocol": "mdlm"}}, "51.28"),
        ({"protocol": {"bound": "exact"}}, "45.04"),
    ],
)
def test_others_have_other_rows(change, first):
    (table,) = published([measured("lambada", 50.0, **change)])
    assert table.rows[1][2] == first


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": 60_000},
        {"length": 128},
        {"tokenizer": "bytes"},
        {"protocol": {"part": "8 of 44 blocks, evenly spaced"}},
        {"protocol": {"bound": "complete: integral over [t_min, 1], prior term and final step"}},
    ],
)
def test_what_cannot_be_compared_has_no_rows_unless_they_are_asked_for(change):
    records = [measured("lambada", 50.0, **change)]
    assert published(records) == []
    bounds, others = published(records, everything=True)
    theirs = len(bounds.rows) - 1 + len(others.rows)
    assert theirs == sum("lambada" in result.figures for result in RESULTS)


def test_what_was_asked_in_another_way_has_a_row_of_its_own():
    records = [
        measured("ptb", 120.0),
        measured("lambada", 50.0, protocol={"source": "b.txt", "sha256": "other"}),
        measured("ptb", 121.0, protocol={"seed": 1}),
        measured("ptb", 122.0, protocol={"source": "c.txt", "sha256": "fedcba9876543210"}),
    ]
    (table,) = published(records)
    rows = [row[2:] for row in table.rows[:3]]
    assert rows == [
        ("50.00 +- 0.12", "120.00 +- 0.12", "seed 0"),
        ("", "121.00 +- 0.12", "seed 1"),
        ("", "122.00 +- 0.12", "seed 0, source c.txt fedcba98"),
    ]


def test_text8_is_in_bits():
    (table,) = published([measured("text8", 3.0, length=256, tokenizer="characters")])
    assert table.columns[2] == "text8, bits"
    assert table.rows[0][2] == "1.500 +- 0.012"
    assert ("SEDD absorb", "SEDD") in models(table)


def test_every_result_says_what_it_is():
    for result in RESULTS:
        assert result.figures.keys() <= {*TEXT_SETS, "heldout"}, result
        assert result.protocol in CONVENTIONS, result
        assert result.kind in ("exact", "bound", "no bound"), result
        assert result.seen in ("paper", "repository", "second-hand"), result
        assert result.source and result.length and result.size in ("small", "medium"), result
        assert result.not_comparable or not {"heldout"} & result.figures.keys(), result


def test_a_figure_without_all_terms_is_never_listed_as_a_bound():
    """GDDS, whose protocol, size and data are those of the run that is shown."""
    asked = measured("lambada", 50.0, protocol={"protocol": "duo"})
    (comparable,) = published([asked])
    assert ("Duo", "Duo") in models(comparable)
    bounds, others = published([asked], everything=True)
    named = [[model for model, _ in models(table)] for table in (comparable, bounds, others)]
    assert ["GDDS uniform" in names for names in named] == [False, False, True]
    assert others.title == "Published figures that are no bounds"
    assert others.rows[0][-1].startswith("the mean of -log p(x_0 given x_t) over t: its code omits")


def test_what_was_only_seen_second_hand_is_marked():
    (table,) = published([measured("lambada", 50.0, protocol={"protocol": "mdlm"})])
    cautions = {row[0]: row[-1] for row in table.rows}
    assert cautions["EDLM-NCE"].endswith("; seen second-hand")
    assert cautions["MDLM, by a user"].startswith("published weights")
    assert "second-hand" not in cautions["MDLM"]


def drawn(evaluations, **judge):
    large = {"tokenizer": "gpt2", "parameters": 774_030_080}
    protocol = {"length": 1024, "sampler": "tweedie", "judge": large | judge}
    return Record("quality", "tweedie", MODEL, protocol, {"evaluations": evaluations})


def test_samples_of_the_same_cost_and_scoring_model_stand_below():
    (table,) = published_samples([drawn(129)])
    assert {row[2] for row in table.rows} == {None, 128}
    assert table.rows[0][0] == "real text"
    (remdm,) = [row for row in table.rows if row[0] == "MDLM, ReMDM"]
    assert remdm[3:6] == ("42.5", "5.43", "0.057")
    assert published_samples([drawn(129, parameters=124_000_000)]) == []
    assert published_samples([drawn(64, parameters=774_030_080)])[0].rows == table.rows[:1]
    (everything,) = published_samples([drawn(3, tokenizer="bytes")], everything=True)
    assert len(everything.rows) == len(SAMPLES) > 80
