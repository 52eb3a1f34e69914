import dataclasses
import json

from sedd_jax.display.table import markdown
from sedd_jax.evaluation.record import save
from sedd_jax.evaluation.summary import plots, tables, write


def test_likelihoods_with_what_they_share_and_what_not(records):
    of_data, differing, shared = tables(records[:3])
    assert markdown(of_data).splitlines()[2:] == [
        "| lambada   | small, step 400,000 | <= 41.20 +- 0.10 | 3.9300 +- 0.0026 | "
        "5.6700 +- 0.0038 | 1.24460 +- 0.00082 | 0.012          | 283,287 | 277    | 62        |",
        "| wikitext2 | gpt2, step 400,000  | = 50.91          | 3.930            | "
        "5.670            | 1.245              | 0.012          | 283,287 | 277    | 62        |",
        "| wikitext2 | small, step 400,000 | <= 50.91 +- 0.13 | 3.9300 +- 0.0026 | "
        "5.6700 +- 0.0038 | 1.24460 +- 0.00082 | 0.012          | 283,287 | 277    | 62        |",
    ]
    assert markdown(differing) == (
        "| data set  | model               | model weights    | source        | first_token     |\n"
        "|-----------|---------------------|------------------|---------------|-----------------|\n"
        "| lambada   | small, step 400,000 | smalsmalsmalsmal | lambada.txt   |                 |\n"
        "| wikitext2 | gpt2, step 400,000  | gpt2gpt2gpt2gpt2 | wikitext2.txt | after the start |\n"
        "| wikitext2 | small, step 400,000 | smalsmalsmalsmal | wikitext2.txt |                 |"
    )
    assert dict(shared.rows) == {
        "model family": "diffusion", "model length": "1024", "model tokenizer": "gpt2",
        "model parameters": "1300000", "protocol": "sedd", "sha256": "0123456789ab",
        "wrap": "true", "length": "1024", "seed": "0",
    }  # fmt: skip


def test_published_rows_stand_beside_models_of_their_size(records):
    small = dataclasses.replace(
        records[0],
        model=records[0].model | {"parameters": 90_000_000},
        protocol=records[0].protocol | {"part": "all", "bound": "exact"},
    )
    titles = [table.title for table in tables([small])]
    assert titles == ["Likelihood", "Likelihood: what all rows share", "Published figures"]
    titles = [table.title for table in tables(records[:1], all_published=True)]
    assert titles[-1] == "Published figures"


def test_samples_in_the_order_of_their_cost(records):
    quality, shared = tables(records[3:])
    assert quality.columns[-2:] == ("MAUVE", "precision")
    assert [row[1:4] + row[-2:] for row in quality.rows] == [
        ("euler", "64", "65", "", "exact"),
        ("tweedie", "16", "17", "", "exact"),
        ("tweedie", "64", "65", "", "exact"),
        ("tweedie", "64", "65", "0.9100", "published"),
    ]
    assert quality.rows[1][4:12] == (
        "256", "1,234 +- 41", "98.8 +- 1.1", "5.432 +- 0.012", "0.250", "0.700", "0.940", "0.031",
    )  # fmt: skip
    assert quality.rows[0][6] == "nan"
    assert dict(shared.rows)["judge name"] == "gpt2-large"


def test_a_curve_joins_what_differs_in_steps_alone(records):
    drawn = {plot.name: plot for plot in plots(records)}
    assert list(drawn) == [
        "gen_perplexity_samples", "gen_perplexity_tokens", "entropy", "by_t-lambada",
        "by_t-wikitext2",
    ]  # fmt: skip
    sweep = drawn["gen_perplexity_samples"].curves
    assert sweep["tweedie, exact"] == ([17.0, 65.0], [1234.5, 1234.5], [41.0, 41.0])
    assert set(sweep) == {"tweedie, exact", "euler, exact", "tweedie, published"}
    # what is not a number is not drawn
    assert "euler, exact" not in drawn["gen_perplexity_tokens"].curves
    # the area below is the bound
    (curve,) = drawn["by_t-wikitext2"].curves.values()
    assert curve == ([0.0, 0.5, 0.5, 1.0], [2.0, 2.0, 5.86, 5.86])


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
    assert len(report["records"]) == 7 and len(report["tables"]) == 5
    images = {path.stem for path in tmp_path.glob("*.png")}
    assert images == {plot.name for plot in plots(records)}
    assert not list(tmp_path.glob("*.tmp"))
