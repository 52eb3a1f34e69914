"""The comparison as its user meets it: bad input, a kill at any moment, a stop."""

import json
import os
import signal
import time

import pytest

CONFIG = """
from sedd_jax.comparison.settings import default_comparison


def get_config():
    config = default_comparison()
    config.data.corpus, config.data.separator = {corpus!r}, r"\\n\\n"
    config.data.heldout_fraction = 0.3
    config.model.hidden_size = config.model.length = config.model.cond_dim = 8
    config.model.num_heads, config.model.num_blocks, config.model.dropout = 2, 1, 0.0
    config.train.steps, config.train.batch_size, config.train.log_every = 300, 4, 20
    config.eval.every, config.eval.batch_size, config.eval.max_blocks = 300, 4, 8
    config.eval.num_samples, config.checkpoint.every = 0, 20
    config.comparison.draws, config.comparison.max_blocks, config.comparison.samples = 1, 8, 2
    config.comparison.evaluations = 3
    config.rows.ar = {{"family": "autoregressive", "model": {{"cond_dim": 128}}}}
    config.rows.absorb = {{}}
    return config
"""


@pytest.fixture
def config(tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_text("\n\n".join(f"{i} and {i * i} are two numbers." for i in range(40)))
    file = tmp_path / "rows.py"
    file.write_text(CONFIG.format(corpus=str(corpus)))
    return f"--config={file}"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--rows=nobody", "--rows='nobody' is no row; there are ar, absorb."),
        ("--config.model.width=1", "width"),
        ("--config.rows.ar.model.width=1", "width"),
        ("--config.rows.absorb.graph=uniform", "config.rows.absorb: config.model.scale_by_sigma"),
        ("--suite=nowhere", "There is no suite 'nowhere'; there are zeroshot, heldout"),
        ("--data=.", "--data, --sources and --download are for data sets: name them by --suite."),
        ("--judge=nowhere", "nowhere"),
        ("--config.comparison.temperatures=warm", "must be numbers with commas, as in 0.8,1"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(binary, config, tmp_path, flag, said):
    assert said in binary.refuse("compare", config, f"--workdir={tmp_path / 'new'}", flag)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_another_comparison_is_refused(binary, config, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "notes.txt").touch()
    flags = (config, f"--workdir={folder}")
    assert "holds notes.txt and no comparison" in binary.refuse("compare", *flags)


def without_times(folder):
    """The report of a comparison, without what the machine decides."""
    report = json.loads((folder / "comparison.json").read_text().replace(str(folder), ""))
    first = report["tables"][0]
    timed = first["columns"].index("ms/step")
    first["rows"] = [row[:timed] + row[timed + 1 :] for row in first["rows"]]
    for row in report["rows"]:
        for record in row["runs"][0]["records"]:
            record["figures"].pop("seconds")
    return report


@pytest.mark.slow
@pytest.mark.unsteady
def test_killed_twice_and_stopped_it_ends_in_the_uninterrupted_table(binary, config, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    binary.run("compare", config, f"--workdir={whole}")
    for name, what in (("ar", signal.SIGKILL), ("absorb", signal.SIGKILL), ("absorb", None)):
        process = binary.start("compare", config, f"--workdir={broken}")
        saved = broken / name / "seed_0" / "checkpoints"
        wanted = "*" if what else "1[0-9]0"  # a later step, the third time
        deadline = time.monotonic() + 300
        while not any(saved.glob(wanted)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        if what:
            os.kill(process.pid, what)
            process.communicate(timeout=60)
        else:
            process.terminate()
            _, err = process.communicate(timeout=60)
            assert process.returncode == 143
            assert "Stopped by SIGTERM; the same command continues from there." in err
    out = binary.run("compare", config, f"--workdir={broken}")
    assert "1/2  ar" not in out  # it was complete
    assert without_times(broken) == without_times(whole)


@pytest.mark.slow
@pytest.mark.unsteady
def test_a_second_comparison_in_the_folder_is_refused(binary, config, tmp_path):
    flags = (config, f"--workdir={tmp_path / 'one'}")
    process = binary.start("compare", *flags)
    while not (tmp_path / "one" / "config.json").exists():
        time.sleep(0.05)
    assert "is in use by process" in binary.refuse("compare", *flags)
    process.terminate()
    process.communicate(timeout=60)
