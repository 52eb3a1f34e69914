"""The sampling binary as its user meets it."""

import json
import random
import time

import portpicker
import pytest

FAST = ("--steps=4", "--length=24")


def test_samples_are_printed(smoke_run, binary):
    template = r"--template=\[MASK:2]The[MASK:*]end."
    out = binary.run("sample", f"--checkpoint={smoke_run}", "--num_samples=2", template, *FAST)
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
    before = path.read_bytes()
    assert "exists already" in binary.refuse("sample", *flags)
    assert path.read_bytes() == before


def test_the_trace_ends_without_masks(smoke_run, binary):
    out = binary.run("sample", f"--checkpoint={smoke_run}", "--trace", "--frames=3", *FAST)
    frames = out.split("--- after ")[1:]
    assert [frame.split(" network")[0] for frame in frames] == ["0 of 5", "2 of 5", "5 of 5"]
    assert frames[0].count("░") == 24
    assert "░" not in frames[-1]


def test_a_job_goes_on_and_says_what_is_malformed(smoke_run, binary, tmp_path):
    source, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"template": "A[MASK:3]"}\n{"length": 4, "id": "x"}\n')
    flags = (f"--checkpoint={smoke_run}", f"--input={source}", f"--output={path}", "--steps=4")
    out = binary.run("sample", *flags, devices=2)
    assert "2 rows: 0 drawn before, 0 malformed.\n2 rows drawn; all" in out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((row["index"], row["id"], row["batch"]) for row in rows) == [
        (0, 0, 2), (1, "x", 2)
    ]  # fmt: skip
    before = path.read_bytes()
    assert "was drawn with another steps (4, and this" in binary.refuse(
        "sample", *flags[:-1], "--steps=5"
    )
    assert path.read_bytes() == before


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--checkpoint=FOLDER is needed"),
        (("--checkpoint=absent",), "There is no folder absent"),
        (("--checkpoint=RUN", "--checkpoint_step=3"), "no checkpoint of step 3; it has: 10, 20"),
        (
            ("--checkpoint=RUN", "--length=4", "--prefix=long"),
            "take 4 positions of 4: nothing is left to fill",
        ),
        (("--checkpoint=RUN", "--output=absent/out.jsonl"), "The folder of --output=absent/out"),
        (("--checkpoint=RUN", "--output=out.jsonl", "--trace"), "give one of them"),
        (("--checkpoint=RUN", "--sampler=heun"), "heun"),
        (("--checkpoint=RUN", "--mesh=data:1,x:2"), "--mesh=data:1,x:2 must be AXIS:SIZE,... with"),
        (("--checkpoint=RUN", "--top_p=7"), "top_p must be in (0, 1], got 7.0"),
        (("--checkpoint=RUN", "--num_samples=0"), "num_samples must be at least 1, got 0"),
        (("--checkpoint=RUN", "--template=[MASK:x]"), "[MASK:x] at character 1 of the template"),
        (
            ("--checkpoint=RUN", "--template=[MASK:9]", "--prefix=a"),
            "--template holds all the text",
        ),
        (("--checkpoint=RUN", "--input=in.jsonl"), "--input needs --output=FILE"),
        (
            ("--checkpoint=RUN", "--input=absent", "--output=x"),
            "--input=absent is no file, or empty",
        ),
        (
            ("--checkpoint=RUN", "--input=setup.py", "--output=x", "--steps=0"),
            "steps must be at least 1, got 0",
        ),
        (("--checkpoint=RUN", "--input=x", "--length=3"), "--length is for samples that are alike"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(smoke_run, binary, flags, message):
    assert message in binary.refuse(
        "sample", *(flag.replace("RUN", str(smoke_run)) for flag in flags)
    )
