"""The evaluating binary as its user meets it."""

import pytest

from sedd_jax.display.table import with_error
from sedd_jax.evaluation.record import read_records

TEXT = "one line of text\n\nand another one , which is longer than a block of the model\n"


@pytest.mark.slow
def test_a_suite_is_scored_on_all_devices_and_kept(smoke_run, binary, tmp_path):
    (tmp_path / "test.txt").write_text(TEXT)
    flags = (
        f"--checkpoint={smoke_run}",
        "--suite=zeroshot",
        f"--sources=ptb={tmp_path / 'test.txt'}",
        f"--output={tmp_path / 'out'}",
        "--draws=2",
        "--batch_size=4",
        "--published=all",
    )
    process = binary.start("evaluate", *flags, devices=2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "Of zeroshot there is no data for:\n  lambada: lambada_test.jsonl" in err
    assert "ptb: 100%" in err
    (record,) = read_records(tmp_path / "out")
    assert (record.name, record.figures["blocks"]) == ("ptb", 3)
    assert with_error(record.figures["perplexity"], record.figures["perplexity_stderr"]) in out
    assert "138.43" in out  # GPT-2, published
    assert (tmp_path / "out/summary.md").exists()


def test_a_set_that_is_missing_is_one_line_and_a_failure(smoke_run, binary, tmp_path):
    flags = (f"--checkpoint={smoke_run}", "--suite=heldout,ptb", f"--data={tmp_path}")
    message = binary.refuse("evaluate", *flags)
    assert f"Looked for ptb: Mikolov's ptb.test.txt, below {tmp_path}" in message
    assert not (smoke_run / "evaluations").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--suite=heldout", "--judge=absent", "--mauve"),
            "--judge, --mauve is for --suite=quality or frontier, which is not requested",
        ),
        (
            ("--suite=quality", "--draws=3", "--complete"),
            "--draws, --complete is for likelihoods, and --suite=quality has none",
        ),
        (("--suite=held",), "scientific_papers_arxiv, quality, frontier, sequences, not 'held'."),
        (("--suite=sequences",), "compares files: draw with sedd_jax.sample, give --samples=FILE"),
        (("--suite=sequences,heldout",), "--suite=sequences compares files and needs no model"),
        (("--suite=heldout", "--label=x"), "--label is for --suite=sequences, which is not"),
        (("--suite=quality", "--judge_tokenizer=x"), "--judge_tokenizer is that of --judge"),
        (("--suite=quality", "--mauve", "--judge=x"), "give --judge and --reference"),
        (
            ("--suite=frontier", "--judge=x"),
            "give --judge, which scores, and --ref",
        ),
        (("--suite=frontier", "--judge=x", "--reference=x", "--temperature=1"), "at several temp"),
        (("--suite=frontier,quality",), "--suite=frontier has all that quality has: give one"),
        (("--suite=quality", "--temperature=0.9,warm"), "--temperature=0.9,warm must be numbers"),
        (("--suite=quality", "--top_p=7"), "top_p must be in (0, 1], got 7.0"),
        (("--suite=quality", "--steps=4,1000000000000"), "steps must be at most 1,048,576"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_is_loaded(binary, flags, message):
    assert message in binary.refuse("evaluate", "--checkpoint=absent", "--output=out", *flags)


def test_sequences_are_compared_without_a_model(binary, tmp_path):
    for name in ("drawn", "real"):
        path = tmp_path / f"{name}.fasta"
        path.write_text("".join(f">{i}\nGATTACA{'ACGT'[i % 4]}\n" for i in range(20)))
    files = [f"--{flag}={tmp_path / name}.fasta" for flag, name in
             (("samples", "drawn"), ("reference", "real"))]  # fmt: skip
    flags = ("--suite=sequences", *files, "--motif=3:T+A", f"--output={tmp_path / 'out'}")
    out = binary.run("evaluate", *flags)
    assert "| all       | motif 3:T+A                 | 1 " in out
    assert "| all       | divergence of 3-mers, nats  | 0 " in out
    assert [path.name.startswith("drawn.") for path in (tmp_path / "out").iterdir()] == [True]
    assert "needs --samples=FILE and --reference=FILE" in binary.refuse("evaluate", *flags[::3])
