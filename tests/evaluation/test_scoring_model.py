"""Both generative perplexities against a plain forward pass, and tokenising texts again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.data.tokenizer import Bytes, Characters
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.scoring_model import ScoringModel
from sedd_jax.experiment import mesh as meshes
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.inference.build import build_family
from sedd_jax.model.sharding import shardings

END = Bytes.eod_id


@pytest.fixture(scope="module")
def scorer(causal):
    return ScoringModel(causal, 12, batch_size=2)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(1).integers(0, 256, (5, 12), dtype=np.int32)


@pytest.fixture(scope="module")
def plain(causal):
    """-log p of all tokens of one text but the first, by a whole forward pass."""
    apply = jax.jit(causal.model.apply)

    def nats(ids):
        # filled up to one shape; what comes after makes no difference
        filled = np.pad(ids, (0, 16 - len(ids)))
        logits = np.asarray(apply(causal.params, jnp.asarray(filled[None], jnp.int32)), np.float64)
        log_prob = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
        return -log_prob[np.arange(len(ids) - 1), ids[1:]]

    return nats


def test_by_samples_is_the_mean_of_their_perplexities(scorer, rows, plain):
    each = [np.exp(plain(row).mean()) for row in rows]
    found = scorer.by_samples(rows)
    assert found.value == pytest.approx(np.mean(each), rel=1e-5)
    assert found.stderr == pytest.approx(np.std(each, ddof=1) / np.sqrt(5), rel=1e-4)


def test_what_is_longer_than_the_scoring_model_sees_is_scored_in_windows(causal, plain):
    rows = np.random.default_rng(2).integers(0, 256, (3, 37), dtype=np.int32)
    each = [
        np.exp(np.concatenate([plain(row[s : s + 16]) for s in (0, 16, 32)]).mean()) for row in rows
    ]
    assert ScoringModel(causal, 37).by_samples(rows).value == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.slow
def test_a_model_trained_here_reads_after_its_start(causal):
    scorer = ScoringModel(dataclasses.replace(causal, step=20), 37)
    rows = np.random.default_rng(2).integers(0, 256, (3, 37), dtype=np.int32)
    start = np.array([causal.model.start])

    def plain(window):
        """-log p of all tokens but the first, in the state that training makes."""
        before = np.pad(np.concatenate([start, window[:-1]]), (0, 16 - len(window)))
        logits = causal.model.apply(causal.params, jnp.asarray(before[None], jnp.int32))
        log_prob = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
        return -log_prob[np.arange(1, len(window)), window[1:]]

    windows = [[plain(row[at : at + 16]) for at in (0, 16, 32)] for row in rows]
    each = [np.exp(np.concatenate(of_row).mean()) for of_row in windows]
    found = scorer.by_samples(rows)
    assert found.value == pytest.approx(np.mean(each), rel=1e-5)
    assert found.value != pytest.approx(ScoringModel(causal, 37).by_samples(rows).value, rel=1e-3)
    nats = np.concatenate([window for of_row in windows for window in of_row])
    assert scorer.by_tokens(rows).value == pytest.approx(np.exp(nats.mean()), rel=1e-5)
    bare = ScoringModel(causal, 37)
    for text in (rows[0][:5], rows[0]):  # what is too long for the positions loses its end
        whole = np.concatenate([start, text]).astype(np.int32)
        alone = bare.features([whole])
        np.testing.assert_allclose(scorer.features([text]), alone, rtol=1e-4, atol=1e-5)


# texts, and which of their tokens count; the first is context
COUNTED = [
    ([7, 8, 9], [0, 1, 1]),
    ([7, END, 8, 9, END, END, 5], [0, 1, 1, 1, 0, 0, 1]),
    ([END, 7, END, 8, END], [0, 1, 0, 1, 0]),  # the first end is the context
    ([6], [0]),
    ([], []),
]


def test_by_tokens_counts_the_first_end_of_a_text_alone(scorer, plain):
    texts = [np.array(text, np.int32) for text, _ in COUNTED]
    counted = [np.array(mask[1:], bool) for _, mask in COUNTED]
    scored = [plain(t)[c] if len(t) > 1 else [] for t, c in zip(texts, counted, strict=True)]
    nats, count = (np.array([f(s) for s in scored]) for f in (np.sum, len))
    assert count.tolist() == [2, 4, 2, 0, 0]
    found = scorer.by_tokens(texts)
    wanted = np.exp(nats.sum() / count.sum())
    assert found.value == pytest.approx(wanted, rel=1e-5)
    left = nats - nats.sum() / count.sum() * count
    stderr = wanted * np.sqrt(5 / 4 * (left**2).sum()) / count.sum()
    assert found.stderr == pytest.approx(stderr, rel=1e-3)
    with pytest.raises(BadInput, match="No sample has two tokens"):
        scorer.by_tokens(texts[-1:] * 2)
    with pytest.raises(BadInput, match="No sample has two tokens"):
        scorer.by_tokens([np.array([END, END], np.int32)])


def test_every_window_has_a_first_end(causal, plain):
    text = np.array([1, END, 2, END] * 8, np.int32)  # two windows of 16
    counted = np.array([0, 1, 1] + [0, 1] * 6 + [0], bool)
    nats = plain(text[:16])[counted[1:]]
    assert len(nats) == 8
    found = ScoringModel(causal, 32).by_tokens([text, text])
    assert found.value == pytest.approx(np.exp(nats.mean()), rel=1e-5)


def test_texts_are_tokenised_again_by_the_scoring_model(scorer, causal):
    sampler = Characters("aé \n")
    end = sampler.eod_id
    rows = [np.array(row) for row in ([0, 1, end, 2, 0], [end, end, 0], [1] * 7)]
    e = list("é".encode())
    texts = scorer.retokenise(rows, sampler)
    assert [text.tolist() for text in texts] == [
        [97, *e, END, 32, 97],
        [END, END, 97],
        (e * 7)[:12],  # cut at the length of the samples
    ]
    scorer_without_end = ScoringModel(
        dataclasses.replace(causal, tokenizer=Characters("a é", False)), 12
    )
    texts = scorer_without_end.retokenise(rows[:2], sampler)
    assert [text.tolist() for text in texts] == [[0, 2, 1, 0], [0]]
    with pytest.raises(
        BadInput,
        match=r"scoring model cannot read the samples: .* 1 character\(s\) outside the alphabet",
    ):
        scorer_without_end.retokenise([np.array([3])], sampler)


def test_features_are_of_the_text_alone(scorer, causal):
    texts = [np.array(text, np.int32) for text in ([5, 6, 7], [5], [], range(40))]
    found = scorer.features(texts)
    assert found.shape == (4, 16) and found.dtype == np.float32
    features = jax.jit(causal.model.features)
    start = np.array([causal.model.start], np.int32)
    for row, ids in zip(found, (texts[0], texts[1], start, texts[3][:12]), strict=True):
        filled = np.pad(ids, (0, 16 - len(ids)))[None]
        alone = features(causal.params, jnp.asarray(filled), jnp.array([len(ids) - 1]))
        np.testing.assert_allclose(row, alone[0], rtol=1e-4, atol=1e-5)


def test_eight_devices_score_as_one(scorer, causal, rows):
    mesh = meshes.build_mesh(MeshConfig(fsdp=2))
    components = build_family(causal.config, Bytes.vocab_size, meshes.placement(mesh))
    params = jax.device_put(causal.params, shardings(causal.params, mesh))
    spread = dataclasses.replace(causal, family=components, params=params, mesh=mesh)
    over_devices = ScoringModel(spread, 12, batch_size=2)
    np.testing.assert_allclose(
        over_devices.by_samples(rows).each, scorer.by_samples(rows).each, rtol=1e-5
    )


def test_bad_scoring_models(causal, smoke_config):
    diffusion = build_family(smoke_config, Bytes.vocab_size)
    with pytest.raises(BadInput, match="--judge.* is a diffusion model"):
        ScoringModel(dataclasses.replace(causal, family=diffusion), 12)
    with pytest.raises(BadInput, match="--judge.* has no tokenizer"):
        ScoringModel(dataclasses.replace(causal, tokenizer=None), 12)
    broken = jax.tree.map(lambda x: x * jnp.nan, causal.params)
    with pytest.raises(FloatingPointError, match="The scoring model produced NaN or Inf"):
        ScoringModel(dataclasses.replace(causal, params=broken), 12).by_samples(
            np.ones((2, 12), np.int32)
        )
