"""What lm-evaluation-harness asks, answered without it; `tests/test_lm_eval.py` runs it."""

import dataclasses
import importlib
import sys

import jax
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.characters import Characters, Integers
from sedd_jax.errors import BadInput
from sedd_jax.evaluation import harness
from sedd_jax.evaluation.catalog import Text
from sedd_jax.evaluation.harness import Backend
from sedd_jax.evaluation.harness_settings import Settings, settings_from, texts_from
from sedd_jax.evaluation.protocol import CONVENTIONS, of_text

TEXTS = ["the first text, of more than a block of the model of sixteen", "a second"]
ALPHABET = "".join(map(chr, range(257)))


def backend(model, **settings):
    return Backend(model, Settings("", **settings))


@pytest.mark.parametrize("name", ["causal", pytest.param("tiny", marks=pytest.mark.slow)])
def test_a_text_has_the_likelihood_that_evaluate_finds(name, request):
    """In the same blocks, with the same draws, where a text has no end-of-text token."""
    model = request.getfixturevalue(name)
    tokenizer = Characters(ALPHABET, eod=False)
    model = dataclasses.replace(model, tokenizer=tokenizer)
    (found,) = backend(model, seed=3, draws=2).loglikelihood_rolling(TEXTS[:1])
    length = model.config.model.length
    frame = CONVENTIONS["sedd"](length, None, model.family.exact_likelihood)
    blocks = of_text(Text("", "test", "none", TEXTS[:1]), tokenizer, frame)
    bound = sedd.nll_bound(jax.random.key(3), model, blocks.tokens, lengths=blocks.lengths, draws=2)
    assert found == pytest.approx(-bound.nats.mean(0).sum(), rel=1e-6)
    if model.family.exact_likelihood:  # one text does not see another
        both = backend(model).loglikelihood_rolling(TEXTS)
        alone = [backend(model).loglikelihood_rolling([text])[0] for text in TEXTS]
        np.testing.assert_allclose(both, alone, rtol=1e-5)
        with pytest.raises(BadInput, match="Text 2 is empty"):
            backend(model).loglikelihood_rolling(["a", ""])


def test_without_the_harness_an_import_says_what_to_install(monkeypatch):
    for name in ("lm_eval", "lm_eval.models"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sedd_jax.lm_eval", raising=False)
    with pytest.raises(BadInput, match=r'needs the package lm_eval: pip install "sedd_jax\[lm_ev'):
        importlib.import_module("sedd_jax.lm_eval")


@pytest.fixture
def asked(monkeypatch):
    """Backends that ask no network, and what they ask of it."""
    calls = {}

    def record(name, answer):
        def call(key, model, rows, **options):
            calls[name] = rows, options
            return answer(rows)

        monkeypatch.setattr(harness, name, call)

    record("continuation_nll", lambda rows: np.arange(len(rows)) + 0.5)
    record("found_greedily", lambda rows: np.arange(len(rows)) % 2 == 1)
    record("complete", lambda contexts: [f"text {i}" for i in range(len(contexts))])
    return calls


def test_choices_of_one_question_share_their_random_numbers(tiny, asked, capsys):
    pairs = [("Once", " upon"), ("Once", " more"), ("x" * 40, "abc"), ("", "abc")]
    questions = [("task", 0), ("task", 0), ("task", 1), ("task", 2)]
    found = backend(tiny, draws=3, times="quadrature").loglikelihood(pairs, questions)
    assert found == [(-0.5, False), (-1.5, True), (-2.5, False), (-3.5, True)]
    rows, options = asked["continuation_nll"]
    numbers = [row.question for row in rows]
    assert numbers[0] == numbers[1] and len(set(numbers)) == 3
    assert [len(row.row) for row in rows] == [9, 9, 32, 4]
    assert (options["draws"], options["times"], options["difference"]) == (3, "quadrature", False)
    assert asked["found_greedily"][1]["sampler"] == "confidence"
    warning = "1 contexts were longer than the model's 32 tokens leave room for"
    assert capsys.readouterr().err.count(warning) == 1


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("Once", ""), r"Request 2 \(\('task', 1\)\): The continuation is empty"),
        (("Once", "x" * 33), r"Request 2 .*: The continuation has 33 tokens, more than .* 32"),
    ],
)
def test_a_pair_that_cannot_be_scored_is_named(tiny, asked, pair, message):
    with pytest.raises(BadInput, match=message):
        backend(tiny).loglikelihood([("a", "b"), pair], [("task", 0), ("task", 1)])
    assert not asked


def test_what_is_not_asked_is_not_found_out(tiny, asked):
    settings = {"greedy": False, "conditional": "difference"}
    found = backend(tiny, **settings).loglikelihood([("a", "b")], ["question"])
    assert found == [(-0.5, False)] and "found_greedily" not in asked
    assert asked["continuation_nll"][1]["difference"]
    described = backend(tiny, **settings).describe()
    assert described["loglikelihood"].endswith("no bound")
    assert described["is_greedy"] == "not asked for, said to be False"


def test_texts_have_the_settings_of_their_task(tiny, asked, capsys):
    texts = backend(tiny, block=8, steps=5).generate_until(
        ["Once", "x" * 40], ["a", "b"], until=["\n"], max_tokens=20, temperature=0.5, top_p=0.9
    )
    assert texts == ["text 0", "text 1"]
    _, options = asked["complete"]
    wanted = {"sampler": "first_hitting", "steps": 5, "top_p": 0.9, "temperature": 0.5, "block": 8}
    assert wanted.items() <= options.items() and len(set(options["numbers"])) == 2
    assert capsys.readouterr().err.count("1 contexts were longer") == 1
    backend(tiny).generate_until(["Once"], ["a"], until=[], max_tokens=20)
    assert asked["complete"][1]["temperature"] == 0
    assert asked["complete"][1]["sampler"] == "confidence"


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, ([], 256, None)),
        ({"until": "\n", "max_gen_toks": 5}, (["\n"], 5, None)),
        ({"until": ["a"], "max_new_tokens": 6, "do_sample": False}, (["a"], 6, 0.0)),
        ({"do_sample": False, "temperature": 0.7}, ([], 256, 0.0)),
        ({"do_sample": True}, ([], 256, 1.0)),
        ({"do_sample": True, "temperature": 0.7}, ([], 256, 0.7)),
        ({"temperature": 0}, ([], 256, 0.0)),
    ],
)
def test_generation_arguments(kwargs, wanted):
    found = texts_from(kwargs | {"top_p": 0.5})
    assert found.pop("top_p") == 0.5
    assert tuple(found[name] for name in ("until", "max_tokens", "temperature")) == wanted


def test_a_generation_argument_without_meaning_is_named():
    with pytest.raises(BadInput, match="'num_beams' means nothing here; there are until, max_gen"):
        texts_from({"num_beams": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "--model_args checkpoint=FOLDER is needed"),
        ({"checkpoint": "x", "device": "y"}, "no model argument 'device'; there are checkpoint, "),
        ({"checkpoint": "x", "pretrained": "y"}, "two names of one argument: give one"),
        ({"pretrained": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"checkpoint": "x", "draws": "many"}, "draws='many' must be of type int"),
        ({"checkpoint": "x", "draws": True}, "draws=True must be of type int"),
        ({"checkpoint": "x", "ema": 1}, "ema=1 must be of type bool"),
        ({"checkpoint": "x", "checkpoint_step": 1.5}, "checkpoint_step=1.5 must be of type int or"),
        ({"checkpoint": "x", "draws": 0}, "draws must be at least 1"),
        ({"checkpoint": "x", "times": "even"}, "times must be one of low-discrepancy"),
        ({"checkpoint": "x", "conditional": "both"}, "conditional must be one of held, difference"),
        ({"checkpoint": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_a_model_argument_that_is_wrong_is_named(arguments, message):
    with pytest.raises(BadInput, match=message):
        Backend.load(settings_from(arguments))


def test_settings_that_a_model_does_not_have_are_named(tiny, causal):
    assert settings_from({"checkpoint": "x", "temperature": 1, "checkpoint_step": 7}).draws == 64
    for model, settings, message in [
        (causal, {"conditional": "difference"}, "is for discrete diffusion models"),
        (causal, {"sampler": "tweedie"}, "sampler means nothing to autoregressive models"),
        (tiny, {"sampler": "nonsense"}, "nonsense"),
        (dataclasses.replace(tiny, tokenizer=Integers(257)), {}, "no tokenizer for text"),
        (dataclasses.replace(tiny, tokenizer=None), {}, "no tokenizer for text"),
    ]:
        with pytest.raises(BadInput, match=message):
            backend(model, **settings)


def test_the_record_says_what_the_figures_are(tiny, causal):
    found = backend(tiny).describe()
    assert found["loglikelihood"] == "a bound, that of the reverse process with the context held"
    assert (found["family"], found["draws"], found["t_min"]) == ("diffusion", 64, 1e-3)
    assert "confidence" in found["is_greedy"]
    exact = backend(causal).describe()
    assert exact["loglikelihood"] == "exact" and "draws" not in exact
