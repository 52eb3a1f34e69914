import dataclasses
import json
import math

from sedd_jax.display.table import markdown
from sedd_jax.evaluation.record import labels, sample_titles, save
from sedd_jax.evaluation.summary import plots, qualities, tables, write


def of(records, kind):
    return [record for record in records if record.kind == kind]


def test_likelihoods_with_what_they_share_and_what_not(records):
    of_data, differing, shared, models = tables(of(records, "likelihood"))
    assert markdown(of_data).splitlines()[2:] == [
        "| lambada   | small, step 400,000 | <= 41.20 +- 0.10 | 3.9300 +- 0.0026 | "
        "5.6700 +- 0.0038 | 1.24460 +- 0.00082 | 0.012          | 283,287 | 277    | 62        |",
        "| wikitext2 | gpt2, step 400,000  | = 50.91          | 3.930            | "
        "5.670            | 1.245              | 0.012          | 283,287 | 277    | 62        |",
        "| wikitext2 | small, step 400,000 | <= 50.91 +- 0.13 | 3.9300 +- 0.0026 | "
        "5.6700 +- 0.0038 | 1.24460 +- 0.00082 | 0.012          | 283,287 | 277    | 62        |",
    ]
    assert markdown(differing) == (
        "| data set  | model               | source        |\n"
        "|-----------|---------------------|---------------|\n"
        "| lambada   | small, step 400,000 | lambada.txt   |\n"
        "| wikitext2 | gpt2, step 400,000  | wikitext2.txt |\n"
        "| wikitext2 | small, step 400,000 | wikitext2.txt |"
    )
    assert dict(shared.rows) == {
        "protocol": "sedd", "sha256": "0123456789ab", "wrap": "true", "length": "1024",
        "seed": "0", "first_token": "after the start",
    }  # fmt: skip
    assert models.columns[:3] == ("model", "family", "weights")
    assert [row[0] for row in models.rows] == ["small, step 400,000", "gpt2, step 400,000"]
    assert models.rows[0][-1] == "1,300,000"


def test_published_rows_stand_beside_models_of_their_size(records):
    small = dataclasses.replace(
        records[0],
        model=records[0].model | {"parameters": 90_000_000},
        protocol=records[0].protocol | {"part": "all", "bound": "exact"},
    )
    titles = [table.title for table in tables([small])]
    shared = "Likelihood: what the rows share"
    assert titles == ["Likelihood", shared, "Published figures", "Models"]
    titles = [table.title for table in tables(records[:1], all_published=True)]
    assert titles[-2] == "Published figures"


def test_samples_in_the_order_of_their_cost_after_real_text(records):
    quality, shared, notes, models = tables(of(records, "quality"))
    assert quality.columns == (
        "model", "sampler", "steps", "evaluations", "samples",
        "gen. ppl, by samples", "gen. ppl, by tokens", "entropy, nats", "distinct-1",
        "distinct-2", "distinct-3", "self-repetition", "MAUVE",
    )  # fmt: skip
    small = "small, step 400,000"
    assert [row[:5] for row in quality.rows] == [
        ("real text: heldout", None, None, None, "149"),
        ("ar, step 400,000", "autoregressive", None, "1,024", "256"),
        (small, "euler", "64", "65", "256"),
        (small, "tweedie", "16", "17", "256"),
        (small, "tweedie", "64", "65", "256"),
        (small, "tweedie", "64", "65", "2,048"),
    ]
    assert quality.rows[3][5:] == (
        "1,234 +- 41", "98.8 +- 1.1", "5.432 +- 0.012", "0.250", "0.700", "0.940", "0.031", None,
    )  # fmt: skip
    assert quality.rows[5][-2:] == ("0.0312 +- 0.0021", "0.910")
    assert quality.rows[2][6] == "nan"
    # what concerns some rows alone is not said of each row
    said = dict(shared.rows)
    assert (said["judge name"], said["top_p"], said["reference name"]) == (
        "gpt2-large", "1.0", "heldout",
    )  # fmt: skip
    assert said["final_step"].startswith("one draw")
    assert notes.rows == [("mauve says little", "tweedie-64")]
    assert len(models.rows) == 2


def test_a_curve_joins_what_differs_in_steps_alone(records):
    quality, *over_t = plots(records)
    assert (quality.name, *(plot.name for plot in over_t)) == (
        "quality", "by_t-lambada", "by_t-wikitext2",
    )  # fmt: skip
    samples, tokens, entropy = quality, quality.below, quality.below.below
    names = [
        "ar, step 400,000, autoregressive", "small, step 400,000, euler",
        "small, step 400,000, tweedie, samples=256",
        "small, step 400,000, tweedie, samples=2048",
    ]  # fmt: skip
    for panel in (samples, tokens, entropy):
        assert list(panel.curves) == names
    assert entropy.below is None
    assert samples.curves[names[2]] == ([17, 65], [1234.5, 1234.5], [41.0, 41.0])
    # what is not a number is not drawn
    assert tokens.curves[names[1]] == ([], [], [])
    assert [it.levels["real text: heldout"] for it in (tokens, entropy)] == [21.5, 5.9]
    # the area below is the bound
    (curve,) = over_t[1].curves.items()
    assert curve == ("small, step 400,000", ([0.0, 0.5, 0.5, 1.0], [2.0, 2.0, 5.86, 5.86]))


def test_intervals_reach_from_one_bound_to_the_other(records):
    ends = [{"low": 3.0, "high": 4.0}, {"low": 2.0, "high": 2.5}, {"low": 3.0, "high": math.inf}]
    enclosed = [
        dataclasses.replace(it, kind="interval", figures=figures)
        for it, figures in zip(of(records, "likelihood"), ends, strict=True)
    ]
    (plot,) = plots(enclosed)
    assert (plot.name, plot.x_names) == ("interval", ("lambada", "wikitext2"))
    ((name, curve),) = plot.curves.items()  # the third one has no end
    assert name == "small, step 400,000" and plot.owners == {name: name}
    assert curve == ([0, 1], [2.25, 3.5], [0.25, 0.5])


def test_curves_of_one_model_are_named_by_the_sampler(records):
    one = [it for it in of(records, "quality") if it.model["name"] == "small"]
    one = [it for it in one if it.figures["samples"] == 256]
    seeded = dataclasses.replace(one[0], protocol=one[0].protocol | {"seed": 1})
    assert list(plots(one)[0].curves) == ["euler", "tweedie"]
    names = ["euler", "tweedie, seed=0", "tweedie, seed=1"]
    assert list(plots([*one, seeded])[0].curves) == names


def test_models_of_one_name_and_step_are_told_by_their_weights(records):
    twin = [
        dataclasses.replace(it, model=it.model | {"weights": "5557273ca8f170ff"})
        for it in (records[0], records[3])
    ]
    both = [records[0], records[3], *twin]
    names = ["small, step 400,000 (5557273c)", "small, step 400,000 (smalsmal)"]
    found = {table.title: table for table in tables(both)}
    assert [row[1] for row in found["Likelihood"].rows] == names
    assert [row[0] for row in found["Quality of samples"].rows] == names
    quality, over_t = plots(both)
    assert list(over_t.curves) == names
    assert list(quality.curves) == [f"{name}, tweedie" for name in names]


def test_samples_are_called_by_how_they_were_made(records):
    label = labels(records)
    titles = sample_titles(qualities(records, label), label)
    assert titles[0] == "real text: heldout"
    assert titles[1] == "ar, step 400,000, autoregressive, 256 samples, seed 0"
    assert titles[-1] == "small, step 400,000, tweedie, 64 steps, 2,048 samples, seed 0"
    assert len(set(titles)) == len(titles) == 6


def test_figures_that_a_record_lacks_are_left_empty(records):
    bare = [dataclasses.replace(it, figures={}) for it in (records[0], records[3])]
    found = {table.title: table for table in tables([*bare, *records])}
    assert found["Likelihood"].rows[2][2:] == (None,) * 8
    assert set(found["Quality of samples"].rows[3][4:]) == {None}
    assert len(plots([*bare, *records])) == 3


def test_everything_is_written_and_made_anew(records, tmp_path):
    write(tmp_path)
    assert not list(tmp_path.iterdir())
    for record in records:
        save(tmp_path, record)
    (tmp_path / "summary.md").write_text("of before")
    write(tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("## Likelihood\n\n| data set ")
    report = json.loads((tmp_path / "summary.json").read_text())
    assert len(report["records"]) == len(records) and len(report["tables"]) == 7
    images = {path.stem for path in tmp_path.glob("*.png")}
    assert images == {plot.name for plot in plots(records)}
    assert all(f"({name}.png)" in text for name in images)
    assert not list(tmp_path.glob("*.tmp"))


def test_an_interval_has_both_ends_and_what_it_is_of(records):
    figures = {
        "low": 4.7125, "low_stderr": 0.0012, "high": 4.7156, "high_stderr": 0.0012, "width": 0.0031,
        "perplexity_low": 111.33, "perplexity_high": 111.68, "evidence_bound": 4.7934,
        "effective_draws": 30.9, "tokens": 2048, "blocks": 16, "notes": ["few draws"],
    }  # fmt: skip
    protocol = records[0].protocol | {"draws": 64, "block": 8}
    record = dataclasses.replace(records[0], kind="interval", protocol=protocol, figures=figures)
    table, shared, notes, _ = tables([record])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert table.title == "Likelihood as an interval"
    assert (row["block"], row["draws"]) == ("8", "64")
    assert row["perplexity"] == "111.33 to 111.68"
    assert row["at least, nats/token"] == "4.7125 +- 0.0012"
    assert dict(shared.rows)["block"] == "8" and notes.rows == [("few draws", "all rows")]
