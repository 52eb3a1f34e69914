"""The sampling binary as its user meets it."""

import csv
import json
import random
import re
import subprocess
import sys
import time

import portpicker
import pytest

FAST = ("--steps=4", "--length=24")
_RUN = "--checkpoint=RUN"
REFUSED = {
    (_RUN, "--output=absent/out.jsonl"): "The folder of --output=absent/out",
    (_RUN, "--output=taken"): "taken exists already",
    (_RUN, "--output=/dev/null"): "exists already; give --output another name",
    (_RUN, "--output="): ". exists already",
    (
        _RUN,
        "--output=new",
    ): "--output=new does not end in one of .jsonl, .txt, .csv, .npz, .fasta, .fa",
    (_RUN, "--output=new.fa"): "the tokenizer of the model ('bytes') has other tokens",
    (_RUN, "--html="): ". exists already",
    (_RUN, "--template="): "no hole to fill",
    (_RUN, "--output=out.jsonl", "--trace"): "--output is for plain samples or --input, and not",
    (_RUN, "--trace", "--html=new"): "--trace and --html show samples in different ways",
    (_RUN, "--trace", "--num_samples=2"): "--num_samples is for plain samples or --html, and not",
    (_RUN, "--html=new", "--batch_size=2"): "--batch_size is for plain samples or --input, and",
    (_RUN, "--frames=2"): "--frames is for --trace, and not for plain samples",
    (_RUN, "--num_processes=2"): "--num_processes is for --input, and not for plain samples",
    (_RUN, "--trace", "--distributed=no"): "--distributed is for --input, and not for --trace",
    (_RUN, "--input=x", "--length=3"): "--length is for plain samples or --html or --trace, and",
    (_RUN, "--input=in.jsonl"): "--input needs --output=FILE",
    (_RUN, "--input=absent", "--output=x.csv"): "--input=absent is no file, or empty",
    (_RUN, "--input=in", "--output=x/y"): "The folder of --output=x/y does not exist",
    (_RUN, "--input=in", "--output=folder"): "folder exists already",
    (_RUN, "--input=in", "--output=x.jsonl", "--steps=0"): "steps must be at least 1, got 0",
    (_RUN, "--mesh=data:1,x:2"): "--mesh=data:1,x:2 must be AXIS:SIZE,... with",
    (_RUN, "--top_p=7"): "top_p must be in (0, 1], got 7.0",
    (_RUN, "--num_samples=0"): "num_samples must be at least 1, got 0",
    (_RUN, "--length=1099511627776"): "length must be a whole number in [1, 2048]",
    (_RUN, "--template=[MASK:9]", "--prefix=a"): "--template holds all the text",
    ("--checkpoint=absent",): "There is no folder absent",
    (_RUN, "--checkpoint_step=3"): "no checkpoint of step 3; it has: 10, 20",
}
TEMPLATE = r"--template=\[MASK:2]The[MASK:*]end."
DRAWN = {
    "printed": (_RUN, "--num_samples=2", TEMPLATE, *FAST, "--sampler=first_hitting"),
    "trace": (_RUN, "--trace", "--frames=3", *FAST),
    "page": (_RUN, "--html=page.html", "--num_samples=1", *FAST),
}
_MAIN = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from sedd_jax import sample
found = []
for given in json.load(sys.stdin):
    with flagsaver.flagsaver(), contextlib.redirect_stdout(io.StringIO()) as out:
        flags.FLAGS(["sample", *given])
        try:
            error = sample.main()
        except sample.BadInput as refused:
            error = str(refused)
    found.append((out.getvalue(), error))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def called(smoke_run, binary, tmp_path_factory):
    """What all calls above print and what they refuse, in one process: imports take long."""
    folder = tmp_path_factory.mktemp("called")
    for name in ("taken", "in"):
        (folder / name).write_text("{}")
    (folder / "folder").mkdir()
    calls = [*DRAWN.values(), *REFUSED]
    given = [[flag.replace("RUN", str(smoke_run)) for flag in flags] for flags in calls]
    done = subprocess.run(
        [sys.executable, "-c", _MAIN],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=folder,
        env=binary.environment | {"PYTHONPATH": str(binary.root)},
    )
    assert done.returncode == 0, done.stderr
    found = dict(zip([*DRAWN, *REFUSED], json.loads(done.stdout), strict=True))
    return found | {"html": (folder / "page.html").read_text()}


def test_samples_are_printed(called):
    out, error = called["printed"]
    assert error is None
    before, *samples = out.split("--- sample ---\n")
    assert (before, len(samples)) == ("", 2)
    for sample in samples:
        assert sample.startswith("[MASK:2]The")
        assert sample.endswith("end.\n")


def test_json_lines_are_written_once(smoke_run, binary, tmp_path):
    path = tmp_path / "out.jsonl"
    flags = (f"--checkpoint={smoke_run}", f"--output={path}", "--num_samples=3", *FAST)
    places = (f"--tokenizer={smoke_run}/data/tokenizer", "--mesh=data:1,fsdp:2")
    texts = ("--prefix=The ", "--suffix= end.")
    settings = (*flags, *places, *texts, "--seed=4", "--sampler=euler")
    binary.run("sample", *settings, devices=2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert (row["seed"], row["sampler"], row["steps"]) == (4, "euler", 4)
        assert len(row["tokens"]) == 24
        assert row["text"].startswith("The ")
        assert row["text"].endswith(" end.")
        assert row["text"] == f"The {row['holes'][0]} end."
        assert row["evaluations"] == 5


def test_a_page_plays_the_samples(called):
    data = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', called["html"], re.DOTALL)
    last = json.loads(data[1])["frames"][-1]
    assert last["calls"] == last["most"] == 5


def test_the_trace_ends_without_masks(called):
    out, _ = called["trace"]
    frames = out.split("--- after ")[1:]
    assert [frame.split(" network")[0] for frame in frames] == ["0 of 5", "2 of 5", "5 of 5"]
    assert frames[0].count("░") == 24
    assert "░" not in frames[-1]


def test_a_job_draws_a_row_for_every_line(smoke_run, binary, tmp_path):
    source, path = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text('{"template": "A[MASK:3]"}\n{"length": 4, "id": "x"}\n')
    flags = (f"--checkpoint={smoke_run}", f"--input={source}", f"--output={path}", "--steps=4")
    out = binary.run("sample", *flags, devices=2)
    assert "2 rows: 0 drawn before, 0 malformed.\n2 rows drawn; all" in out
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["index"], row["id"], row["text"][:1]) for row in table] == [
        ("0", "0", "A"), ("1", "x", table[1]["text"][:1])
    ]  # fmt: skip
    appended = path.with_name("out.csv.jsonl")
    rows = [json.loads(line) for line in appended.read_text().splitlines()]
    assert sorted((row["index"], row["id"], row["batch"]) for row in rows) == [
        (0, 0, 2), (1, "x", 2)
    ]  # fmt: skip


def prompts(path, rows=200, templates=40):
    """Writes lines of many templates, some of them with names for ids."""
    rng = random.Random(0)
    words = ["Once", " the", " end.", " of a", "\n", " it", "s"]
    texts = [
        "".join(f"{rng.choice(words)}[MASK:{rng.randint(1, 6)}]" for _ in range(1 + number % 3))
        for number in range(templates)
    ]
    with path.open("w") as file:
        for index in range(rows):
            line = {"template": texts[index % templates]}
            name = {"id": f"row {index}"} if index % 3 == 0 else {}
            file.write(json.dumps(line | name) + "\n")
    return path


def drawn(path):
    """The rows of an output by id, without what depends on time; each one once."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    found = {record["id"]: record | {"seconds": None} for record in records}
    assert len(found) == len(records) == 200
    return found


def killed(binary, output, flags, rng):
    """Kills a job at a random moment after it has begun to write; says how many rows are there."""

    def rows():
        return output.read_bytes().count(b"\n") if output.exists() else 0

    enough = rows() + rng.randint(1, 40)
    process = binary.start("sample", *flags)
    while rows() < enough:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
    return rows()


@pytest.mark.slow
@pytest.mark.unsteady
def test_a_job_killed_three_times_ends_as_if_it_had_not_been(smoke_run, binary, tmp_path):
    source = prompts(tmp_path / "in.jsonl")
    flags = [f"--checkpoint={smoke_run}", f"--input={source}", "--steps=128", "--batch_size=8"]
    output, straight, parallel = (tmp_path / name for name in ("killed", "straight", "parallel"))
    rng, there = random.Random(1), [0]
    for _ in range(3):
        there.append(killed(binary, output, [*flags, f"--output={output}"], rng))
    print(f"rows after every kill: {there[1:]}")
    assert 0 < there[1] < there[2] < there[3] < 200
    binary.run("sample", *flags, f"--output={output}")
    binary.run("sample", *flags, f"--output={straight}")
    assert drawn(output) == drawn(straight)
    binary.run("sample", *flags, f"--output={parallel}", devices=8)
    tokens = [{k: row["tokens"] for k, row in drawn(path).items()} for path in (straight, parallel)]
    assert tokens[0] == tokens[1]
    pair = tmp_path / "pair"
    job = (f"--coordinator=localhost:{portpicker.pick_unused_port()}", "--num_processes=2")
    processes = [
        binary.start(
            "sample", *flags, f"--output={pair}", *job, f"--process_id={number}", devices=2
        )
        for number in range(2)
    ]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert {name: row["tokens"] for name, row in drawn(pair).items()} == tokens[0]
    assert not list(tmp_path.glob("*.lock"))


def test_bad_input_is_a_sentence(called):
    for flags, message in REFUSED.items():
        printed, error = called[flags]
        assert printed == ""
        assert message in error


def test_bad_input_is_one_line_and_a_failure(binary):
    assert "--checkpoint=FOLDER is needed" in binary.refuse("sample")


def test_a_host_joins_the_others_before_anything_that_may_fail_on_it_alone(binary):
    """One that refused alone, before that, would leave the others waiting."""
    _, job = (binary.root / "sedd_jax" / "sample.py").read_text().split("def _fill_in")
    job, _ = job.split("\n\n\ndef ", 1)
    calls = (
        "initialize_distributed(",
        "on_primary(check_output)",
        "run_primary_first(check_source, check_source)",
        "_model(",
    )
    places = [job.index(call) for call in calls]
    assert places == sorted(places)
