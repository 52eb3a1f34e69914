"""Likelihoods by protocol: against plain forward passes, and read again instead of computed."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.data.tokenizer import Bytes, Characters
from sedd_jax.display.table import markdown
from sedd_jax.errors import BadInput
from sedd_jax.evaluation import likelihood, summary
from sedd_jax.evaluation.catalog import DatasetCatalog
from sedd_jax.evaluation.likelihood import load_sets, measure
from sedd_jax.evaluation.protocol import Choices
from sedd_jax.evaluation.record import read_records
from sedd_jax.evaluation.summary import tables
from sedd_jax.experiment.config import Config, ModelConfig
from sedd_jax.inference.build import build_family
from sedd_jax.inference.likelihood import NLLEstimate, nll_bound
from sedd_jax.inference.load import load
from sedd_jax.inference.model import TrainedModel
from sedd_jax.system import processes

END, LENGTH = 256, 8
DOCUMENTS = ["the mill", "", "it turned and turned"]  # 31 tokens with their ends
CHOICES = Choices(draws=2, max_blocks=8)


@pytest.fixture
def catalog(tmp_path):
    """A PTB of our own."""
    path = tmp_path / "ptb.test.txt"
    path.write_text("".join(f"{line}\n" for line in DOCUMENTS))
    (tmp_path / "ptb.valid.txt").write_text(path.read_text())
    return DatasetCatalog(tmp_path)


@pytest.fixture(scope="module")
def causal():
    """An autoregressive model whose distributions depend on what came before."""
    sizes = ModelConfig(hidden_size=8, num_blocks=1, num_heads=2, length=LENGTH, dtype="float32")
    config = Config(family="autoregressive", model=sizes)
    components = build_family(config, Bytes.vocab_size)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(components.model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.float32(0.4 * rng.standard_normal(x.shape)), shapes)
    return TrainedModel(components, params, config, Bytes(), step=3)


@pytest.fixture(scope="module")
def diffusion(smoke_run):
    return load(smoke_run)


def stream():
    return [token for text in DOCUMENTS for token in (*text.encode(), END)]


def scored_sedd():
    """Blocks, and those of their tokens that are scored after an end-of-text: all."""
    rows = [stream()[start : start + LENGTH] for start in range(0, 31, LENGTH)]
    return [[END, *row] for row in rows]


def scored_mdlm():
    room = LENGTH - 2
    return [[END, *stream()[start : start + room], END] for start in range(0, 31, room)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "rows", "tokens", "first"),
    [
        ("sedd", scored_sedd(), 31, "scored, after the token that precedes every text in training"),
        (
            "mdlm",
            scored_mdlm(),
            31 + 6,
            "the token that precedes every text in training, given and not scored",
        ),
    ],
)
def test_a_causal_perplexity_is_that_of_a_full_forward_pass(
    causal, catalog, tmp_path, protocol, rows, tokens, first
):
    total = 0.0
    for row in rows:
        logits = np.asarray(causal.model.apply(causal.params, jnp.array([row[:-1]])), np.float64)[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= log_probs[np.arange(len(row) - 1), row[1:]].sum()
    choices = Choices(protocol=protocol)
    (eval_set,) = load_sets(causal, ["ptb"], catalog, choices)
    (record,) = measure(causal, [eval_set], choices, tmp_path / "out", batch_size=2)
    figures = record.figures
    assert figures["nats_per_token"] == pytest.approx(total / tokens, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    utf8_bytes = len("".join(DOCUMENTS))
    assert figures["bits_per_byte"] == pytest.approx(total / math.log(2) / utf8_bytes, rel=1e-5)
    counts = {name: figures[name] for name in ("tokens", "blocks", "documents", "bytes")}
    expected = {"tokens": tokens, "blocks": len(rows), "documents": 3, "bytes": utf8_bytes}
    assert counts == expected
    assert (figures["exact"], figures["stderr"], figures["by_t"]) == (True, 0.0, [])
    assert figures["data_stderr"] > 0
    assert len(figures["nats_by_block"]) == len(rows)
    assert sum(figures["nats_by_block"]) == pytest.approx(total, abs=1e-3)
    assert record.protocol["first_token"] == first
    nothing = {name: record.protocol[name] for name in ("t", "draws", "t_min", "seed")}
    assert set(nothing.values()) == {None}  # so that any seed finds the answer again


def test_a_bound_is_that_of_the_rows_and_is_read_the_next_time(
    diffusion, catalog, tmp_path, monkeypatch
):
    (eval_set,) = load_sets(diffusion, ["ptb"], catalog, CHOICES)
    (record,) = measure(diffusion, [eval_set], CHOICES, tmp_path, batch_size=4)
    rows = np.zeros((1, 32), np.int32)
    rows[0, :31] = stream()
    key = jax.random.key(CHOICES.seed)
    bound = nll_bound(key, diffusion, rows, lengths=[31], draws=2, batch_size=4)
    assert record.figures["nats_per_token"] == pytest.approx(bound.nats_per_token, rel=1e-6)
    assert record.figures["perplexity_stderr"] == pytest.approx(bound.perplexity_stderr)
    monkeypatch.setattr(likelihood, "nll_bound", None)  # nothing is computed
    (again,) = measure(diffusion, [eval_set], CHOICES, tmp_path, batch_size=2)
    assert again.figures["perplexity"] == record.figures["perplexity"]
    assert len(read_records(tmp_path)) == 1


@pytest.fixture
def no_network(monkeypatch):
    """A likelihood of one nat a token, whatever is asked."""

    def nll_bound(key, checkpoint, tokens, *, lengths, **options):
        return NLLEstimate(np.float64(lengths)[None], lengths, "low-discrepancy")

    monkeypatch.setattr(likelihood, "nll_bound", nll_bound)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"draws": 3}, {"times": "quadrature"}, {"complete": True}, {"max_blocks": 7}],
)
def test_another_query_has_another_file(diffusion, catalog, tmp_path, no_network, change):
    other = dataclasses.replace(CHOICES, **change)
    for choices in (CHOICES, other, CHOICES, other):
        (eval_set,) = load_sets(diffusion, ["heldout"], catalog, choices)
        (record,) = measure(diffusion, [eval_set], choices, tmp_path)
        assert record.figures["tokens"] == 32 * (choices.max_blocks or 0)
        assert record.figures["perplexity"] == pytest.approx(math.e)
    first, second = read_records(tmp_path)
    assert first.model == second.model
    assert first.protocol != second.protocol


def test_the_held_out_split_is_scored_to_its_last_token(diffusion, catalog, tmp_path, no_network):
    (eval_set,) = load_sets(diffusion, ["heldout"], catalog, Choices())
    (record,) = measure(diffusion, [eval_set], Choices(), tmp_path)
    figures = record.figures
    manifest = json.loads((diffusion.folder / "data" / "manifest.json").read_text())
    counts = manifest["splits"]["heldout"]
    assert figures["tokens"] == counts["tokens"]
    assert figures["tokens"] % 32  # the remainder is in it
    assert (figures["documents"], figures["bytes"]) == (counts["documents"], counts["utf8_bytes"])


def test_bits_per_byte_of_a_text_that_the_tokenizer_changes_are_marked(
    diffusion, catalog, tmp_path, no_network, monkeypatch
):
    plain = measure(diffusion, load_sets(diffusion, ["ptb"], catalog, CHOICES), CHOICES, tmp_path)
    monkeypatch.setattr(Bytes, "exact", False)
    monkeypatch.setattr(Bytes, "decode", lambda self, ids: "".join(map(chr, ids)).replace("a", ""))
    sets = load_sets(diffusion, ["ptb"], catalog, CHOICES)
    (record,) = measure(diffusion, sets, CHOICES, tmp_path)  # the figures are known already
    lost = "".join(DOCUMENTS).count("a") / len("".join(DOCUMENTS))
    assert record.figures["lost_characters"] == pytest.approx(lost)
    assert "notes" not in plain[0].figures
    tables = {table.title: table for table in summary.tables([record])}
    assert any(f"{lost:.2%}" in row for table in tables.values() for row in table.rows)
    (notes,) = (table.rows for title, table in tables.items() if "notes" in title)
    assert "no code length" in notes[0][0]
    older = likelihood._losses(sets[0].blocks._replace(lost=math.nan))
    assert list(older) == ["notes"] and "may change" in older["notes"][0]


def test_a_record_says_all_that_was_chosen(diffusion, catalog, tmp_path, no_network):
    (eval_set,) = load_sets(diffusion, ["ptb"], catalog, CHOICES)
    measure(diffusion, [eval_set], CHOICES, tmp_path)
    (path,) = tmp_path.glob("likelihood-ptb-*.json")
    record = json.loads(path.read_text())
    sha256 = record["protocol"].pop("sha256")
    assert len(sha256) == 64
    assert record["protocol"] == {
        "protocol": "sedd",
        "source": "ptb.test.txt",
        "split": "test",
        "detokenizer": "ptb",
        "wrap": True,
        "end_of_text": "after every document",
        "length": 32,
        "part": "all",
        "remainder": "scored, padded and masked out",
        "first_token": "scored",
        "t": "low-discrepancy",
        "draws": 2,
        "t_min": 1e-3,
        "bound": "published: mean over [t_min, 1]",
        "seed": 0,
        "tokenizer": Bytes().fingerprint(),
        "estimator": 2,
    }
    assert record["model"]["parameters"] == sum(x.size for x in jax.tree.leaves(diffusion.params))


def test_another_estimator_or_protocol_is_computed_again(diffusion, catalog, tmp_path, no_network):
    (eval_set,) = load_sets(diffusion, ["ptb"], catalog, CHOICES)
    files = set()
    for change in ({}, {"estimator": 1}, {"protocol": "mdlm"}):
        other = eval_set._replace(protocol=dataclasses.replace(eval_set.protocol, **change))
        files |= {record.file for record in measure(diffusion, [other], CHOICES, tmp_path)}
    assert len(files) == 3


def test_a_record_of_another_query_is_refused(diffusion, catalog, tmp_path, no_network):
    (eval_set,) = load_sets(diffusion, ["ptb"], catalog, CHOICES)
    (record,) = measure(diffusion, [eval_set], CHOICES, tmp_path)
    path = tmp_path / record.file
    for change in ({"figures": {}}, {"model": record.model | {"step": 99}}):
        path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(record, **change))))
        with pytest.raises(BadInput, match="it has another protocol, or no figures.; move it away"):
            measure(diffusion, [eval_set], CHOICES, tmp_path)


@pytest.mark.parametrize("times", ["low-discrepancy", "quadrature"])
def test_the_error_of_one_block_cannot_be_told(
    diffusion, catalog, tmp_path, monkeypatch, capsys, times
):
    draws = 1 if times == "low-discrepancy" else 2
    (eval_set,) = load_sets(
        diffusion, ["ptb"], catalog, choices := Choices(draws=draws, times=times)
    )
    bound = NLLEstimate(np.ones((draws, 1)), np.array([31]), times)
    monkeypatch.setattr(likelihood, "nll_bound", lambda *_, **__: bound)
    (record,) = measure(diffusion, [eval_set], choices, tmp_path)
    assert math.isnan(record.figures["stderr"])
    assert "ptb: one block has no standard error" in capsys.readouterr().err
    assert not any("nan" in markdown(table) for table in tables([record]))


def test_processes_with_other_data_or_settings_are_told(
    diffusion, catalog, tmp_path, no_network, monkeypatch
):
    """The facts that processes compare tell texts, cuts and settings apart."""
    told = []
    monkeypatch.setattr(
        processes, "assert_equal_across_processes", lambda facts, words: told.append(facts)
    )

    def facts(names=("ptb",), choices=CHOICES, **options):
        sets = load_sets(diffusion, names, catalog, choices)
        measure(diffusion, sets, choices, tmp_path / "out", **options)
        return told[-1]

    first = facts()
    assert first == facts()
    others = [
        facts(choices=dataclasses.replace(CHOICES, seed=1)),
        facts(batch_size=4),
        facts(averaged=False),
        facts(names=("heldout",)),
        facts(names=()),
    ]
    (tmp_path / "ptb.test.txt").write_text("the mull\n")
    others.append(facts())
    assert len({first, *others}) == 7


def test_draws_that_cannot_be_are_refused_at_once():
    with pytest.raises(BadInput, match="at least 2 nodes"):
        Choices(draws=1, times="quadrature")


def test_what_cannot_be_scored_is_refused_before_anything_is_computed(causal, catalog):
    choices = Choices()
    with pytest.raises(BadInput, match="ptb is text, and the checkpoint has no tokenizer"):
        load_sets(dataclasses.replace(causal, tokenizer=None), ["ptb"], catalog, choices)
    letters = dataclasses.replace(causal, tokenizer=Characters("xyz"))
    with pytest.raises(BadInput, match="ptb, ptb.test.txt: The text has .* outside the alphabet"):
        load_sets(letters, ["ptb"], catalog, choices)
    with pytest.raises(BadInput, match="has no data/ of a run"):
        load_sets(causal, ["heldout"], catalog, choices)


def test_a_model_that_is_not_finite_leaves_no_record(causal, catalog, tmp_path):
    broken = dataclasses.replace(causal, params=jax.tree.map(lambda x: x * jnp.nan, causal.params))
    (eval_set,) = load_sets(broken, ["ptb"], catalog, Choices())
    with pytest.raises(FloatingPointError, match="not finite"):
        measure(broken, [eval_set], Choices(), tmp_path / "out", batch_size=2)
    assert not (tmp_path / "out").exists()
