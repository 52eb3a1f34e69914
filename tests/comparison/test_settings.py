"""What a comparison refuses, before anything is computed."""

import re

import pytest

from sedd_jax.comparison.runs import Plan
from sedd_jax.comparison.score import DataSets
from sedd_jax.comparison.settings import keep_settings, open_rows
from sedd_jax.errors import BadInput
from tests.comparison.rows import comparison_of


def changed(config, path, value):
    *groups, last = path.split(".")
    for name in groups:
        config = config[name]
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("rows", {}, "config.rows is empty: name at least one row"),
        ("rows", {"A": {}}, "config.rows.A names a folder: use a-z, 0-9 and _."),
        ("rows", {"a": 1}, "config.rows.a must be a group of settings, got 1."),
        ("rows", {"a": {"title": 1}}, "config.rows.a.title must be a text, got 1."),
        ("rows", {"a": {"model": {"width": 1}}}, "config.rows.a: config.model.width is not a sett"),
        ("rows", {"a": {"modle": {}}}, "config.rows.a: config.modle is not a setting; there are:"),
        ("rows", {"a": {"model": 1}}, "config.rows.a: config.model must be a group of settings"),
        ("rows", {"a": {"graph": "uniform"}}, "config.rows.a: config.model.scale_by_sigma is only"),
        ("rows", {"a": {"family": "no.such:thing"}}, "config.rows.a: config.family=no.such:thing"),
        ("rows", {"a": {"published": "BERT"}}, "must be a row of the paper's Table 1 (GPT-2, SEDD"),
        ("rows", {"a": {"config": "absent.py"}}, "config.rows.a.config: there is no file absent"),
        ("rows", {"a": {"title": "b"}, "b": {}}, "Two of config.rows have the title 'b'"),
        (
            "rows",
            {"a": {}, "b": {"data": {"corpus": "other.txt"}}},
            "config.rows.b has other text than a (data.corpus: ",
        ),
        ("comparison.temperatures", "0.8;1", "temperatures must be numbers with commas, as in"),
        ("comparison.temperatures", "-1", "temperature must be"),
        ("comparison.sampler", "nonsense", "nonsense"),
        ("comparison.samples", 1, "num_samples is 1"),
        ("comparison.reference", "b", "config.comparison.reference='b' is none of config.rows: "),
        ("comparison.seeds", 0, "config.comparison.seeds must be positive, got 0."),
    ],
)
def test_bad_settings_are_one_sentence(small, path, value, said):
    config = small()
    if path == "rows":
        config.comparison.reference = ""
    changed(config, path, value)
    with pytest.raises(BadInput, match=re.escape(said)):
        comparison_of(config)


def test_a_flag_for_a_row_finds_the_shared_value_to_change(small):
    config = small()
    config.rows.a = {}
    keys = "a.train.objective", "a.seed", "a.title", "a.no", "absent.seed"
    open_rows(config, ["compare", *(f"--config.rows.{key}=1" for key in keys)])
    found = {"train": {"objective": config.train.objective}, "seed": config.seed, "title": ""}
    assert config.rows.a.to_dict() == found and "absent" not in config.rows


def test_a_row_takes_another_config_file(small, tmp_path):
    file = tmp_path / "other.py"
    file.write_text(
        "from sedd_jax.experiment.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config()\n    config.model.length = 24\n    return config\n"
    )
    config = small()
    config.comparison.reference = ""
    own = {"data": {"corpus": config.data.corpus, "separator": config.data.separator}}
    own["data"]["heldout_fraction"] = config.data.heldout_fraction
    config.rows = {"a": {}, "b": own | {"config": str(file), "seed": 3}}
    a, b = (row.config for row in comparison_of(config).rows)
    assert (a.model.length, b.model.length, b.model.hidden_size) == (8, 24, 768)
    assert (b.seed, b.data) == (3, a.data)


def test_rows_of_other_tokens_are_known_and_have_no_samples(small, tmp_path):
    config = small()
    assert comparison_of(config).one_tokenizer
    config.rows["absorb"] = {"data": {"tokenizer": "characters", "vocab_size": 0}}
    comparison = comparison_of(config)
    assert not comparison.one_tokenizer
    plan = Plan(comparison, tmp_path, ["absorb"], None, DataSets())
    assert all(plan.request(run).settings.samples == 0 for run in plan.runs)


def test_a_folder_holds_one_comparison_to_which_rows_may_be_added(small, tmp_path):
    config = small()
    keep_settings(tmp_path, comparison_of(config))
    config.rows["more"] = {"train": {"objective": "score_entropy"}}
    config.comparison.seeds = 3
    config.eval.every = 3
    keep_settings(tmp_path, comparison_of(config))
    for path, value, said in (
        ("comparison.seeds", 1, "comparison.seeds: 3 -> 1"),
        ("comparison.draws", 4, "comparison.draws: 2 -> 4"),
        ("train.steps", 8, "ar: train.steps: 6 -> 8"),
        ("model.length", 16, "ar: model.length: 8 -> 16"),
    ):
        again = small()
        again.comparison.seeds = 3
        changed(again, path, value)
        with pytest.raises(BadInput, match=re.escape(f"other settings ({said}")):
            keep_settings(tmp_path, comparison_of(again))


def test_a_folder_of_something_else_is_refused(small, tmp_path):
    comparison = comparison_of(small())
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput, match=r"holds notes.txt and no comparison; choose another"):
        keep_settings(tmp_path, comparison)
    for other in (
        '{"seed": 0}',
        '{"comparison": 3, "rows": {}}',
        '{"comparison": {}, "rows": []}',
        '{"comparison": {}, "rows": {"ar": {"config": 3}}}',
    ):
        (tmp_path / "config.json").write_text(other)
        with pytest.raises(BadInput, match=r"config.json holds no comparison; choose another"):
            keep_settings(tmp_path, comparison)
