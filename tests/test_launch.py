"""The scripts in launch/: what they would run, what they run, what they refuse."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
PLACES = {
    "local.sh": [],
    "gpu.sh": [],
    "slurm.sh": ["--nodes=2", "--partition=gpu"],
    "tpu.sh": ["--tpu=pod", "--zone=europe-west4-b"],
    "gke.sh": ["--cluster=c", "--workload=w", "--tpu=v5litepod-16", "--num-slices=2"],
    "jobset.sh": ["--name=w", "--image=i", "--tpu=tpu-v6e-slice", "--topology=4x8"],
}
AWKWARD = '--prefix=it\'s $HOME; "x"\\'
JOBS = {
    "train": ["--config=configs/smoke.py", "--workdir=a run", AWKWARD],
    "sample": ["--checkpoint=a run", "--input=in.jsonl", AWKWARD],
}
ON_GPUS = [
    "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true",
    "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9",
]
each_script = pytest.mark.parametrize("script", PLACES)
each_job = pytest.mark.parametrize("job", JOBS)


def launch(script, *arguments, path="", **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    return subprocess.run(
        [LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        env=inherited | {"PATH": f"{path}:{os.environ['PATH']}"} | environment,
        check=False,
    )


def printed(script, job, *options, **environment):
    """The words of the command of a dry run, as a shell reads them."""
    given = [job, "--dry-run", *PLACES[script], *options, "--", *JOBS[job]]
    done = launch(script, *given, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return shlex.split(done.stdout)


@each_job
def test_local_runs_processes_of_cpu_devices(job):
    assert printed("local.sh", job, "--processes=3", "--devices=4") == [
        *("env", "PYTHONUNBUFFERED=1", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=4", "python3"),
        *(str(LAUNCH / "together.py"), "3", "python3", "-m", f"sedd_jax.{job}", *JOBS[job]),
    ]


@each_job
def test_one_process_sees_all_gpus(job):
    assert printed("gpu.sh", job, "--python=venv/bin/python") == [
        *("env", *ON_GPUS, "PYTHONUNBUFFERED=1"),
        *("venv/bin/python", "-m", f"sedd_jax.{job}", *JOBS[job]),
    ]


@each_job
def test_slurm_runs_a_task_for_each_gpu(job):
    assert printed("slurm.sh", job, "--gpus-per-node=4") == [
        *("env", *ON_GPUS, "PYTHONUNBUFFERED=1", "srun", "--kill-on-bad-exit=1", "--nodes=2"),
        *("--ntasks=8", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu"),
        *("python3", "-m", f"sedd_jax.{job}", *JOBS[job]),
    ]


def test_slurm_takes_the_nodes_and_gpus_of_the_allocation():
    given = ["sample", "--dry-run", "--", "--input=x"]
    assert "--nodes=3 --ntasks=24 " in launch("slurm.sh", *given, SLURM_NNODES="3").stdout
    both = launch("slurm.sh", *given, SLURM_NNODES="3", SLURM_GPUS_ON_NODE="4").stdout
    assert "--nodes=3 --ntasks=12 --ntasks-per-node=4 --gpus-per-node=4 " in both
    assert "--nodes=1 --ntasks=8 " in launch("slurm.sh", *given).stdout
    wrong = launch("slurm.sh", *given, SLURM_GPUS_ON_NODE="gpu:4")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --gpus-per-node=gpu:4 must be a whole number, at least 1.\n"


@each_job
def test_a_slice_runs_the_module_on_all_hosts(job):
    *gcloud, command = printed("tpu.sh", job, "--project=p", "--folder=my folder")
    assert gcloud == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--worker=all"),
        *("--zone=europe-west4-b", "--project=p"),
    ]
    start = "--command=cd 'my folder' && exec env PYTHONUNBUFFERED=1 python3 -m "
    assert command.startswith(start)
    assert shlex.split(command)[-4:] == [f"sedd_jax.{job}", *JOBS[job]]


def test_a_queued_resource_runs_it_on_all_slices():
    assert printed("tpu.sh", "train", "--queued=both")[:7] == [
        *("gcloud", "compute", "tpus", "queued-resources", "ssh", "both", "--node=all"),
    ]


@each_job
def test_gke_hands_the_command_to_xpk(job):
    *xpk, command = printed("gke.sh", job)
    assert xpk == [
        *("xpk", "workload", "create", "--tpu-type=v5litepod-16"),
        *("--cluster=c", "--workload=w", "--num-slices=2"),
    ]
    assert command.startswith("--command=exec env PYTHONUNBUFFERED=1 python3 -m ")
    assert shlex.split(command)[-4:] == [f"sedd_jax.{job}", *JOBS[job]]


def test_gke_tells_the_processes_of_gpu_nodes_of_each_other():
    given = ["train", "--dry-run", "--gpu=h100-mega-80gb-8", "--num-nodes=2", "--"]
    done = launch("gke.sh", *given, "--config=x", "--workdir=a $HOME run")
    *xpk, command = shlex.split(done.stdout)
    assert xpk[3:] == ["--device-type=h100-mega-80gb-8", "--num-nodes=2"]
    assert command.startswith(f"--command=exec env {' '.join(ON_GPUS)} PYTHONUNBUFFERED=1 python3")
    of_xpk = {
        "JAX_COORDINATOR_ADDRESS": "w-slice-job-0-0.w",
        "JAX_COORDINATOR_PORT": "6002",
        "NNODES": "2",
        "NODE_RANK": "1",
    }
    said = subprocess.run(
        ["bash", "-c", command.removeprefix("--command=").replace("python3", "printf '%s\\n'")],
        capture_output=True,
        text=True,
        env=os.environ | of_xpk,
    )
    assert said.stdout.splitlines() == [
        *("-m", "sedd_jax.train", "--config=x", "--workdir=a $HOME run"),
        *("--coordinator=w-slice-job-0-0.w:6002", "--num_processes=2", "--process_id=1"),
    ]
    refused = launch("gke.sh", *given, "--config=x", "--workdir=x", AWKWARD)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "xpk takes no quotes or backslashes" in refused.stderr


SLICES = ["--slices=2", "--service-account=s", "--max-restarts=9", "--grace=60", "--spot"]


@each_job
def test_a_jobset_has_a_pod_for_each_host_of_each_slice(job):
    given = [*PLACES["jobset.sh"], *SLICES, "--", *JOBS[job], "--output=gs://b/out.jsonl"]
    done = launch("jobset.sh", job, "--dry-run", *given)
    assert (done.returncode, done.stderr) == (0, "")
    jobset = yaml.safe_load(done.stdout)
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "w")
    spec = jobset["spec"]
    assert spec["network"]["enableDNSHostnames"] and spec["failurePolicy"]["maxRestarts"] == 9
    (slices,) = spec["replicatedJobs"]
    hosts = slices["template"]["spec"]
    assert (slices["replicas"], hosts["parallelism"], hosts["completions"]) == (2, 8, 8)
    pod = hosts["template"]["spec"]
    assert (pod["serviceAccountName"], pod["terminationGracePeriodSeconds"]) == ("s", 60)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    # $(NAME) would be a variable of Kubernetes
    command = [word.replace("$$", "$") for word in container["command"]]
    told = ["--config.train.grace_seconds=60"] * (job == "train")
    assert command[2:] == [f"sedd_jax.{job}", *JOBS[job], "--output=gs://b/out.jsonl", *told]
    # bad input ends it; all else is tried again
    (of_pods,), (of_jobs,) = hosts["podFailurePolicy"]["rules"], spec["failurePolicy"]["rules"]
    assert of_pods["action"] == "FailJob" and of_pods["onExitCodes"]["values"] == [2]
    assert of_pods["onExitCodes"]["containerName"] == container["name"]
    assert of_jobs["action"] == "FailJobSet"
    assert of_jobs["onJobFailureReasons"] == ["PodFailurePolicy"]


@pytest.mark.parametrize("options", [[], SLICES])
def test_the_jobs_of_a_jobset_are_jobs_of_kubernetes(options):
    """By its schemas, without unknown fields; JobSet's own are nowhere to be had by pip."""
    schemas = pytest.importorskip("kubernetes_validate", reason="there is no kubernetes_validate")
    given = ["--env=A=b", "--dry-run", *PLACES["jobset.sh"], *options, "--", "--input=x"]
    jobset = yaml.safe_load(launch("jobset.sh", "sample", *given).stdout)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "w-slice-0"}}
    job |= jobset["spec"]["replicatedJobs"][0]["template"]
    schemas.validate(job, schemas.latest_version(), strict=True)
    job["spec"]["template"]["spec"]["graceSeconds"] = 60
    with pytest.raises(schemas.ValidationError):
        schemas.validate(job, schemas.latest_version(), strict=True)


def batch(*options):
    """The script that slurm.sh gives to sbatch."""
    done = launch("slurm.sh", "train", "--batch", "--dry-run", *options, "--", *JOBS["train"])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_script_for_sbatch_has_the_options_and_the_job():
    options = ["--nodes=2", "--gpus-per-node=4", "--cpus-per-task=3", "--comment=a b"]
    first, *lines = batch(*options).splitlines()
    given = shlex.split("\n".join(it[8:] for it in lines if it.startswith("#SBATCH ")))
    assert first == "#!/usr/bin/env bash" and lines[0].startswith("#SBATCH ")
    assert given == [
        *("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue"),
        *("--open-mode=append", "--signal=B:USR1@300", "--cpus-per-task=3", "--comment=a b"),
    ]
    (tasks,) = (shlex.split(line) for line in lines if line.startswith("env "))
    assert tasks == [
        *("env", *ON_GPUS, "PYTHONUNBUFFERED=1", "srun", "--kill-on-bad-exit=1", "--nodes=2"),
        *("--ntasks=8", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=3"),
        *("python3", "-m", "sedd_jax.train", *JOBS["train"], "&"),
    ]


def test_the_script_is_handed_to_sbatch(tmp_path):
    (tmp_path / "sbatch").write_text("#!/bin/bash\ncat")
    (tmp_path / "sbatch").chmod(0o755)
    given = ["train", "--batch", "--", *JOBS["train"]]
    assert launch("slurm.sh", *given, path=tmp_path).stdout == batch()
    if not shutil.which("sbatch"):
        assert "there is no sbatch here" in refused("slurm.sh", *given)


@pytest.mark.parametrize(
    ("ends", "code", "requeued"),
    [("time", 0, True), ("scancel", 143, False), ("itself", 7, False), ("time, unsaved", 7, False)],
)
def test_a_batch_job_is_requeued_when_its_time_ends(tmp_path, ends, code, requeued):
    """Not where a user cancels it, nor where it has ended by itself or fails to save."""
    waits = "echo $$ > pid; echo ready; while :; do sleep 0.02; done"
    saved = 7 if ends == "time, unsaved" else 143
    texts = {
        "srun": "echo ready; exit 7" if ends == "itself" else f"trap 'exit {saved}' TERM; {waits}",
        "scancel": "kill -TERM $(cat pid)",
        "scontrol": "echo $* > requeued",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    process = subprocess.Popen(
        ["bash", "-c", batch()],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    if ends == "scancel":
        subprocess.run(tmp_path / "scancel", cwd=tmp_path, check=True)
    elif ends != "itself":
        process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 12\n"


def test_what_the_environment_says_wins():
    mine = {"XLA_FLAGS": "--mine=1 --other=2", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}
    assert printed("gpu.sh", "train", "--env=XLA_FLAGS=--a b", **mine)[:5] == [
        "env",
        f"{ON_GPUS[0]} --mine=1 --other=2",  # XLA takes the last of two flags
        "XLA_PYTHON_CLIENT_MEM_FRACTION=.5",
        "PYTHONUNBUFFERED=1",
        "XLA_FLAGS=--a b",  # and env the last of two variables
    ]


# runs the container of the manifest that it reads, as Kubernetes reads its words
KUBELET = """
import os, subprocess, sys, yaml
job = yaml.safe_load(sys.stdin)["spec"]["replicatedJobs"][0]["template"]["spec"]
(container,) = job["template"]["spec"]["containers"]
read = lambda word: word.replace("$$", "$")
own = {each["name"]: read(each["value"]) for each in container["env"]}
subprocess.run([read(word) for word in container["command"]], env=os.environ | own, check=True)
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A folder of tools that obey here, an srun of one task, and a Python that tells."""
    folder = tmp_path_factory.mktemp("tools")
    obeys = 'for it; do :; done\nbash -c "(${it#--command=})"\n'
    python = f"[[ $1 == *.py ]] && exec {sys.executable} "
    texts = {
        "gcloud": obeys,
        "xpk": obeys,
        "kubectl": f"{sys.executable} -c {shlex.quote(KUBELET)}\n",
        "srun": 'while [[ $1 == --* ]]; do shift; done\n"$@"\n',
        "tells": python + '"$@"\nprintf "%s\\n" "$PYTHONUNBUFFERED" "$MINE" "$@"\n',
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    return folder


@each_script
@each_job
def test_flags_arrive_as_they_were_given(script, job, tools):
    options = [*PLACES[script], f"--python={tools / 'tells'}", "--env=MINE=$a b"]
    options += {"tpu.sh": [f"--folder={tools}"], "local.sh": ["--processes=1"]}.get(script, [])
    done = launch(script, job, *options, "--", *JOBS[job], path=tools)
    lines = done.stdout.splitlines()
    if script == "local.sh":
        lines, others = [line.removeprefix("0: ") for line in lines[:-3]], lines[-3:]
        assert others[0].startswith("0: --coordinator=localhost:")
        assert others[1:] == ["0: --num_processes=1", "0: --process_id=0"]
    if script == "jobset.sh" and job == "train":
        assert lines.pop() == "--config.train.grace_seconds=300"
    assert lines == ["1", "$a b", "-m", f"sedd_jax.{job}", *JOBS[job]], done.stderr


@each_script
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the first word is what to do, train or sample"),
        (["tell", "PLACE"], "the first word is what to do, train or sample"),
        (["train", "PLACE"], "flags of sedd_jax.train are needed, after --"),
        (["train", "PLACE", "--"], "flags of sedd_jax.train are needed, after --"),
        (["train", "PLACE", "--", "--config=x"], "--workdir is needed among the flags of sedd_"),
        (["train", "PLACE", "--", "--workdir=x", "--config.seed=1"], "--config is needed among"),
        (["sample", "PLACE", "--", "--steps=3", "--inputs=x"], "--input is needed among the"),
    ],
)
def test_bad_use_is_one_line(script, arguments, message):
    given = [part for each in arguments for part in (PLACES[script] if each == "PLACE" else [each])]
    assert refused(script, *given).startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("local.sh", ["--steps=3"], "--steps=3 is no option of this script; flags of the job come"),
        ("local.sh", ["--processes=0"], "--processes=0 must be a whole number"),
        ("local.sh", ["--devices="], "--devices= must be a whole number"),
        ("gpu.sh", ["--gpus=8"], "--gpus=8 is no option of this script"),
        ("slurm.sh", ["--nodes=two"], "--nodes=two must be a whole number"),
        ("slurm.sh", ["--gpus-per-node=1.5"], "--gpus-per-node=1.5 must be a whole number"),
        ("tpu.sh", ["--zone=z"], "--tpu=NAME or --queued=NAME is needed"),
        ("gke.sh", ["--cluster=c"], "--tpu=TYPE or --gpu=TYPE is needed"),
        ("jobset.sh", ["--name=w", "--image=i", "--topology=2x2"], "--tpu is needed"),
        ("jobset.sh", [*PLACES["jobset.sh"], "--name=A"], "--name=A must be small letters, digits"),
        ("jobset.sh", [*PLACES["jobset.sh"], "--topology=32"], "--topology=32 must be like 8x8"),
        (
            "jobset.sh",
            [*PLACES["jobset.sh"], "--topology=3x3"],
            "--topology=3x3 must be whole host",
        ),
        ("jobset.sh", [*PLACES["jobset.sh"], "--slices=0"], "--slices=0 must be a whole number"),
    ],
)
def test_bad_use_of_one_script(script, options, message):
    assert refused(script, "sample", *options, "--", "--input=x").startswith(f"error: {message}")


def refused(script, *arguments):
    done = launch(script, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


@each_script
def test_help_and_what_is_lacking(script):
    for arguments in ["-h"], ["train", "--help"]:
        done = launch(script, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"Usage: launch/{script} train|sample ")
    tools = {"slurm.sh": "srun", "tpu.sh": "gcloud", "gke.sh": "xpk", "jobset.sh": "kubectl"}
    if not shutil.which(tool := tools.get(script, "nowhere")):
        given = ["sample", *PLACES[script], f"--python={tool}", "--", "--input=x"]
        assert f"there is no {tool} here" in refused(script, *given)


def together(script, patience=0.5):
    """Two processes of a script of bash, which has the number of its process in $1."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from together import together\n"
        f"sys.exit(together(2, sys.argv[2:], patience={patience}))"
    )
    bash = ["bash", "-c", 'it=${3#*=}; eval "$0"', script]
    return subprocess.Popen(
        [sys.executable, "-c", code, LAUNCH, *bash], stdout=subprocess.PIPE, text=True
    )


WAITS = "echo ready; while :; do sleep 0.05; done"


def test_lines_bear_the_number_of_their_process():
    process = together('echo "$it of ${2#*=}"; echo warned >&2')
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(out.splitlines()) == ["0: 0 of 2", "0: warned", "1: 1 of 2", "1: warned"]


def test_what_a_process_has_left_behind_ends_too():
    """It would keep the output open for a minute."""
    process = together("sleep 60 & echo done")
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, sorted(out.splitlines())) == (0, ["0: done", "1: done"])


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_a_process_that_fails_ends_the_others(deaf):
    """Also one that does not heed SIGTERM."""
    started = time.monotonic()
    process = together(f"((it)) && {{ sleep 0.3; exit 7; }}; {deaf}{WAITS}", patience=1)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (7, "0: ready\n")
    assert (time.monotonic() - started > 1.2) == bool(deaf)


def test_the_exit_code_of_a_process_that_was_killed():
    process = together(f"((it)) && kill -9 $$; {WAITS}")
    process.communicate(timeout=60)
    assert process.returncode == 128 + 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_save_and_end(number):
    process = together(f"trap 'echo saved; exit 143' TERM; {WAITS}")
    assert sorted(process.stdout.readline() for _ in range(2)) == ["0: ready\n", "1: ready\n"]
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, sorted(out.splitlines())) == (143, ["0: saved", "1: saved"])


def test_a_second_signal_kills():
    process = together(f"trap 'echo saving' TERM; {WAITS}")
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    lines += [process.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["0: ready\n", "0: saving\n", "1: ready\n", "1: saving\n"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + 9


@pytest.mark.slow
@pytest.mark.unsteady
def test_the_local_example_of_the_page_trains(tmp_path):
    """As printed, but for the folder and the number of steps."""
    page = (LAUNCH / "README.md").read_text()
    (command,) = (line for line in page.splitlines() if line.startswith("launch/local.sh train"))
    run = tmp_path / "two"
    assert "--workdir=runs/two" in command
    words = shlex.split(command.replace("runs/two", str(run)))
    short = ["--config.train.steps=2", "--config.eval.max_blocks=64"]
    done = subprocess.run([*words, *short], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0: Mesh: data 4, 2 process(es)." in done.stdout
    assert "0: Done: step 2" in done.stdout
    assert (run / "checkpoints" / "2").is_dir()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck here")
def test_the_scripts_are_clean():
    done = subprocess.run(
        ["shellcheck", "-x", *LAUNCH.glob("*.sh")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
