"""Batch jobs: every row once, by its own id alone, whatever happens in between."""

import codecs
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.data.characters import Bytes
from sedd_jax.errors import BadInput, Halted
from sedd_jax.experiment.config import MeshConfig
from sedd_jax.experiment.mesh import build_mesh
from sedd_jax.inference.build import build_family
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.template import pad, row_from_template
from sedd_jax.jobs import job
from sedd_jax.jobs.input import number_of
from sedd_jax.jobs.output import open_output
from sedd_jax.system.outputs import opened_file

SETTINGS = {"steps": 3, "sampler": "tweedie"}
LINES = [
    {"template": "Once [MASK:3]the[MASK:2]"},
    {"template": "[MASK:9]end", "id": "last"},
    {"prefix": "a", "suffix": "b", "length": 7, "id": 4_000_000_000},
    {"tokens": [65, None, 66], "id": "tokens"},
    {"length": 16},
    {"template": "A [MASK:4]B", "id": "ähm"},
    {"template": "It was[MASK:*]"},
    {"prefix": "a", "length": 70, "id": "long"},  # in windows of 32
]


@pytest.fixture(scope="module")
def checkpoint(smoke_run):
    return sedd.load(smoke_run)


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(checkpoint, source, output, **options):
    options = {"seed": 3, "batch_size": 4, "settings": SETTINGS} | options
    job.run(checkpoint, source, output, **options)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_id(path):
    """The records without what depends on time, by id: each one once."""
    records = read(path)
    found = {record["id"]: record | {"seconds": None} for record in records}
    assert len(found) == len(records)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("source") / "prompts.jsonl", LINES)


@pytest.fixture(scope="module")
def output(checkpoint, source, tmp_path_factory):
    path = tmp_path_factory.mktemp("output") / "out.jsonl"
    run(checkpoint, source, path)
    return path


def test_a_row_is_drawn_as_it_would_be_alone(checkpoint, output):
    records = by_id(output)
    assert set(records) == {0, "last", 4_000_000_000, "tokens", 4, "ähm", 6, "long"}
    for name in (0, "ähm"):
        record = records[name]
        template = LINES[record["index"]]["template"]
        row = row_from_template(template, checkpoint.tokenizer, None, 32)
        tokens, found = sedd.generate(
            jax.random.key(3),
            checkpoint,
            1,
            16,
            prompt=pad([row], 16),
            rows=np.array([number_of(name)]),
            **SETTINGS,
        )
        assert record["tokens"] == tokens[0, : len(row.tokens)].tolist()
        assert record["evaluations"] == found.evaluations[0]


def test_a_record_says_what_was_drawn_and_how(checkpoint, output):
    records = by_id(output)
    first = records[0]
    assert list(first)[:2] == ["index", "id"]
    assert {key: first[key] for key in ("seed", "evaluations", "batch")} == {
        "seed": 3, "evaluations": 4, "batch": 4
    }  # fmt: skip
    assert first.items() >= SETTINGS.items()
    text = first["text"]
    assert text == checkpoint.tokenizer.decode(first["tokens"])
    assert text == f"Once {first['holes'][0]}the{first['holes'][1]}"
    assert records["last"]["text"].endswith("end")
    assert records["tokens"]["tokens"][::2] == [65, 66]
    assert [len(records[name]["tokens"]) for name in (4_000_000_000, 4, 6, "long")] == [
        7, 16, 32, 70
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [0, 7])
def test_a_killed_job_goes_on_with_the_rows_that_are_missing(
    checkpoint, source, output, tmp_path, kept
):
    lines = output.read_bytes().splitlines(keepends=True)
    there = b"".join(lines[:kept])
    again = tmp_path / "out.jsonl"
    for torn in (lines[kept][:5], lines[kept][:-1] + b"\0\0"):
        again.write_bytes(there + torn)
        run(checkpoint, source, again)
        assert again.read_bytes().startswith(there)
        assert by_id(again) == by_id(output)
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl"}


@pytest.mark.slow
def test_other_batches_and_devices_give_the_same_rows(checkpoint, smoke_run, output, tmp_path):
    mesh = build_mesh(MeshConfig(), jax.devices()[:2])
    source, path = write(tmp_path / "in.jsonl", LINES[:-2]), tmp_path / "out.jsonl"
    run(sedd.load(smoke_run, mesh=mesh), source, path, batch_size=5)
    expected = by_id(output)
    for name, record in by_id(path).items():
        assert record["tokens"] == expected.pop(name)["tokens"]
    assert list(expected) == [6, "long"]


def test_an_output_of_something_else_is_left_alone(checkpoint, source, output, tmp_path):
    other = tmp_path / "out.jsonl"
    good = output.read_bytes()
    changed = write(tmp_path / "changed.jsonl", [{"template": "[MASK:3]"}, *LINES[1:]])
    fewer = write(tmp_path / "fewer.jsonl", LINES[:-1])
    weights = dataclasses.replace(
        checkpoint, params=jax.tree.map(lambda x: x * 2, checkpoint.params)
    )
    for content, options, message in (
        (good, {"seed": 4}, "drawn with another seed \\(3, and this job has 4\\): run the command"),
        (good, {"settings": SETTINGS | {"steps": 4}}, "another steps"),
        (good, {"settings": SETTINGS | {"new": 1}}, "another new"),
        (good, {"settings": SETTINGS | {"tempering": "conditional"}}, "tempering \\('token', and"),
        (good, {"checkpoint": weights}, "another model"),
        (good, {"source": changed}, "id 0 made from another line than line 1"),
        (good, {"source": fewer}, "id 'long' made from another line than line 8"),
        (good + good, {}, "holds the row .* twice"),
        (good + b"{}\n", {}, "Line 9 of .* is not a record of a sampling job"),
        (b"notes\n" + good, {}, "Line 1 of"),
        (good + b"notes", {}, "Line 9 of"),
        (good + b'{"index": [], "id": 1, "line": ""}\n', {}, "Line 9 of"),
        (b'{"index": 5, important notes', {}, "Line 1 of"),
        (b"\0\0notes", {}, "Line 1 of"),
    ):
        other.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            run(**{"checkpoint": checkpoint, "source": source, "output": other} | options)
        assert other.read_bytes() == content


def test_no_row_is_drawn_twice_when_a_line_is_mended(checkpoint, output, tmp_path):
    """A line that was malformed takes the id of one that is drawn already."""
    path, source = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", [LINES[1], *LINES[1:]])
    lines = output.read_bytes().splitlines(keepends=True)
    kept = b"".join(line for line in lines if b'"index": 0,' not in line)
    path.write_bytes(kept)
    with pytest.raises(BadInput, match="a row of line 2 of the input, which is malformed now"):
        run(checkpoint, source, path)
    assert path.read_bytes() == kept


def test_an_output_is_a_file_and_a_link_to_one_stays(checkpoint, source, output, tmp_path):
    link, path = tmp_path / "link.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(output.read_bytes() + b'{"ind')
    link.symlink_to(path)
    run(checkpoint, source, link, settings=SETTINGS | {"tempering": "token"})  # a younger setting
    assert link.is_symlink()
    assert path.read_bytes() == output.read_bytes()
    for other, message in (
        (tmp_path, "is not a file"),
        (Path("/dev/null"), "is not a file"),
        (tmp_path / "absent" / "out.jsonl", "does not exist"),
    ):
        with pytest.raises(BadInput, match=message):
            run(checkpoint, source, other)


def test_two_jobs_do_not_share_an_output(checkpoint, source, tmp_path):
    path = tmp_path / "out.jsonl"
    with (
        open_output(path, [], {}),
        pytest.raises(BadInput, match="out.jsonl is in use by process .*give another --output"),
    ):
        run(checkpoint, source, path)


def test_an_output_in_a_bucket_goes_on_where_it_was_uploaded(
    checkpoint, source, output, memory_bucket, tmp_path, capsys
):
    key, lines = "some/out.jsonl", output.read_bytes().splitlines(keepends=True)
    memory_bucket.objects[key] = b"".join(lines[:3]) + lines[3][:20]  # as a killed job leaves it
    with opened_file(f"gs://bucket/{key}", "--output") as path:
        run(checkpoint, source, path)
    assert "all valid ones are in gs://bucket/some/out.jsonl." in capsys.readouterr().out
    assert memory_bucket.objects.keys() == {key}  # the lease is given up
    assert memory_bucket.objects[key].startswith(b"".join(lines[:3]))
    uploaded = tmp_path / "out.jsonl"
    uploaded.write_bytes(memory_bucket.objects[key])
    assert by_id(uploaded) == by_id(output)


MALFORMED = {
    '{"template": "a"}': "no hole to fill",
    '{"template": 3}': "template must be text, got 3",
    '{"tokens": "ab"}': "tokens must be a list, got 'ab'",
    '{"tokens": [1, 999]}': "Position 1 of the tokens is 999",
    '{"templat": "[MASK:2]"}': "'templat' is not a key of a row: it may have condition, id,",
    '{"template": "[MASK:2]", "suffix": "a"}': "only one of these",
    '{"prefix": "a", "length": 2049}': "length must be a whole number in [1, 2048], got 2049",
    '{"length": -1}': "length must be a whole number in [1, 2048], got -1",
    '{"template": "[MASK:33]"}': "more than 32 positions",
    '{"id": "last", "length": 2}': "The id 'last' is that of line 2 already",
    '{"id": 0, "length": 2}': "The id 0 is that of line 1 already",
    '{"id": -1}': "id must be a string or a whole number in [0, 2^32), got -1",
    '{"id": true}': "got True",
    '{"id": [1]}': "got [1]",
    '{"template": ': "The line is not JSON",
    "[" * 100_000: "The line is not JSON",
    "1" * 5000: "The line is not JSON",
    "\udcff": "The line is not JSON",
    '["a"]': "must be a JSON object",
}


def test_malformed_lines_are_told_and_the_others_drawn(checkpoint, output, tmp_path, capsys):
    source, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = [json.dumps(line) for line in LINES]
    lines = "\n".join([*good, "", *MALFORMED]).encode(errors="surrogateescape")
    source.write_bytes(codecs.BOM_UTF8 + lines)
    for already in (0, 8):
        with pytest.raises(Halted, match="19 of 27 rows are malformed: their records in") as halted:
            run(checkpoint, source, path)
        assert halted.value.exit_code == 1
        assert f"27 rows: {already} drawn before, 19 malformed." in capsys.readouterr().out
        records = read(path)
        told = {record["index"]: record for record in records if "error" in record}
        assert sorted(told) == list(range(9, 28))
        for record, message in zip(map(told.get, range(9, 28)), MALFORMED.values(), strict=True):
            assert message in record["error"]
            assert record.keys() == {"index", "id", "error"}
        drawn = [record | {"seconds": None} for record in records if "error" not in record]
        assert {record["id"]: record for record in drawn} == by_id(output)
    source.write_bytes(lines.decode(errors="ignore").encode("utf-16"))
    with pytest.raises(
        BadInput, match="in.jsonl is UTF-16 or UTF-32 text, and would be read as jsonl"
    ):
        run(checkpoint, source, path)
    source.write_text(json.dumps(LINES, indent=1))
    with pytest.raises(BadInput, match="in.jsonl is one JSON array; one object a line is expect"):
        run(checkpoint, source, path)
    source.write_text(
        "\n".join([*good, "", '{"template": "a[MASK:1]"}'])
    )  # the others are taken out
    run(checkpoint, source, path)
    assert by_id(path).keys() == {*by_id(output), 9}


def test_an_autoregressive_model_takes_prefixes(smoke_config, tmp_path):
    config = dataclasses.replace(smoke_config, family="autoregressive")
    components = build_family(config, 257)
    checkpoint = TrainedModel(
        components, components.model.init(jax.random.key(0)), config, None, None
    )
    lines = [{"tokens": [7, None, None]}, {"tokens": [None, 7]}, {"length": 5}]
    source, path = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with pytest.raises(Halted, match="1 of 3 rows are malformed"):
        run(checkpoint, source, path, settings={"temperature": 0.5, "top_p": 1.0})
    error, *drawn = read(path)
    assert (error["id"], "must be a prefix" in error["error"]) == (1, True)
    first, last = sorted(drawn, key=lambda record: record["id"])
    prompt = empty_prompt(2, 16)._replace(lengths=np.array([5, 5], np.int32))
    alone, _ = sedd.generate(
        jax.random.key(3), checkpoint, 2, 16, prompt=prompt, rows=np.array([9, 2]), temperature=0.5
    )
    assert last["tokens"] == alone[1, :5].tolist()
    assert (first["tokens"][0], len(first["tokens"])) == (7, 3)
    assert (last["text"], last["temperature"], last["evaluations"]) == (None, 0.5, 5)


def test_weights_that_are_no_numbers_stop_the_job(checkpoint, tmp_path):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), checkpoint.params)
    checkpoint = dataclasses.replace(checkpoint, params=broken)
    source, path = (
        write(tmp_path / "in.jsonl", [{"length": 5, "id": "name"}, {"id": {}}]),
        tmp_path / "out.jsonl",
    )
    with pytest.raises(FloatingPointError, match="Among the rows 'name': .* not finite in rows"):
        run(checkpoint, source, path)
    assert [record["index"] for record in read(path)] == [1]


def test_an_input_that_is_none(checkpoint, tmp_path):
    for path, message in (
        (tmp_path / "absent", "cannot be read"),
        (tmp_path / "empty", "is empty"),
    ):
        (tmp_path / "empty").write_text("\n \n")
        with pytest.raises(BadInput, match=message):
            run(checkpoint, path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_shapes_are_those_of_the_whole_input(checkpoint, source):
    lines = list(job.read_rows(source, checkpoint))

    def shapes(done):
        batches = list(job.batches(checkpoint, lines, np.array(done), 4))
        widths = [batch.prompt.tokens.shape[1] for batch in batches]
        assert widths == sorted(widths)  # quick ones first
        return {(batch.prompt.tokens.shape, batch.prompt.lengths is None) for batch in batches}

    every = shapes([False] * 8)
    assert every == {((4, 16), False), ((1, 32), True), ((1, 96), False)}
    assert shapes([True] * 5 + [False, True, True]) == {((4, 16), False)}
    assert shapes([True] * 8) == set()


def test_string_ids_have_numbers_by_their_digest():
    assert number_of(4_000_000_000) == 4_000_000_000
    # printf row | sha256sum
    assert number_of("row") == int.from_bytes(bytes.fromhex("634768da"), "little")


def test_the_text_of_a_hole_is_what_stands_in_the_row():
    class Spaced(Bytes):
        """Decodes a document without its first space."""

        def _decode_run(self, ids):
            return self._decode_later(ids).removeprefix(" ")

        def _decode_later(self, ids):
            return super()._decode_run(ids)

    held = np.array([False, False, True, False, False])
    shown = job.decode(Spaced(), held, np.frombuffer(b" ab c", np.uint8))
    assert shown["text"] == "ab c" and shown["holes"] == ["a", " c"]
