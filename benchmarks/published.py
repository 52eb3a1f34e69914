"""Times other code in a process of its own, idle while ours is timed."""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile

from benchmarks.measure import cores
from sedd_jax.errors import BadInput


class Worker:
    """Code in a worker process, which answers lines of JSON; use as a context manager.

    Args:
      python: A Python interpreter with what the code imports.
      script: The name of the worker's script in this folder.
      what: The code, in messages.
      *flags: Of the script, besides --threads.

    Raises:
      BadInput: the worker cannot start.
    """

    def __init__(self, python: str, script: str, what: str, *flags: str):
        self._what = what
        # a file, since nobody reads a pipe while the worker runs
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 lives as long as the worker
        worker = pathlib.Path(__file__).with_name(script)
        # our module path would give the worker packages of another Python version
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(
                [python, str(worker), *flags, f"--threads={cores()}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env=env,
            )
        except OSError as error:
            self._stderr.close()
            raise BadInput(f"The Python for {what} cannot be run: {error}.") from error
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def ask(self, op: str, **spec) -> dict:
        """Returns the worker's answer to a request (see its script)."""
        with contextlib.suppress(BrokenPipeError):  # `_read` reports the reason
            self._process.stdin.write(json.dumps({"op": op, **spec}) + "\n")
            self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise BadInput(f"{self._what} refused {op}: {answer['error']}.")
        return answer

    def seconds(self, op: str, **spec) -> float:
        """Returns the wall seconds of one step, or for "sample" of the whole run."""
        return self.ask(op, **spec)["seconds"]

    def close(self) -> None:
        """Ends the worker."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        reason = text.splitlines()[-1].removeprefix("error: ") if text else "it printed nothing."
        raise BadInput(f"The worker for {self._what} ended with code {code}: {reason}")


class Published(Worker):
    """The published code in a worker process.

    Args:
      python: A Python interpreter with torch and the packages that the published code imports.
      path: Folder of the published code.
    """

    def __init__(self, python: str, path: str):
        super().__init__(python, "published_worker.py", "the published code", f"--path={path}")
