"""Hooks: functions that the training loop calls after every step, in a fixed order."""

import faulthandler
import math
import sys
import time
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

import jax

from sedd_jax.data.pipeline import batch_blocks
from sedd_jax.data.token_blocks import Mixture, TokenBlocks
from sedd_jax.display.table import duration
from sedd_jax.experiment.config import TrainConfig
from sedd_jax.experiment.metrics import MetricWriter, Row, finite_values
from sedd_jax.experiment.state import TrainState
from sedd_jax.system.processes import print_on_primary
from sedd_jax.training.evaluator import Evaluator, bound_text
from sedd_jax.training.step import Metrics
from sedd_jax.training.throughput import StepTimer

TRACE_FOLDER = "profile"
UNTRACED = 2  # steps before the trace: the first compiles, the second may wait for its buffers


@runtime_checkable
class Hook(Protocol):
    """A function that the loop calls after every step."""

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Acts on the step.

        Args:
          step: the number of the step, from 1.
          state: after it; the next step donates its buffers.
          metrics: of the step, perhaps not yet computed: reading them waits for the device.
        """


def every(interval: int, last: int, hook: Hook) -> Hook:
    """Returns a hook that is called after every `interval` steps, and after the last one.

    Args:
      interval: steps.
      last: the number of the last step.
      hook: the hook to call.
    """

    def when_due(step, state, metrics):
        if step % interval == 0 or step == last:
            hook(step, state, metrics)

    return when_due


class NotFinite(ArithmeticError):
    """Too many steps in a row were skipped, since their loss or gradient was not finite.

    Attributes:
      step: the last of them.
      in_row: how many.
      name: of the metric that was not finite at that step.
      value: its value.
    """

    def __init__(self, step: int, in_row: int, name: str, value: float):
        super().__init__(
            f"{in_row} steps in a row made no update; the {name} of step {step} is {value}"
        )
        self.step, self.in_row, self.name, self.value = step, in_row, name, value

    def advice(
        self, data: TokenBlocks | Mixture, config: TrainConfig, seed: int, saved: int | None
    ) -> str:
        """Returns what happened, where, and what to do.

        Args:
          data: the training split.
          config: of the training.
          seed: of the run.
          saved: the step of the last checkpoint, or None.
        """
        sets, numbers = batch_blocks(
            data, batch_size=config.batch_size, seed=seed, step=self.step - 1
        )
        mixed = isinstance(data, Mixture)  # then SET:BLOCK, in the order of data.prepared
        names = [f"{a}:{b}" if mixed else str(b) for a, b in zip(sets, numbers, strict=True)]
        more = f" and {len(names) - 16} more" if len(names) > 16 else ""
        return (
            f"{self}. Blocks of that batch: {', '.join(names[:16])}{more}. Last good checkpoint: "
            f"{'none' if saved is None else f'step {saved}'}. Start another run with a lower "
            "learning rate, or look at these blocks."
        )


class PendingLosses:
    """Losses of the steps since the last row, read one step late so that the device never waits.

    A skipped step, see `build_train_step`, is printed and left out of the mean.
    """

    def __init__(self, max_skipped: int):
        """Raises NotFinite at `max_skipped` skipped steps in a row."""
        self._max_skipped = max_skipped
        self._pending = None
        self._losses = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of the step just started, and reads those of the step before."""
        pending, self._pending = self._pending, (step, metrics)
        if pending is not None:
            self._read(*pending)

    def take(self) -> Row:
        """Returns the mean loss since the last call, and the other metrics of the last step.

        Called after an `add`. Values that are not finite are left out, the loss if no step's was
        finite.
        """
        pending, self._pending = self._pending, None
        row = self._read(*pending)
        del row["skipped_in_row"]
        losses, self._losses = self._losses, []
        row["loss"] = sum(losses) / len(losses) if losses else math.nan
        return finite_values(row)

    def _read(self, step, metrics):
        row = {name: value.item() for name, value in jax.device_get(metrics).items()}
        in_row = row["skipped_in_row"]
        if not in_row:
            self._losses.append(row["loss"])
            return row
        name = "grad_norm" if math.isfinite(row["loss"]) else "loss"
        print_on_primary(
            f"step {step}: the {name} is {row[name]}; the update was skipped "
            f"({row['skipped']} so far)"
        )
        if in_row >= self._max_skipped:
            raise NotFinite(step, in_row, name, row[name])
        return row


class Log:
    """A hook: reads the metrics of every step, and writes and prints a row every `log_every`."""

    def __init__(
        self, writer: MetricWriter, timer: StepTimer, config: TrainConfig, unit: str = "nats/token"
    ):
        """Starts with the first step.

        Args:
          writer: of the rows.
          timer: of the speed, which is measured from the end of the first step.
          config: of the training.
          unit: of the loss, in words.
        """
        self._writer, self._timer, self._last = writer, timer, config.steps
        self._unit = unit
        self._losses = PendingLosses(config.max_skipped)
        self._write = every(config.log_every, config.steps, self._row)
        self._first = True

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._losses.add(step, metrics)
        if self._first:
            jax.block_until_ready(metrics)  # the first step fills caches: not part of the speed
            self._timer.begin(step)
            self._first = False
        self._write(step, state, metrics)

    def _row(self, step, state, metrics):
        row = self._losses.take()  # waits for the step
        speed, left = self._timer.advance(step)
        row |= speed
        self._writer.scalars(step, row)
        loss = f"{row['loss']:.4f} {self._unit}" if "loss" in row else "not finite"
        pace = f"  {row['tokens_per_second']:,.0f} tokens/s  {left} left" if speed else ""
        print_on_primary(f"step {step}/{self._last}  loss {loss}{pace}")


class Evaluation:
    """Two hooks: one measures the held-out bound, one draws samples; the latest are kept."""

    def __init__(self, evaluator: Evaluator, writer: MetricWriter):
        """Evaluates by `evaluator` and writes to `writer`."""
        self._evaluator, self._writer = evaluator, writer
        self.bound, self.samples = None, None

    def measure(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """A hook: measures the bound with the averaged weights; writes and prints it.

        Args:
          step: number of the step.
          state: after the step.
          metrics: of the step; not read.
        """
        self.bound = self._evaluator.bound(state.ema_params)
        self._writer.scalars(step, self.bound)
        print_on_primary(f"  held-out {bound_text(self.bound)}")

    def sample(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """A hook: draws samples with the averaged weights, and writes them.

        Args:
          step: number of the step.
          state: after the step.
          metrics: of the step; not read.
        """
        self.samples = self._evaluator.samples(state.ema_params)
        for number, text in enumerate(self.samples.shown):
            self._writer.text(step, f"sample_{number}", text)


class Stall:
    """A hook: prints the stacks of all threads when no step ends for some time.

    It prints after `minutes` without a step, since the start or the last one, and again every
    `minutes`; a sentence follows if the run continues. The stacks come from `faulthandler`, whose
    watchdog needs no Python interpreter lock; setting it again takes under 0.1 ms a step. Nothing
    is stopped: a process may only be waiting, and otherwise the launcher has to end the job.

    Use as a context manager.
    """

    def __init__(self, minutes: float, file: TextIO | None = None):
        """Reports to `file`, which must have a file descriptor; standard error if None."""
        self._patience = 60 * minutes
        # not sys.stderr, which in a notebook has no descriptor
        self._file = file or sys.__stderr__

    def __enter__(self) -> "Stall":
        self._arm()
        return self

    def __exit__(self, *exception) -> None:
        faulthandler.cancel_dump_traceback_later()

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        waited = time.monotonic() - self._since
        if waited > self._patience:
            print(
                f"The run continues: step {step} is done, after {duration(waited)}. The stacks "
                "above show where it waited, most often for another process of the job or for the "
                "file system.",
                file=self._file,
                flush=True,
            )
        self._arm()

    def _arm(self):
        self._since = time.monotonic()
        faulthandler.dump_traceback_later(self._patience, repeat=True, file=self._file)


class Trace:
    """A hook: traces some steps, from the third after the start, into the run's folder.

    Each process writes into its own folder: a host may have several.

    Use as a context manager.
    """

    def __init__(self, run: Path, steps: int, start: int):
        """Plans a trace.

        Args:
          run: the folder of the run.
          steps: how many to trace, 0 for none.
          start: the step after which the run starts.
        """
        self._folder = run / TRACE_FOLDER
        if jax.process_count() > 1:
            self._folder /= f"process_{jax.process_index()}"
        self._before = start + UNTRACED
        self._last = self._before + steps
        self._due, self._tracing = steps > 0, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exception) -> None:
        if self._tracing:
            self._stop()
        elif self._due:
            print_on_primary(f"No trace was made: the run ended before step {self._before + 1}.")

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if self._due and step == self._before:
            jax.block_until_ready(metrics)  # earlier steps are not part of the trace
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
