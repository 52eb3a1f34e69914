"""Measures the preparation of text: tokens per second, and memory of parent and workers.

    python -m benchmarks.prepare --gpt2=FOLDER

The text repeats the help topics of Python, each document with a different number, in one file: JSON
lines, compressed or not, or text with a separator. Plain files are split into ranges of 32 MB; a
compressed file is a single piece. The binary prepares it in a process of its own. A row has the
peak resident memory of that process and of its largest worker. They must not grow with the text,
apart from the sample that a tokenizer is fitted on, which is bounded.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from absl import flags

from benchmarks.measure import check_output, report
from sedd_jax.data.prepared import open_blocks
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli

_SIZES = flags.DEFINE_list("sizes", ["2", "20", "80"], "Megabytes of text.")
_GPT2 = flags.DEFINE_string("gpt2", None, "A folder with encoder.json and vocab.bpe.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "File for the results as JSON.")

_SEPARATOR = "<|endoftext|>"
_LENGTH = 1024


def main() -> None:
    """Runs the benchmark."""
    check_output(_OUTPUT.value)
    tokenizers = {"bytes": [], "sentencepiece": ["--config.data.vocab_size=4096"]}
    if _GPT2.value:
        tokenizers["gpt2"] = [f"--config.data.tokenizer_path={_GPT2.value}"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpora = {
            (form, int(size)): _written(Path(folder), form, int(size))
            for form in _FORMS
            for size in _SIZES.value
        }
        for name, choices in tokenizers.items():
            for (form, size), corpus in corpora.items():
                output = Path(folder) / f"{name}-{form}-{size}"
                row = {"tokenizer": name, "format": form, "MB": size, "workers": _WORKERS.value}
                rows.append(row | _prepared(corpus, output, name, choices))
    report(rows, _OUTPUT.value)


def _text(document: str) -> bytes:
    return (document + _SEPARATOR).encode()


def _json_line(document: str) -> bytes:
    return json.dumps({"text": document}, ensure_ascii=False).encode() + b"\n"


_FORMS = {"txt": _text, "jsonl": _json_line, "jsonl.gz": _json_line}


def _written(folder: Path, form: str, megabytes: int) -> str:
    """Writes a corpus of `megabytes` before compression, and returns its path."""
    path, documents, written = folder / f"{megabytes}.{form}", _documents(), 0
    with gzip.open(path, "wb") if form.endswith(".gz") else path.open("wb") as file:
        while written < megabytes * 2**20:
            written += file.write(_FORMS[form](next(documents)))
    return str(path)


def _documents() -> Iterator[str]:
    from pydoc_data import topics

    number = 0
    while True:
        for topic in topics.topics.values():
            number += 1
            yield f"Document {number}.\n{topic}"


def _prepared(corpus: str, output: Path, tokenizer: str, choices: list[str]) -> dict[str, float]:
    """Prepares the corpus, and returns tokens per second and memory."""
    command = [
        sys.executable, "-m", "sedd_jax.prepare", "--config=configs/smoke.py",
        f"--config.data.corpus={corpus}", f"--config.data.separator={_SEPARATOR}",
        f"--config.data.tokenizer={tokenizer}", "--config.data.vocab_size=0",
        f"--config.model.length={_LENGTH}", *choices, f"--output={output}",
        f"--workers={_WORKERS.value}",
    ]  # fmt: skip
    began = time.perf_counter()
    # Its output goes to a file: a pipe that nobody reads would fill up and block it.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as process,
    ):
        peaks = {}
        while process.poll() is None:
            peaks |= {pid: peak for pid, peak in _peaks(process.pid).items() if peak}
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise BadInput(f"{' '.join(command)} failed: {_all_of(said)}")
    splits = open_blocks(output, _LENGTH).manifest["splits"].values()
    tokens = sum(split["tokens"] for split in splits)
    parent = peaks.pop(process.pid)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "parent_mb": parent / 2**20,
        "worker_mb": max(peaks.values(), default=0) / 2**20,
    }


def _all_of(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


def _peaks(pid: int) -> dict[int, int]:
    """Returns the peak resident memory, in bytes, of a process and of its children."""
    peaks = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in path.read_text().splitlines())
        except (OSError, ValueError):
            continue  # the process has ended
        number = int(path.parent.name)
        if pid in (number, int(lines["PPid"])):
            peaks[number] = int(lines.get("VmHWM", "0 kB").split()[0]) * 1024
    return peaks


if __name__ == "__main__":
    cli.run(main)
