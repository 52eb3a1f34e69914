"""Records of sample quality: what is measured, and what a record holds."""

import dataclasses

import jax
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.tokenizer import Characters, Integers
from sedd_jax.errors import BadInput
from sedd_jax.evaluation import quality, sample_figures
from sedd_jax.evaluation import record as record_module
from sedd_jax.evaluation.measures import distinct, entropy, self_repetition
from sedd_jax.evaluation.quality import REAL, Settings
from sedd_jax.evaluation.record import read_records
from sedd_jax.evaluation.scoring_model import ScoringModel
from sedd_jax.inference.build import build_family
from sedd_jax.inference.generator import Diagnostics
from sedd_jax.inference.sampling import Sampling

SETTINGS = Settings(3, 12, steps=(2, 3), seed=4, batch_size=2)


def run(checkpoint, settings, folder, **options):
    return quality.run(quality.plan(checkpoint, settings, **options), folder)


DIAGNOSTICS = Diagnostics(np.full(3, 3), np.zeros((3, 3), int), np.ones(3, bool), None)


@pytest.fixture(scope="module")
def checkpoint(smoke_run):
    return sedd.load(smoke_run)


@pytest.fixture(scope="module")
def folder(checkpoint, causal, tmp_path_factory):
    """Of the records of `SETTINGS`."""
    folder = tmp_path_factory.mktemp("run") / "evaluations"
    assert run(checkpoint, SETTINGS, folder, scorer=causal) == read_records(folder)
    return folder


def test_a_record_says_what_was_found_and_how(checkpoint, causal, folder):
    record, other = read_records(folder)
    assert (record.kind, record.name, other.name) == ("quality", "tweedie-2", "tweedie-3")
    tokens, _ = sedd.generate(jax.random.key(4), checkpoint, 3, 12, steps=2, batch_size=2)
    scorer = ScoringModel(causal, 12, batch_size=2)
    figures = {name: value for name, value in record.figures.items() if name != "seconds"}
    by_samples = scorer.by_samples(tokens)
    by_tokens = scorer.by_tokens(scorer.retokenise(tokens, checkpoint.tokenizer))
    wanted = {
        "samples": 3,
        "evaluations": 3,
        "entropy": entropy(tokens).value,
        "entropy_stderr": entropy(tokens).stderr,
        "entropy_by_sample": entropy(tokens).each,
        "distinct_1": distinct(tokens, 1),
        "distinct_2": distinct(tokens, 2),
        "distinct_3": distinct(tokens, 3),
        "self_repetition": self_repetition(tokens).value,
        "self_repetition_stderr": self_repetition(tokens).stderr,
        "gen_perplexity_samples": by_samples.value,
        "gen_perplexity_samples_stderr": by_samples.stderr,
        "gen_perplexity_samples_by_sample": by_samples.each,
        "gen_perplexity_tokens": by_tokens.value,
        "gen_perplexity_tokens_stderr": by_tokens.stderr,
        "gen_perplexity_tokens_by_sample": by_tokens.each,
    }
    assert figures.pop("texts") == [checkpoint.tokenizer.decode(row) for row in tokens]
    assert figures.pop("notes") == []
    assert figures.keys() == wanted.keys()
    for name, value in wanted.items():
        assert figures[name] == pytest.approx(value, rel=1e-5)
    for name in ("entropy", "gen_perplexity_samples", "gen_perplexity_tokens"):
        each = figures[f"{name}_by_sample"]
        assert np.mean(each) == pytest.approx(figures[name], rel=1e-5)
        assert np.std(each, ddof=1) / 3**0.5 == pytest.approx(figures[f"{name}_stderr"], rel=1e-3)
    said = record.protocol
    assert (said["sampler"], said["steps"], said["length"], said["samples"]) == (
        "tweedie",
        2,
        12,
        3,
    )
    assert (said["seed"], said["reference"]) == (4, None)
    assert said["final_step"].startswith("one draw that removes all noise left at t = 0.001")
    assert said["judge"]["weights"] != record.model["weights"]
    assert (said["judge"]["window"], said["judge"]["start"]) == (12, "none")
    assert other.protocol == said | {"steps": 3}


def test_what_is_cached_is_not_computed_again(checkpoint, causal, folder, monkeypatch, capsys):
    asked = []

    def generate(*_, steps, **options):
        asked.append(steps)
        return np.zeros((3, 12), np.int32), DIAGNOSTICS

    monkeypatch.setattr(quality, "generate", generate)
    before = read_records(folder)
    assert run(checkpoint, SETTINGS, folder, scorer=causal) == before
    assert asked == []
    said = capsys.readouterr()
    assert "2/2  tweedie-3: generative perplexity by samples" in said.err
    assert "batch" not in said.err
    assert said.out == ""
    (folder / before[1].file).unlink()
    again = run(checkpoint, SETTINGS, folder, scorer=causal)
    assert asked == [3] and again[0] == before[0]
    assert again[1].figures["entropy"] == 0


def test_what_process_0_has_is_not_computed_by_others(checkpoint, causal, tmp_path, monkeypatch):
    """Otherwise they wait for process 0, which computes nothing where it alone sees the files."""
    told = iter([True, False])
    asked = []
    monkeypatch.setattr(quality, "run_primary_first", lambda first, others: others())
    monkeypatch.setattr(quality, "broadcast_from_primary", lambda mine: next(told))
    monkeypatch.setattr(record_module, "is_primary", lambda: False)

    def generate(*_, steps, **options):
        asked.append(steps)
        return np.zeros((3, 12), np.int32), DIAGNOSTICS

    monkeypatch.setattr(quality, "generate", generate)
    planned = quality.plan(checkpoint, SETTINGS, scorer=causal)
    known, computed = quality.run(planned, tmp_path)
    assert known == planned.queries[0]
    assert asked == [3] and computed.figures["entropy"] == 0
    assert not list(tmp_path.iterdir())


def test_progress_is_shown_by_batch(folder, checkpoint, tmp_path, capsys):
    run(checkpoint, dataclasses.replace(SETTINGS, steps=(2,)), tmp_path)
    assert "tweedie-2: 100%" in (err := capsys.readouterr().err) and "1/1" in err


def test_a_sweep_measures_every_setting(checkpoint, tmp_path, monkeypatch):
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    monkeypatch.setattr(quality, "generate", lambda *_, **__: (tokens, DIAGNOSTICS))
    settings = Settings(2, 12, (1, 5), ("gibbs", "tweedie"), temperatures=(1.0, 0.5))
    records = run(checkpoint, settings, tmp_path)
    assert [record.name for record in records] == [
        f"{sampler}-{steps}{departure}"
        for sampler in ("gibbs", "tweedie")
        for steps in (1, 5)
        for departure in ("", "-temperature-0.5")
    ]
    assert all(record.protocol["judge"] is None for record in records)
    assert "gen_perplexity_samples" not in records[0].figures


def test_samples_of_one_distribution_are_drawn_once(checkpoint, tmp_path, monkeypatch):
    asked = []

    def generate(*_, sampler, steps, temperature, **options):
        asked.append((sampler, steps, temperature))
        return np.full((2, 12), len(asked), np.int32), DIAGNOSTICS

    monkeypatch.setattr(quality, "generate", generate)
    settings = Settings(2, 12, (4,), ("euler", "gibbs", "tweedie"), temperatures=(1.0, 0.5))
    records = run(checkpoint, settings, tmp_path)
    ways = [("euler", 4, 1.0), ("euler", 4, 0.5), ("gibbs", 4, 1.0), ("gibbs", 4, 0.5)]
    assert asked == ways
    assert records[4].figures["texts"] == records[0].figures["texts"]
    assert records[4].figures["notes"] == ["The samples are those of euler-4."]
    assert records[5].figures["notes"] == ["The samples are those of euler-4-temperature-0.5."]
    (tmp_path / records[0].file).unlink()
    again = run(checkpoint, settings, tmp_path)
    assert asked == ways and again[0].figures["texts"] == records[0].figures["texts"]
    longer = dataclasses.replace(settings, samplers=("euler(power=2)",), temperatures=(1.0,))
    run(checkpoint, longer, tmp_path)
    assert asked[4:] == [("euler(power=2)", 4, 1.0)]


def test_which_settings_share_a_distribution(checkpoint):
    def same(sampling, **changes):
        config = dataclasses.replace(checkpoint.config, **changes)
        return quality.same_distribution(dataclasses.replace(checkpoint, config=config), sampling)

    assert same(Sampling(4, "euler(power=2)", 0.5)) == Sampling(4, "tweedie(power=2)", 0.5)
    assert same(Sampling(4, "first_hitting")).sampler == "first_hitting"
    assert same(Sampling(4, "euler"), graph="uniform").sampler == "euler"
    geometric = dataclasses.replace(checkpoint.config.noise, schedule="geometric")
    assert same(Sampling(4, "euler"), noise=geometric).sampler == "euler"
    for temperature, kind in ((1.0, "token"), (0.9, "conditional")):
        tempered = Sampling(4, temperature=temperature, tempering="conditional")
        assert same(tempered, graph="uniform").tempering == kind


@pytest.mark.slow
def test_a_sweep_of_first_hitting_counts_the_calls_that_were_made(checkpoint, tmp_path):
    settings = Settings(3, 12, (None, 4), ("first_hitting",), batch_size=3, top_p=0.9)
    free, _ = quality.plan(checkpoint, settings).queries
    (grid,) = run(checkpoint, dataclasses.replace(settings, steps=(4,)), tmp_path)
    assert (free.name, grid.name) == ("first_hitting-top-p-0.9", "first_hitting-4-top-p-0.9")
    key, options = jax.random.key(0), {"sampler": "first_hitting", "top_p": 0.9, "batch_size": 3}
    _, diagnostics = sedd.generate(key, checkpoint, 3, 12, steps=4, **options)
    assert grid.figures["evaluations"] == pytest.approx(diagnostics.evaluations.mean())
    assert (grid.protocol["steps"], grid.protocol["final_step"]) == (4, "none")
    assert grid.protocol["top_p"] == 0.9 and "temperature" not in grid.protocol
    assert free.protocol["steps"] is None


def test_options_of_a_sampler_are_in_its_record_and_its_file(checkpoint):
    settings = Settings(2, 12, (4,), ("gibbs(spacing=2, share=0.25)",))
    (query,) = quality.plan(checkpoint, settings).queries
    assert query.name == "gibbs(spacing=2, share=0.25)-4"
    assert query.protocol["sampler"] == "gibbs(spacing=2, share=0.25)"
    assert query.file.startswith("quality-gibbs-spacing=2-share=0.25-4-")
    with pytest.raises(BadInput, match="spacing must be at least 2"):
        quality.plan(checkpoint, Settings(2, 12, (4,), ("gibbs(spacing=1)",)))


def test_a_departure_is_in_the_name_of_a_record(checkpoint):
    config = dataclasses.replace(checkpoint.config, graph="uniform")
    family = build_family(config, checkpoint.tokenizer.vocab_size)
    uniform = dataclasses.replace(checkpoint, family=family, config=config)
    settings = Settings(2, 6, (4,), temperatures=(0.5,), tempering="conditional")
    (query,) = quality.plan(uniform, settings).queries
    assert query.name == "tweedie-4-temperature-0.5-tempering-conditional"
    assert query.protocol["tempering"] == "conditional"
    (query,) = quality.plan(uniform, Settings(2, 6, (4,))).queries
    assert "tempering" not in query.protocol  # as in records of earlier versions
    with pytest.raises(BadInput, match="tempering='conditional' is for the other graphs"):
        quality.plan(checkpoint, settings)


def test_an_autoregressive_model_has_one_sampler(causal, tmp_path):
    settings = Settings(2, 6, temperatures=(0.7,), top_p=0.9, seed=1)
    (record,) = run(causal, settings, tmp_path, scorer=causal)
    tokens, _ = sedd.generate(jax.random.key(1), causal, 2, 6, temperature=0.7, top_p=0.9)
    assert (record.name, record.figures["evaluations"]) == ("autoregressive", 6)
    assert (record.protocol["temperature"], record.protocol["top_p"]) == (0.7, 0.9)
    assert record.figures["texts"] == [causal.tokenizer.decode(row) for row in tokens]


def test_a_scoring_model_of_another_tokenizer_reads_the_text_alone(causal, tmp_path):
    alphabet = Characters("".join(map(chr, range(256))))  # as many ids, of other meaning
    other = dataclasses.replace(causal, tokenizer=alphabet)
    (record,) = run(other, Settings(2, 6), tmp_path, scorer=causal)
    assert "gen_perplexity_samples" not in record.figures
    assert record.figures["gen_perplexity_tokens"] > 1
    (note,) = record.figures["notes"]
    assert note.startswith(
        "gen_perplexity_samples is left out: the scoring model has another tokenizer"
    )


def test_ids_without_text_are_scored_as_they_are(causal, tmp_path):
    ids = dataclasses.replace(causal, tokenizer=Integers(257))
    (record,) = run(ids, Settings(2, 6), tmp_path, scorer=ids)
    assert record.figures["gen_perplexity_samples"] > 1
    assert "gen_perplexity_tokens" not in record.figures
    with pytest.raises(BadInput, match="it cannot read them, since ids without text"):
        run(ids, Settings(2, 6), tmp_path / "other", scorer=causal)


def test_mauve_is_of_the_scoring_models_features(causal, tmp_path, monkeypatch):
    path = tmp_path / "real.txt"
    path.write_text("It is real text. " * 10)
    given = []
    monkeypatch.setattr(sample_figures, "load_mauve", lambda: "mauve-text 0.4.0")
    monkeypatch.setattr(sample_figures, "mauve", lambda *features: given.append(features) or 0.5)
    settings = Settings(21, 6, mauve=True)
    record, text = run(causal, settings, tmp_path, scorer=causal, reference=str(path))
    (features,) = given
    blocks = np.frombuffer(path.read_bytes()[: 28 * 6], np.uint8).reshape(28, 6)
    real = blocks[np.arange(21) * 28 // 21]
    np.testing.assert_allclose(features[1], ScoringModel(causal, 6).features(real), rtol=1e-5)
    assert features[0].shape == features[1].shape
    assert record.figures["mauve"] == 0.5
    assert record.figures["notes"] == [
        "mauve of 21 texts is unreliable: use at least 1000 of each."
    ]
    assert record.protocol["reference"]["texts"] == 21
    assert record.protocol["mauve"] == "mauve-text 0.4.0"
    assert (text.name, text.protocol["sampler"]) == ("real-text", REAL)
    assert text.figures["entropy"] == entropy(real).value
    assert (text.figures["samples"], text.figures["evaluations"]) == (21, 0)
    assert "mauve" not in text.figures
    with pytest.raises(BadInput, match="MAUVE needs at least 20 samples"):
        run(causal, Settings(2, 6, mauve=True), tmp_path, scorer=causal, reference=str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": ()}, "steps is empty, so that nothing would be drawn"),
        ({"num_samples": 1}, "num_samples is 1; a standard error needs at least 2"),
        ({"length": 3}, "length is 3; repeated 4-grams need at least 4"),
        ({"length": 17}, "length must be at most 16, the positions"),
        ({"steps": (4, 0)}, "steps must be at least 1, got 0"),
        ({"steps": (10**12,)}, "steps must be at most 1,048,576, got 1,000,000,000,000"),
        (
            {"samplers": ("heun",)},
            "sampler must be one of euler, tweedie, .*'heun'",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        (
            {"temperatures": (1.0, float("nan"))},
            "temperature must be 0 .greedy. or more, and finite, got nan",
        ),
        ({"temperatures": (1.0, 0.9, 1.0)}, "temperature=1 is given twice"),
        (
            {"temperatures": (1.0, 0.0), "tempering": "conditional"},
            "temperature=0 means nothing with tempering='conditional'",
        ),
        ({"top_p": 7.0}, r"top_p must be in \(0, 1\], got 7.0"),
        ({"tempering": "conditional"}, "tempering means nothing to autoregressive models"),
    ],
)
def test_bad_settings_are_named(causal, settings, message):
    with pytest.raises(BadInput, match=message):
        quality.plan(causal, Settings(**settings))


def test_mauve_needs_a_scoring_model_and_that_a_tokenizer(causal, tmp_path):
    with pytest.raises(BadInput, match="give both a scoring"):
        run(causal, Settings(2, 6, mauve=True), tmp_path, scorer=causal)
    with pytest.raises(BadInput, match="name a tokenizer"):
        run(dataclasses.replace(causal, tokenizer=None), Settings(2, 6), tmp_path, scorer=causal)


def test_useless_scoring_models_are_found_before_anything_is_sampled(causal):
    alphabet = Characters("".join(map(chr, range(257))), eod=False)  # lacks the one for half ones
    other = dataclasses.replace(causal, tokenizer=alphabet)
    with pytest.raises(
        BadInput, match="The scoring model cannot read the samples: .*outside the alphabet"
    ):
        quality.plan(causal, Settings(2, 6), scorer=other)
    params = jax.tree.map(lambda x: x * np.inf, causal.params)
    broken = dataclasses.replace(causal, params=params, name="broken")
    for model, scorer in ((causal, broken), (broken, None)):
        with pytest.raises(FloatingPointError, match="The weights of broken are not finite in bl"):
            quality.plan(model, Settings(2, 6), scorer=scorer)
