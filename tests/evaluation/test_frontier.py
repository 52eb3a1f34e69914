"""Quality at the entropy of real text."""

import dataclasses
import json
import math

import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.evaluation import frontier_report
from sedd_jax.evaluation.frontier import BY_SAMPLES, BY_TOKENS, matched, own_temperature
from sedd_jax.evaluation.measures import entropy, mean
from sedd_jax.evaluation.record import Record, labels
from sedd_jax.evaluation.summary import plots, tables, write
from sedd_jax.inference.sampling import Sampling
from sedd_jax.verification.markov import random_model
from sedd_jax.verification.oracle import Oracle


def sampled(entropy, log_perplexity, **protocol):
    """A record of before values of samples were kept."""
    perplexity = math.exp(log_perplexity)
    figures = {"entropy": entropy, BY_SAMPLES: perplexity, "evaluations": 10 * entropy}
    errors = {"entropy_stderr": 0.0, f"{BY_SAMPLES}_stderr": 0.1 * perplexity}
    return Record("quality", "it", {}, protocol, figures | errors)


def of_samples(entropies, nats, temperature=1.0, figure=BY_TOKENS):
    """A record of texts of equal length, by their entropies and nats per token."""
    entropy, log_perplexity = mean(entropies), mean(nats)
    perplexity = math.exp(log_perplexity.value)
    each = perplexity * (1 + np.array(log_perplexity.each) - log_perplexity.value)
    figures = {
        "entropy": entropy.value, "entropy_stderr": entropy.stderr,
        "entropy_by_sample": entropy.each, figure: perplexity,
        f"{figure}_stderr": perplexity * log_perplexity.stderr,
        f"{figure}_by_sample": each.tolist(),
    }  # fmt: skip
    return Record("quality", "it", {}, {"temperature": temperature}, figures)


def test_quality_is_interpolated_in_the_entropy():
    hot, middle, cold = sampled(4.0, 9.0), sampled(3.0, 2.0), sampled(2.0, 1.0, temperature=0.5)
    found = matched([middle, cold, hot], 2.5)
    assert found.perplexity == pytest.approx(math.exp(1.5))
    assert (found.how, found.temperatures, found.evaluations) == ("interpolated", (0.5, 1.0), 25)
    assert found.stderr == pytest.approx(found.perplexity * 0.1 / math.sqrt(2))
    found = matched([middle, cold], 3.5)
    assert found.perplexity == pytest.approx(math.exp(2.5))
    assert found.how == "extrapolated by 0.50 nats"
    found = matched([middle], 2.5)
    assert found.perplexity == pytest.approx(math.exp(2.0))
    assert found.how == "one point, 0.50 nats away"


def test_samples_of_one_entropy_are_one_point():
    twice = [sampled(3.0, 2.5, temperature=0.5), sampled(3.0, 2.0)]
    found = matched(twice, 2.5)
    assert found.perplexity == pytest.approx(math.exp(2.0))
    assert found.how == "one point, 0.50 nats away"
    assert matched([*twice, sampled(2.0, 1.0)], 2.5).perplexity == pytest.approx(math.exp(1.5))


@pytest.mark.parametrize("level", [3.62, 3.9])
def test_the_error_is_the_scatter_of_other_samples(level):
    """Entropy and nats of a text go together, and so do the texts of a row at two temperatures."""
    rng, found, alone = np.random.default_rng(0), [], []
    for _ in range(400):
        row = rng.standard_normal((64, 1))
        own = rng.standard_normal((64, 2))
        entropies = [3.5, 3.8] + 0.2 * (0.6 * row + 0.8 * own)
        nats = [4.0, 4.9] + 3 * (entropies - [3.5, 3.8]) + 0.3 * rng.standard_normal((64, 2))
        records = [of_samples(entropies[:, i], nats[:, i], 0.9 + 0.1 * i) for i in (0, 1)]
        found.append(matched(records, level, BY_TOKENS))
        for record in records:
            del record.figures["entropy_by_sample"]
        alone.append(matched(records, level, BY_TOKENS))
    scatter = np.std(np.log([each.perplexity for each in found]))
    errors = [np.mean([it.stderr / it.perplexity for it in each]) for each in (found, alone)]
    assert errors[0] == pytest.approx(scatter, rel=0.1)
    assert errors[1] > 1.5 * scatter  # as if entropy and nats were independent


def swept(records):
    """Two steps at two temperatures and one at one, of `records`, and the real texts."""
    plain = [it for it in records if it.name in ("tweedie-16", "tweedie-64")]
    real = [it for it in records if it.is_real]
    plain = [it for it in plain if it.figures["samples"] == 256]
    cold = dataclasses.replace(
        plain[0],
        protocol=plain[0].protocol | {"temperature": 0.9},
        figures=plain[0].figures | {"entropy": 5.2, BY_TOKENS: 50.0},
    )
    return [*plain, cold, *real]


def test_a_table_has_one_number_for_each_sampler_and_budget(records, tmp_path):
    of_quality = [it for it in records if it.kind == "quality"]
    titles = [table.title.partition(":")[0] for table in tables(of_quality)]
    assert "Frontier" not in titles  # nothing has two temperatures
    records = swept(of_quality)
    frontier, quality, *_ = tables(records)
    assert frontier.title == (
        "Frontier: samplers at the entropy of real text: heldout (149 texts): 5.900 +- 0.012 "
        "nats. Its own perplexity, by tokens: 21.5 +- 1.1"
    )
    slope = math.log(98.76 / 50) / (5.4321 - 5.2)
    wanted = 50 * math.exp(slope * 0.7)
    of_level = f"{wanted * slope * 0.012:.2g}"
    assert [(row[:3], row[4:]) for row in frontier.rows] == [
        (("tweedie", 16, "17"), (of_level, "0.9 to 1", "extrapolated by 0.47 nats")),
        (("tweedie", 64, "65"), ("0", "1", "one point, 0.47 nats away")),
    ]
    assert frontier.rows[0][3].startswith(f"{wanted:.0f} +- ")
    cells = dict(zip(quality.columns, zip(*quality.rows, strict=True), strict=True))
    assert cells["temperature"] == (None, 0.9, 1.0, 1.0)
    write_and_read(records, tmp_path, wanted)


def write_and_read(records, folder, wanted):
    for record in records:
        (folder / record.file).write_text(json.dumps(dataclasses.asdict(record)))
    write(folder)
    (section,) = json.loads((folder / frontier_report.FILE).read_text())
    assert section["level"]["entropy"] == 5.9 and section["compared"] == "by tokens"
    first = section["frontiers"][0]
    assert (first["sampler"], first["steps"]) == ("tweedie", 16)
    assert first["matched"][BY_TOKENS]["perplexity"] == pytest.approx(wanted)
    assert first["matched"].keys() == {BY_TOKENS, BY_SAMPLES}
    assert [it["temperature"] for it in first["curve"]] == [0.9, 1]
    assert [it["entropy"] for it in first["curve"]] == [5.2, 5.4321]
    text = (folder / "summary.md").read_text()
    assert "![frontier](frontier.png)\n\n![frontier-matched](frontier-matched.png)" in text


def test_curves_are_over_entropy_and_numbers_over_evaluations(records):
    records = swept([it for it in records if it.kind == "quality"])
    frontier, budgets, quality = plots(records)
    assert frontier.curves == {
        "real text: heldout (the point)": ([5.9], [21.5], [1.1]),
        "tweedie, 16 steps": ([5.2, 5.4321], [50.0, 98.76], [1.1, 1.1]),
        "tweedie, 64 steps": ([5.4321], [98.76], [1.1]),
    }
    assert budgets.curves["tweedie"][0] == [17, 65]
    assert budgets.levels == {"real text: heldout": 21.5}
    # the plot over evaluations shows the model's own distribution
    assert list(quality.curves) == ["tweedie"] and quality.curves["tweedie"][0] == [17, 65]
    assert len(own_temperature(records)) == len(records) - 1


def test_seeds_and_scoring_models_are_not_mixed(records):
    one = swept([it for it in records if it.kind == "quality"])
    drawn = [it for it in one if not it.is_real]
    other = [dataclasses.replace(it, protocol=it.protocol | {"seed": 1}) for it in drawn]
    judged = [
        dataclasses.replace(it, protocol=it.protocol | {"judge": {"name": "x", "weights": "c3"}})
        for it in one
    ]
    (table,) = frontier_report.tables([*one, *other], labels(one))
    assert [row[0] for row in table.rows] == ["tweedie, seed=0"] * 2 + ["tweedie, seed=1"] * 2
    assert len(frontier_report.tables([*one, *judged], labels(one))) == 2
    assert not frontier_report.tables([*drawn, *judged[-2:]], labels(one))  # no real text


def divergence(texts, log_prob):
    """KL of samples to the data, by the numbers of the texts; its bias is corrected for."""
    count = np.bincount(texts, minlength=len(log_prob))
    seen, share = count > 0, count / len(texts)
    nats = np.sum(share[seen] * (np.log(share[seen]) - log_prob[seen]))
    return nats - (seen.sum() - 1) / (2 * len(texts))


@pytest.mark.slow
def test_the_order_of_samplers_of_a_markov_chain_is_that_of_their_divergence():
    """True scores, the chain itself as the scoring model, all texts enumerated."""
    oracle, rows = Oracle(random_model(0, 4, 0, 0.3), 6, seed=0), 100_000
    graph, noise = graphs.absorbing(4), noises.loglinear()
    texts = np.indices((4,) * 6).reshape(6, -1).T.astype(np.int32)
    log_prob = np.asarray(oracle.model.log_prob(texts), np.float64)
    entropies = np.array(entropy(texts).each)

    def measured(sampler, steps):
        records, found = [], {}
        for temperature in (0.8, 1.0):
            sampling = Sampling(steps, sampler, temperature)
            tokens, _ = oracle.draw(graph, noise, sampling, rows, 1e-3)
            drawn = np.ravel_multi_index(tokens.T, (4,) * 6)
            records.append(of_samples(entropies[drawn], -log_prob[drawn] / 6, temperature))
            found[temperature] = divergence(drawn, log_prob)
        return found[1.0], matched(records, np.exp(log_prob) @ entropies, BY_TOKENS)

    ways = (("tweedie", 4), ("tweedie", 16), ("gibbs", 8))
    coarse, fine, gibbs = (measured(*way) for way in ways)
    assert coarse[0] > 4 * fine[0] > 40 * gibbs[0]
    for worse, better in ((coarse[1], fine[1]), (fine[1], gibbs[1])):
        assert worse.perplexity - better.perplexity > 4 * math.hypot(worse.stderr, better.stderr)
    excess = math.log(gibbs[1].perplexity) - oracle.entropy
    assert abs(excess) < 4 * gibbs[1].stderr / gibbs[1].perplexity
