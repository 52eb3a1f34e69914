"""Flags of `sedd_jax.evaluate` about files of sequences."""

from typing import NamedTuple

from absl import flags

from sedd_jax.errors import BadInput
from sedd_jax.evaluation.sequence_report import Settings
from sedd_jax.inference.oracle import ORACLES

# flags that are defined here count as flags of the binary that asks for them
flags.disclaim_key_flags()

SEQUENCES = "sequences"


class SequenceFlags(NamedTuple):
    """The flags, each under its own name."""

    samples: flags.FlagHolder
    training: flags.FlagHolder
    judge_data: flags.FlagHolder
    field: flags.FlagHolder
    label: flags.FlagHolder
    kmer: flags.FlagHolder
    motif: flags.FlagHolder
    oracle: flags.FlagHolder
    target: flags.FlagHolder

    def settings(self, reference: str | None, seed: int) -> Settings:
        """Returns what to compare.

        Args:
          reference: file of real sequences.
          seed: of all draws.

        Raises:
          BadInput: a file is not given, or lengths that are not numbers.
        """
        if not (self.samples.value and reference):
            raise BadInput(
                f"--suite={SEQUENCES} needs --samples=FILE and --reference=FILE: drawn and real "
                "sequences."
            )
        if not all(each.isdigit() for each in self.kmer.value):
            raise BadInput(f"--kmer={','.join(self.kmer.value)} must be whole numbers, as in 3,6.")
        return Settings(
            samples=self.samples.value,
            reference=reference,
            training=self.training.value,
            judge_data=self.judge_data.value,
            field=self.field.value,
            label=self.label.value,
            kmers=tuple(map(int, self.kmer.value)),
            motifs=tuple(self.motif.value),
            oracle=self.oracle.value,
            target=self.target.value,
            seed=seed,
        )


def define_sequence_flags() -> SequenceFlags:
    """Defines the flags."""
    return SequenceFlags(
        samples=flags.DEFINE_string(
            "samples", None, "File of drawn sequences: FASTA, CSV and others."
        ),
        training=flags.DEFINE_string(
            "training", None, "File of the sequences that were trained on."
        ),
        judge_data=flags.DEFINE_string(
            "judge_data",
            None,
            "File of real sequences from which a classifier learns the classes.",
        ),
        field=flags.DEFINE_string(
            "field", "text", "The column of sequences, in files with columns."
        ),
        label=flags.DEFINE_string("label", None, "The column of their classes."),
        kmer=flags.DEFINE_list(
            "kmer", ["3", "6"], "Lengths of the k-mers whose spectra are compared."
        ),
        motif=flags.DEFINE_multi_string(
            "motif", [], "A rule POSITION:REGEX, as in 30:GT after 30 letters; may be repeated."
        ),
        oracle=flags.DEFINE_string(
            "oracle", None, f"{', '.join(ORACLES.names)}, or the path module:function of your own."
        ),
        target=flags.DEFINE_string("target", None, "The column with what the oracle should give."),
    )
