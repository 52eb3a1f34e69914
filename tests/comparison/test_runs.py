"""A comparison from its first run to its report, and again after parts of it are gone."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from sedd_jax.comparison import runs
from sedd_jax.comparison.figures import ALONE, collect, difference
from sedd_jax.comparison.report import write
from sedd_jax.comparison.runs import complete
from sedd_jax.comparison.score import DataSets
from sedd_jax.comparison.tables import report
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.record import FOLDER
from sedd_jax.experiment.checkpoint_folder import FOLDER as CHECKPOINTS
from sedd_jax.experiment.run import locked
from tests.comparison.rows import plan_of, quickly

pytestmark = pytest.mark.slow  # every run is a process of its own

TIMED = ("ms/step", "seconds")  # what the machine decides


def untimed(value):
    """A report without what another run of the same machine measures otherwise."""
    if isinstance(value, dict):
        if "columns" in value:
            kept = [i for i, name in enumerate(value["columns"]) if name not in TIMED]
            rows = [[row[i] for i in kept] for row in value["rows"]]
            return {"title": value["title"], "rows": rows}
        return {key: untimed(it) for key, it in value.items() if key not in TIMED}
    return list(map(untimed, value)) if isinstance(value, list) else value


def table(plan):
    write(plan, drawn=False)
    text = (plan.folder / "comparison.json").read_text()
    return untimed(json.loads(text.replace(str(plan.folder), "")))


def rows_of(plan):
    """The report, and the rows of its first table by their names."""
    found = report(plan.comparison, collect(plan), None)
    first = found.tables[0]
    return found, {row[0]: dict(zip(first.columns, row, strict=True)) for row in first.rows}


def test_the_table_has_every_row_with_its_errors(finished):
    found, rows = rows_of(finished)
    assert list(rows) == ["ar", "SEDD absorb"]
    for name, sign, evaluations in (("ar", "= ", "8"), ("SEDD absorb", "<= ", "3")):
        row = rows[name]
        assert row["bits/byte"].startswith(sign) and row["evaluations"] == evaluations
        assert all(float(row[key]) > 0 for key in ("± data", "± seeds", "ms/step", "memory, MiB"))
        assert row["gen. perplexity"].endswith(ALONE) and "remark" not in row
    said = " ".join(found.notes)
    assert "ar judges itself" in said and "by the first run of ar, interpolated" in said
    assert "ar has 50% fewer parameters than SEDD absorb." in found.notes
    assert "trained on 384 tokens" in said and "one seed" not in said


def test_means_and_errors_are_those_of_the_records(finished):
    ar, absorb = collect(finished)
    for row in (ar, absorb):
        figures = [each.likelihood().figures for each in row.scored]
        bits = row.bits_per_byte()
        each = [it["bits_per_byte"] for it in figures]
        assert bits.value == pytest.approx(np.mean(each))
        assert bits.seeds == pytest.approx(np.std(each, ddof=1) / np.sqrt(2))
    found, paired = difference(absorb, ar)
    assert paired
    blocks = [np.mean([it.likelihood().figures["nats_by_block"] for it in row.scored], 0)
              for row in (absorb, ar)]  # fmt: skip
    figures = ar.scored[0].likelihood().figures
    tokens = np.array([8] * (len(blocks[0]) - 1) + [figures["tokens"] - 8 * (len(blocks[0]) - 1)])
    gap = blocks[0] - blocks[1]
    per_token = gap.sum() / tokens.sum()
    residuals = gap - per_token * tokens
    freedom = 1 - ((tokens / tokens.sum()) ** 2).sum()
    scale = figures["tokens"] / figures["bytes"] / np.log(2)
    assert found.value == pytest.approx(per_token * scale, abs=1e-4)
    error = np.sqrt((residuals**2).sum() / freedom) / tokens.sum() * scale
    assert found.data == pytest.approx(error, rel=1e-6)


def test_what_is_gone_is_made_again_and_the_table_is_the_same(finished, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(finished.folder, folder)
    plan = dataclasses.replace(finished, folder=folder)
    before = table(plan)
    complete(plan, lambda: pytest.fail("a finished run was not left alone"))
    shutil.rmtree(folder / "absorb" / "seed_0" / CHECKPOINTS / "6")  # killed while it trained,
    shutil.rmtree(folder / "absorb" / "seed_0" / FOLDER)
    next((folder / "ar" / "seed_0" / FOLDER).glob("quality-real-text-*.json")).unlink()  # scored,
    (folder / "absorb" / "seed_1").rename(tmp_path / "moved")  # and before it began
    told = []
    with quickly():
        complete(plan, lambda: told.append(1))
    assert len(told) == 3
    assert table(plan) == before


def test_a_table_tells_of_rows_that_diverge_or_were_not_picked(small, tmp_path):
    config = small()
    config.comparison.seeds = 1
    config.rows.wild = {
        "optim": {"learning_rate": 1e9, "warmup_steps": 1},
        "train": {"max_skipped": 2},
        "eval": {"every": 6},
    }
    plan = plan_of(config, tmp_path / "some", ["wild"])
    with quickly():
        complete(plan, lambda: None)
    found, rows = rows_of(plan)
    assert rows["ar"]["remark"] == "not run yet" and not (plan.folder / "ar").exists()
    assert rows["wild"]["remark"].startswith("failed: 2 steps in a row made no update; the")
    assert rows["wild"].keys() == {"row", "remark"}
    (note,) = found.notes
    assert note.startswith("wild, seed 0 failed: 2 steps in a row made no update; the ")


def test_rows_of_other_tokens_are_compared_in_bits_per_byte(small, tmp_path):
    config = small()
    config.rows.letters = {"data": {"tokenizer": "characters", "vocab_size": 0}}
    config.comparison.seeds, config.comparison.samples = 1, 0
    plan = plan_of(config, tmp_path / "some", ["absorb", "letters"])
    with quickly():
        complete(plan, lambda: None)
    found, rows = rows_of(plan)
    assert rows["SEDD absorb"]["bits/byte"] and rows["SEDD absorb"]["remark"] is None
    said = " ".join(found.notes)
    assert "No samples were drawn" in said and "There is one seed" in said
    assert "different tokenizers: they are compared in bits per byte alone" in said
    assert rows["letters"]["bits/byte"].startswith("<= ") and "perplexity" not in rows["letters"]
    against = next(table for table in found.tables if table.title.startswith("Bits per byte less"))
    ((name, _, _, paired),) = against.rows
    assert (name, paired) == ("letters", "no")


def test_other_data_sets_have_a_table(finished, tmp_path):
    text = tmp_path / "ptb.txt"
    text.write_text("12 and 144 are two numbers .\n" * 8)
    folder = tmp_path / "zeroshot"
    shutil.copytree(finished.folder, folder)
    data = DataSets(("ptb",), sources={"ptb": str(text)})
    plan = dataclasses.replace(finished, folder=folder, picked=["absorb"], data=data)
    with quickly():
        complete(plan, lambda: None)
    found, rows = rows_of(plan)
    assert rows["ar"]["remark"] == "not scored yet"
    (table,) = (table for table in found.tables if table.title == "Zero-shot, perplexity")
    ((name, perplexity),) = table.rows
    figures = [each.likelihood("ptb").figures for each in collect(plan)[1].scored]
    value = np.exp(np.mean([it["nats_per_token"] for it in figures]))
    assert (name, table.columns) == ("SEDD absorb", ("row", "PTB"))
    assert float(perplexity.split()[1]) == pytest.approx(value, rel=0.05)
    assert perplexity.startswith("<= ") and " +- " in perplexity


def test_a_run_that_another_process_has_is_waited_for(finished, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "_PATIENCE", 0.1)
    run = finished.runs[0]._replace(parent=tmp_path)
    with locked(run.folder), pytest.raises(BadInput, match="is in use by process"):
        runs._wait_for_former(run)
    runs._wait_for_former(run)


def test_the_files_hold_the_same_tables(finished, tmp_path):
    folder = tmp_path / "written"
    shutil.copytree(finished.folder, folder)
    write(dataclasses.replace(finished, folder=folder), drawn=True)
    text, page = ((folder / f"comparison.{form}").read_text() for form in ("md", "html"))
    for shown in ("SEDD absorb", "93.47", "not comparable with the above", "judges itself"):
        assert shown in text and shown in page
    assert page.count("<svg") == 2 and "<script" not in page
    assert all((folder / f"{name}.png").stat().st_size for name in ("training", "quality"))
