"""The checkpoint that an oracle likes best, whatever numbers it gives."""

import dataclasses
import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.data.characters import Characters
from sedd_jax.errors import BadInput
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.config import Config, EvalConfig, TrainConfig
from sedd_jax.experiment.metrics import MetricWriter
from sedd_jax.experiment.state import Skipped, TrainState
from sedd_jax.inference.oracle import gc_content, oracle_scores
from sedd_jax.training.best import KeepBest, check_oracle, try_oracle
from sedd_jax.training.evaluator import Samples
from sedd_jax.training.hooks import Evaluation

STATE = TrainState(jnp.int32(0), {}, (), {}, Skipped(jnp.int32(0), jnp.int32(0)))


def numbers(texts):
    """An oracle of one's own: what the texts say."""
    return [float(text) for text in texts]


def words(texts):
    return texts


def lengths(texts):
    return [len(text) for text in texts]


ORACLE = f"{__name__}:numbers"


class Rows(MetricWriter):
    """Keeps rows instead of writing them."""

    def __init__(self):
        self.rows = []

    def scalars(self, step, values):
        self.rows.append((step, values))


class Steps(Checkpoints):
    """Keeps the steps that would be saved as the best."""

    best = None

    def __init__(self, best):
        self.best, self.saved = best, []

    def save_best(self, state, config, facts):
        self.saved.append((int(state.step), facts))


def played(texts_of_steps, best=None):
    """The steps and rows of a run whose samples are these, step by step."""
    evaluation, writer, checkpoints = Evaluation.__new__(Evaluation), Rows(), Steps(best)
    config = dataclasses.replace(Config(), eval=EvalConfig(oracle=ORACLE))
    hook = KeepBest(evaluation, writer, checkpoints, config)
    for step, texts in enumerate(texts_of_steps, 1):
        evaluation.samples = Samples(texts, [f"class=EI: {text}" for text in texts])
        hook(step, STATE._replace(step=jnp.int32(step)), {})
    return types.SimpleNamespace(saved=checkpoints.saved, rows=writer.rows)


def test_the_highest_mean_is_kept(capsys):
    run = played([["1", "3"], ["0", "1"], ["2", "4<|endoftext|>9"]])
    assert [(step, facts["score"]) for step, facts in run.saved] == [(1, 2.0), (3, 3.0)]
    assert run.saved[0][1] == {"oracle": ORACLE, "score": 2.0, "stderr": 1.0, "samples": 2}
    assert [row["oracle"] for _, row in run.rows] == [2.0, 0.5, 3.0]
    assert capsys.readouterr().out.count("the best so far") == 2


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_told_and_never_compared(number, capsys):
    run = played([[number, "1"], ["1", "1"], [number, "9"], ["0", "1"], ["2", "2"]])
    assert [step for step, _ in run.saved] == [2, 5]
    assert all(math.isfinite(row["oracle"]) for _, row in run.rows)
    err = capsys.readouterr().err
    assert "step 3: the oracle gave 1 of 2 samples no finite number, so this step is not" in err


def test_a_resumed_run_compares_with_what_it_had():
    best = {"step": 7, "oracle": ORACLE, "score": 2.0}
    assert [step for step, _ in played([["1", "1"], ["3", "3"]], best).saved] == [2]
    other = best | {"oracle": "gc_content"}  # its numbers say nothing of this one's
    assert [step for step, _ in played([["1", "1"]], other).saved] == [1]


def test_gc_content_is_the_share_of_two_letters():
    found = gc_content(["GCAT", "ggnn", "UUUC"])
    assert found.tolist() == [0.5, 1.0, 0.25]
    assert math.isnan(gc_content(["N"])[0])


def config_with(oracle=ORACLE, **settings):
    defaults = {"num_samples": 4, "sample_every": 10}
    evaluation = EvalConfig(oracle=oracle, **(defaults | settings))
    return dataclasses.replace(Config(), eval=evaluation, train=TrainConfig(log_every=5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oracle": "best_guess"}, "oracle must be one of gc_content, or package.module:function"),
        ({"oracle": "nowhere_at_all:f"}, "nowhere_at_all cannot be imported"),
        ({"num_samples": 1}, "set config.eval.num_samples, which is 1, to 2 or more"),
        ({"sample_every": 7}, r"sample_every \(7\) must be a multiple of config.train.log_every"),
    ],
)
def test_an_oracle_that_cannot_choose_is_refused(settings, message):
    check_oracle(config_with())
    check_oracle(config_with(oracle="", num_samples=0))
    with pytest.raises(BadInput, match=message):
        check_oracle(config_with(**settings))


def test_an_oracle_must_return_numbers():
    with pytest.raises(BadInput, match="must return a number for each of the 2 sequences, and"):
        oracle_scores(f"{__name__}:words", ["a", "b"])


def test_an_oracle_that_fails_on_held_out_sequences_is_refused_before_training():
    dna = Characters("ACGT", eod=False)
    blocks = np.stack([dna.encode("ACGT"), dna.encode("GGGG")])
    try_oracle(config_with(oracle=f"{__name__}:lengths"), dna, blocks)
    try_oracle(config_with(oracle=""), dna, blocks)
    with pytest.raises(BadInput, match=r"numbers fails on 2 sequences \(ValueError"):
        try_oracle(config_with(), dna, blocks)
    with pytest.raises(BadInput, match="must return a number for each of the 1 sequences"):
        try_oracle(config_with(oracle=f"{__name__}:words"), dna, blocks[:1])


@pytest.mark.slow
def test_a_run_keeps_the_best_and_loads_it(smoke_config, tmp_path):
    from sedd_jax.inference.load import load
    from sedd_jax.train import train

    evaluation = dataclasses.replace(
        smoke_config.eval, oracle=f"{__name__}:lengths", num_samples=4, sample_every=5
    )
    config = dataclasses.replace(smoke_config, eval=evaluation)
    train(config, tmp_path / "run")
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    scores = {row["step"]: row["oracle"] for row in rows if "oracle" in row}
    assert sorted(scores) == [5, 10, 15, 20]
    assert best["score"] == max(scores.values()) == scores[best["step"]]
    assert load(tmp_path / "run", step="best").step == best["step"]
