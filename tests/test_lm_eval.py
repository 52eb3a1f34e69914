"""lm-evaluation-harness with our models, on tasks in files and without a network."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason='needs lm_eval: pip install "sedd_jax[lm_eval]"')

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.harness_model import SeddJax

QUESTIONS = [
    {"text": "To be or not to be", "choices": ["that", "this"], "label": 0},
    {"text": "A rose by any other name", "choices": ["smells", "sells"], "label": 1},
    {"text": "All the world is a stage", "choices": ["and", "nor"], "label": 0},
]
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean"},
        ],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "completion": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["never met"], "max_gen_toks": 10, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks with their file."""
    (tmp_path / "questions.jsonl").write_text(
        "".join(map("{}\n".format, map(json.dumps, QUESTIONS)))
    )
    for name, task in TASKS.items():
        files = {"test": str(tmp_path / "questions.jsonl")}
        of_file = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        task = {"task": name, "test_split": "test"} | of_file | task
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    return tmp_path


def environment(folder):
    return os.environ | {
        "HF_HOME": str(folder / "hf"),
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }


@pytest.mark.slow
def test_the_command_runs_tasks_of_every_kind(smoke_run, binary, tasks):
    """And its figures are those of the model that Python users have."""
    command = [
        sys.executable, "-m", "sedd_jax.lm_eval", "run", "--model=sedd_jax",
        f"--model_args=checkpoint={smoke_run},draws=2,block=4,steps=4",
        f"--tasks={','.join(TASKS)}",
        f"--include_path={tasks}", f"--output_path={tasks / 'out'}", "--log_samples",
        "--batch_size=2",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=binary.root, env=environment(tasks), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "os.fork() was called" not in done.stderr
    (file,) = (tasks / "out").rglob("results_*.json")
    record = json.loads(file.read_text())
    assert record["results"].keys() == TASKS.keys()
    assert record["config"]["sedd_jax"]["loglikelihood"].startswith("a bound")

    def samples(task):
        (file,) = (tasks / "out").rglob(f"samples_{task}_*.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    model = SeddJax(str(smoke_run), draws=2, steps=4).backend
    rolling = model.loglikelihood_rolling([question["text"] for question in QUESTIONS])
    found = [row["resps"][0][0] for row in samples("rolling")]
    np.testing.assert_allclose(np.array(found, float).ravel(), rolling, rtol=1e-4)
    pairs = [(it["text"], f" {choice}") for it in QUESTIONS for choice in it["choices"]]
    nats = model.loglikelihood(pairs, [("choice", i // 2) for i in range(6)])
    found = [float(answer[0][0]) for row in samples("choice") for answer in row["resps"]]
    np.testing.assert_allclose(found, [each for each, _ in nats], rtol=1e-4)
    lengths = [len(row["resps"][0][0].encode()) for row in samples("completion")]
    assert min(lengths) >= 1  # a stop string never met is no error


@pytest.mark.slow
def test_an_unknown_task_is_one_line_and_a_failure(tasks, binary):
    command = [
        sys.executable,
        "-m",
        "sedd_jax.lm_eval",
        "run",
        "--model=sedd_jax",
        "--tasks=none_such",
    ]
    done = subprocess.run(
        command, cwd=binary.root, env=environment(tasks), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: Tasks not found: none_such: `python -m sedd_jax.lm_eval ls tasks` lists them."
    )


class Request:
    """What the harness gives to a model."""

    def __init__(self, document, *args):
        self.task_name, self.doc_id, self.args = "task", document, args


def test_repeated_requests_are_drawn_apart_and_answers_keep_their_order(tiny, monkeypatch):
    asked = []

    def generate_until(self, contexts, names, **options):
        asked.append((names, options["max_tokens"]))
        return [f"{context}!" for context in contexts]

    monkeypatch.setattr("sedd_jax.evaluation.harness.Backend.generate_until", generate_until)
    short, long = {"max_gen_toks": 3}, {"max_gen_toks": 9}
    asked_for = (0, "a", short), (1, "b", long), (0, "a", short), (2, "c", short)
    requests = [Request(*each) for each in asked_for]
    assert SeddJax(tiny).generate_until(requests) == ["a!", "b!", "a!", "c!"]
    assert asked == [
        ((("task", 0, 0), ("task", 0, 1), ("task", 2, 0)), 3),
        ((("task", 1, 0),), 9),
    ]


@pytest.mark.parametrize(
    ("size", "wanted"), [(1, 32), ("1", 32), ("auto:4", 32), (None, 32), ("8", 8), (8, 8)]
)
def test_the_batch_size_of_the_flag(tiny, size, wanted):
    flags = {"batch_size": size, "max_batch_size": None, "device": "cuda:0"}
    assert (
        SeddJax.create_from_arg_obj({"checkpoint": tiny}, flags).backend.settings.batch_size
        == wanted
    )
    given = {"checkpoint": tiny, "batch_size": 5}
    assert SeddJax.create_from_arg_obj(given, flags).backend.settings.batch_size == 5


def test_arguments_that_are_wrong_are_one_sentence():
    with pytest.raises(BadInput, match="checkpoint=FOLDER is needed"):
        SeddJax.create_from_arg_string("draws=3")
    with pytest.raises(BadInput, match="--batch_size=many must be a whole number, or auto"):
        SeddJax.create_from_arg_string("checkpoint=x", {"batch_size": "many"})
