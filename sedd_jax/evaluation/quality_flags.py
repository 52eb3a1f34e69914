"""Flags of `sedd_jax.evaluate` about samples."""

from typing import NamedTuple

from absl import flags

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.frontier import TEMPERATURES
from sedd_jax.evaluation.quality import Settings
from sedd_jax.inference.sampling import SAMPLERS, TEMPERINGS

# flags that are defined here count as flags of the binary that asks for them
flags.disclaim_key_flags()

QUALITY = "quality"
FRONTIER = "frontier"


class QualityFlags(NamedTuple):
    """The flags, each under its own name."""

    judge: flags.FlagHolder
    judge_tokenizer: flags.FlagHolder
    reference: flags.FlagHolder
    mauve: flags.FlagHolder
    num_samples: flags.FlagHolder
    length: flags.FlagHolder
    steps: flags.FlagHolder
    sampler: flags.FlagHolder
    temperature: flags.FlagHolder
    top_p: flags.FlagHolder
    tempering: flags.FlagHolder

    def check(self, suite: str) -> None:
        """Raises BadInput for flags that need others.

        Args:
          suite: `QUALITY` or `FRONTIER`.
        """
        if self.judge_tokenizer.value and not self.judge.value:
            raise BadInput("--judge_tokenizer is that of --judge, which is not given.")
        if self.mauve.value and not (self.judge.value and self.reference.value):
            raise BadInput(
                "--mauve compares features of samples and of real text: give --judge and "
                "--reference."
            )
        if suite == FRONTIER and not (self.judge.value and self.reference.value):
            raise BadInput(
                f"--suite={FRONTIER} is generative perplexity at the entropy of real text: give "
                "--judge, which scores, and --reference, the real text."
            )
        if suite == FRONTIER and len(self._temperatures(suite)) < 2:
            raise BadInput(
                f"--suite={FRONTIER} needs samples at several temperatures, as in "
                f"--temperature=0.8,0.9,1; for one give --suite={QUALITY}."
            )

    def settings(self, suite: str, *, seed: int, batch_size: int) -> Settings:
        """Returns what to sample.

        Args:
          suite: `QUALITY` or `FRONTIER`.
          seed: of the samples.
          batch_size: samples at a time.

        Raises:
          BadInput: a setting out of range for every model.
        """
        try:
            steps = tuple(None if each == "default" else int(each) for each in self.steps.value)
        except ValueError as error:
            raise BadInput(
                f"--steps={','.join(self.steps.value)} must be numbers or default, as in 16,64,256."
            ) from error
        settings = Settings(
            num_samples=self.num_samples.value,
            length=self.length.value,
            steps=tuple(dict.fromkeys(steps)),
            samplers=tuple(dict.fromkeys(self.sampler.value)),
            temperatures=self._temperatures(suite),
            top_p=self.top_p.value,
            tempering=self.tempering.value,
            seed=seed,
            batch_size=batch_size,
            mauve=self.mauve.value,
        )
        settings.check()
        return settings

    def _temperatures(self, suite):
        if self.temperature.value is None:
            return TEMPERATURES if suite == FRONTIER else (1.0,)
        try:
            return tuple(map(float, self.temperature.value))
        except ValueError as error:
            given = ",".join(self.temperature.value)
            raise BadInput(f"--temperature={given} must be numbers, as in 0.8,0.9,1.") from error


def define_quality_flags() -> QualityFlags:
    """Defines the flags."""
    grid = ",".join(f"{each:g}" for each in TEMPERATURES)
    return QualityFlags(
        judge=flags.DEFINE_string(
            "judge", None, "A causal model that scores the samples: a run, a GPT-2, or OWNER/NAME."
        ),
        judge_tokenizer=flags.DEFINE_string(
            "judge_tokenizer", None, "The tokenizer of --judge, if it is not beside it."
        ),
        reference=flags.DEFINE_string(
            "reference", None, "Real text to compare samples with: a file, or heldout."
        ),
        mauve=flags.DEFINE_bool("mauve", False, "Measure MAUVE; it needs --judge and --reference."),
        num_samples=flags.DEFINE_integer("num_samples", 64, "Samples.", lower_bound=2),
        length=flags.DEFINE_integer(
            "length", None, "Tokens per sample; the trained length by default."
        ),
        steps=flags.DEFINE_list(
            "steps",
            ["default"],
            "Evaluations before the final one; several make a sweep: 16,64,256. By default 128, or "
            "up to one per token where each is drawn once.",
        ),
        sampler=flags.DEFINE_multi_string(
            "sampler",
            ["tweedie"],
            f"{', '.join(SAMPLERS.names)}, or the path module:class of your own; repeat it for a "
            "sweep.",
        ),
        temperature=flags.DEFINE_list(
            "temperature",
            None,
            "Below 1 sharpens the distribution; 0 is greedy. Several make a frontier: 0.8,0.9,1. "
            f"By default 1; {grid} for --suite={FRONTIER}.",
        ),
        top_p=flags.DEFINE_float(
            "top_p", 1.0, "Draw from the smallest set of tokens with this mass."
        ),
        tempering=flags.DEFINE_enum(
            "tempering",
            "token",
            TEMPERINGS,
            "What both act on: the token of a changing position, or (uniform graph) that given all "
            "others.",
        ),
    )
