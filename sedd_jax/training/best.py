"""Keeping the checkpoint whose samples an oracle of the user's own likes best."""

import math

import numpy as np

from sedd_jax.data.characters import END_OF_DOCUMENT, Tokenizer
from sedd_jax.errors import BadInput
from sedd_jax.experiment.checkpoint import Checkpoints
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.metrics import MetricWriter
from sedd_jax.experiment.state import TrainState
from sedd_jax.inference.oracle import ORACLES, oracle_scores
from sedd_jax.system.processes import (
    broadcast_from_primary,
    is_primary,
    print_on_primary,
    warn_on_primary,
)
from sedd_jax.training.hooks import Evaluation
from sedd_jax.training.step import Metrics


def check_oracle(config: Config) -> None:
    """Raises BadInput for an oracle that does not exist or has too little to look at."""
    oracle, samples = config.eval.oracle, config.eval.num_samples
    if not oracle:
        return
    ORACLES[oracle]  # imports it
    if samples < 2:
        raise BadInput(
            f"config.eval.oracle={oracle} scores the samples of a step: set "
            f"config.eval.num_samples, which is {samples}, to 2 or more (64, say)."
        )
    if config.eval.sample_every % config.train.log_every:
        raise BadInput(
            f"config.eval.sample_every ({config.eval.sample_every}) must be a multiple of "
            f"config.train.log_every ({config.train.log_every}) with config.eval.oracle, since "
            "the best step is saved, so that a run resumed from there logs the same."
        )


def try_oracle(config: Config, tokenizer: Tokenizer, blocks: np.ndarray) -> None:
    """Raises BadInput for an oracle that gives sequences no numbers, before a step is computed.

    Args:
      config: of the run.
      tokenizer: of its data.
      blocks: some of its held-out blocks, [N, L].
    """
    if config.eval.oracle:
        oracle_scores(config.eval.oracle, _texts(map(tokenizer.decode, blocks)))


def _texts(decoded):
    return [text.partition(END_OF_DOCUMENT)[0] for text in decoded]


class KeepBest:
    """A hook: scores the latest samples, and keeps the checkpoint with the highest mean score.

    It is called after `Evaluation.sample`. A step whose mean is not finite is told and never
    compared. The oracle is called on process 0 alone: it need not give the same numbers twice.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        writer: MetricWriter,
        checkpoints: Checkpoints,
        config: Config,
    ):
        """Continues from the best step that the run has had with this oracle.

        Args:
          evaluation: whose samples are scored.
          writer: of the rows.
          checkpoints: of the run.
          config: its settings.
        """
        self._evaluation, self._writer = evaluation, writer
        self._checkpoints, self._config = checkpoints, config
        best = checkpoints.best or {}
        same = best.get("oracle") == config.eval.oracle
        self._highest = best["score"] if same else -math.inf

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        oracle = self._config.eval.oracle
        texts = _texts(self._evaluation.samples.texts)
        found = oracle_scores(oracle, texts) if is_primary() else np.zeros(len(texts))
        scores = np.asarray(broadcast_from_primary(found))
        score = float(scores.mean())
        if not math.isfinite(score):
            count = int((~np.isfinite(scores)).sum())
            warn_on_primary(
                f"step {step}: the oracle gave {count} of {len(scores)} samples no finite number, "
                "so this step is not compared with others"
            )
            return
        stderr = float(scores.std(ddof=1) / math.sqrt(len(scores)))
        self._writer.scalars(step, {"oracle": score, "oracle_stderr": stderr})
        is_best = score > self._highest
        print_on_primary(
            f"  oracle {score:.4g} (+-{stderr:.2g})" + (", the best so far" if is_best else "")
        )
        if is_best:
            self._highest = score
            facts = {"oracle": oracle, "score": score, "stderr": stderr, "samples": len(scores)}
            self._checkpoints.save_best(state, self._config, facts)
