"""A trace of a few training steps: what the host and every device did when."""

from pathlib import Path

import jax

from sedd_jax.system.processes import print_on_primary
from sedd_jax.training.step import Metrics

FOLDER = "profile"
SKIPPED = 2  # steps before the trace: the first compiles, the second may wait for its buffers


class Profile:
    """Traces some steps of a run, from the third after its start, into the run's folder.

    Within `with Profile(run, steps, start) as profile:`, `profile.after(step, metrics)` is called
    after every step. Several processes write into folders of their own: a host may have many.
    """

    def __init__(self, run: Path, steps: int, start: int):
        """Traces `steps` steps, 0 for none, of a run that begins after step `start`."""
        self._folder = run / FOLDER
        if jax.process_count() > 1:
            self._folder /= f"process_{jax.process_index()}"
        self._before = start + SKIPPED
        self._last = self._before + steps
        self._due, self._tracing = steps > 0, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception) -> None:
        if self._tracing:
            self._stop()
        elif self._due:
            print_on_primary(f"No trace was made: the run ended before step {self._before + 1}.")

    def after(self, step: int, metrics: Metrics) -> None:
        """Starts or stops the trace, if it is time; `metrics` are those of `step`."""
        if self._due and step == self._before:
            jax.block_until_ready(metrics)  # what was started before is not part of the trace
            jax.profiler.start_trace(self._folder)
            self._due, self._tracing = False, True
        elif self._tracing and step == self._last:
            jax.block_until_ready(metrics)  # devices run behind the host
            self._stop()

    def _stop(self):
        self._tracing = False
        jax.profiler.stop_trace()
        print_on_primary(
            f"The trace from step {self._before + 1} on is in {self._folder}; to look at it: "
            f"pip install xprof; xprof --logdir {self._folder}"
        )
