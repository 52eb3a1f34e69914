import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from sedd_jax.data.tokenizer import Characters
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.record import Record, describe_model, find_cached, read_records, save
from sedd_jax.inference.load import load
from sedd_jax.system import mirror

QUERY = Record("likelihood", "ptb", {"weights": "a1"}, {"draws": 16, "seed": 0})


def test_a_record_is_found_by_its_own_query_and_no_other(tmp_path):
    assert find_cached(tmp_path, QUERY) is None
    record = dataclasses.replace(QUERY, figures={"perplexity": 50.9, "by_t": [[0.0, 1.0, 4.0]]})
    save(tmp_path, record)
    assert find_cached(tmp_path, QUERY) == record
    for change in ({"protocol": {"draws": 16, "seed": 1}}, {"model": {"weights": "b2"}}):
        other = dataclasses.replace(QUERY, **change)
        assert find_cached(tmp_path, other) is None
        save(tmp_path, other)
    assert len(read_records(tmp_path)) == 3
    assert find_cached(tmp_path, QUERY) == record


def test_a_record_is_uploaded_when_it_is_saved(memory_bucket):
    record = dataclasses.replace(QUERY, figures={"perplexity": 50.9})
    with mirror.opened("gs://bucket/run/evaluations", "--output") as folder:
        save(folder, record)
        assert memory_bucket.objects.keys() == {f"run/evaluations/{QUERY.file}"}
    with mirror.opened("gs://bucket/run/evaluations", "--output") as folder:
        mirror.pull(folder)
        assert find_cached(folder, QUERY) == record


def test_the_order_of_settings_makes_no_other_query():
    turned = dataclasses.replace(QUERY, protocol={"seed": 0, "draws": 16})
    assert turned.file == QUERY.file


def test_a_file_that_is_no_record_is_named_and_costs_the_others_nothing(tmp_path, capsys):
    other = dataclasses.replace(QUERY, name="lambada")
    save(tmp_path, other)
    path = tmp_path / QUERY.file
    wrong = (b'{"kind": "likelihood"', b'{"other": 1}', b"[]", b"\xff", _text(model=[]))
    for text in wrong:
        path.write_bytes(text)
        assert read_records(tmp_path) == [other]
        assert f"Left out: {path} is not a record" in capsys.readouterr().err
        with pytest.raises(BadInput, match=QUERY.file):
            find_cached(tmp_path, QUERY)


def _text(**changes):
    return json.dumps(dataclasses.asdict(QUERY) | changes).encode()


def test_numbers_that_json_lacks_come_back_and_texts_stay(tmp_path):
    inf = float("inf")
    figures = {"perplexity": inf, "by_t": [[0.0, -inf]], "texts": ["nan"], "notes": ["of nan"]}
    record = dataclasses.replace(QUERY, figures=figures)
    save(tmp_path, record)
    assert find_cached(tmp_path, QUERY) == record
    save(tmp_path, dataclasses.replace(QUERY, figures={"stderr": float("nan")}))
    assert math.isnan(find_cached(tmp_path, QUERY).figures["stderr"])


def test_other_weights_are_another_model(smoke_run):
    averaged, trained = (load(smoke_run, ema=ema) for ema in (True, False))
    known = describe_model(averaged, averaged=True)
    assert known["name"] == smoke_run.name
    assert (known["step"], known["graph"], known["tokenizer"]) == (20, "absorb", "bytes")
    assert (known["noise"], known["dtype"]) == ("loglinear, eps 0.001", "float32")
    assert known["weights"] != describe_model(trained, averaged=True)["weights"]
    again = dataclasses.replace(averaged, params=jax.tree.map(lambda x: x + 0, averaged.params))
    assert describe_model(again, averaged=True) == known
    softmax = dataclasses.replace(averaged.config.model, output="denoiser", scale_by_sigma=False)
    masked = dataclasses.replace(
        averaged, config=dataclasses.replace(averaged.config, model=softmax)
    )
    assert describe_model(masked, averaged=True) == known | {"output": "denoiser"}
    alphabet = dataclasses.replace(averaged, tokenizer=Characters("ab"))
    assert describe_model(alphabet, averaged=True)["fingerprint"] != known["fingerprint"]


def test_weights_that_are_not_finite_are_refused(causal):
    params = causal.params | {"head": jax.tree.map(lambda x: x * jnp.nan, causal.params["head"])}
    broken = dataclasses.replace(causal, params=params, name="some-run")
    with pytest.raises(
        FloatingPointError, match="The weights of some-run are not finite in head/norm/bias, head"
    ):
        describe_model(broken, averaged=True)


def test_a_name_makes_no_other_query():
    judged = {"weights": "c3", "name": "gpt2"}
    asked, renamed = (
        Record("quality", "tweedie-2", {"weights": "a1", "name": name}, {"judge": judge})
        for name, judge in (("run", judged), ("moved", judged | {"name": "other"}))
    )
    assert asked.file == renamed.file
    other = dataclasses.replace(asked, protocol={"judge": judged | {"weights": "d4"}})
    assert other.file != asked.file
