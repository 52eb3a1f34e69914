"""How many draws a question with two answers needs, with and without common random numbers.

    python -m benchmarks.choices --checkpoint=runs/tiny

Questions are made of the held-out text of a run. In each the right answer is the text itself:

- word: a text of 32 tokens, or the same with one token replaced (as BLiMP);
- context: 8 tokens after 24 others, or after the same with one token replaced (as WinoGrande);
- ending: 8 tokens after 24 others, or 8 tokens of another place (as HellaSwag).

The answer with the larger bound is chosen. A choice is stable if another seed makes it too: the
share of pairs of seeds that agree, over all questions. The last column is how many times fewer
draws common numbers need for the same error of the difference of two bounds: a ratio of variances.
"""

import jax
import numpy as np
from absl import flags

from sedd_jax.display.table import Table, markdown
from sedd_jax.errors import BadInput
from sedd_jax.evaluation.continuations import Continuation, continuation_nll
from sedd_jax.evaluation.protocol import CONVENTIONS, of_heldout
from sedd_jax.experiment import cli
from sedd_jax.inference.load import load
from sedd_jax.system.progress import progress

_MODEL = cli.define_model_flags()
_QUESTIONS = flags.DEFINE_integer("questions", 32, "Questions of each kind.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 8, "Seeds of the draws.", lower_bound=2)
_DRAWS = flags.DEFINE_list("draws", ["1", "4", "16", "64"], "Draws of every answer.")
_KINDS = flags.DEFINE_multi_enum(
    "kind", ["word", "context", "ending"], ["word", "context", "ending"], "Of questions."
)
_CONDITIONAL = flags.DEFINE_enum("conditional", "held", ["held", "difference"], "Of the bounds.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Answers at a time.", lower_bound=1)
TEXT, GIVEN = 32, 24


def main() -> None:
    """Prints a table in Markdown."""
    model = load(**_MODEL())
    if model.folder is None:
        raise BadInput("--checkpoint must be a run, whose held-out text the questions are made of.")
    length = model.config.model.length
    blocks = of_heldout(
        model.folder, length, lambda tokenizer: CONVENTIONS["sedd"](length, tokenizer.eod_id, False)
    )
    texts = np.concatenate(
        [row[:size] for row, size in zip(blocks.tokens, blocks.lengths, strict=True)]
    )
    if length < TEXT or len(texts) < TEXT * _QUESTIONS.value:
        raise BadInput(f"The questions need {TEXT} tokens each, and so much held-out text.")
    rng = np.random.default_rng(0)
    rows = []
    for kind in dict.fromkeys(_KINDS.value):
        pairs = [_pair(kind, rng, texts) for _ in range(_QUESTIONS.value)]
        for draws in map(int, _DRAWS.value):
            common, apart = (_differences(model, pairs, draws, it) for it in (True, False))
            variances = [each.var(0, ddof=1).mean() for each in (common, apart)]
            rows.append(
                (
                    kind,
                    draws,
                    *(f"{100 * _stable(each):.0f} %" for each in (common, apart)),
                    *(f"{100 * (each > 0).mean():.0f} %" for each in (common, apart)),
                    *(f"{variance**0.5:.2g}" for variance in variances),
                    f"{variances[1] / max(variances[0], 1e-12):.3g}",
                )
            )
    columns = (
        "question", "draws", "stable, common", "stable, apart", "right, common", "right, apart",
        "error, common", "error, apart", "times fewer draws",
    )  # fmt: skip
    title = f"{_QUESTIONS.value} questions of each kind, {_SEEDS.value} seeds; errors in nats"
    print(markdown(Table(title, columns, rows)))


def _pair(kind, rng, texts):
    """The right and the wrong answer of a question."""
    start = rng.integers(len(texts) - TEXT)
    text = texts[start : start + TEXT]
    other = text.copy()
    place = rng.integers(GIVEN)
    other[place] = rng.choice(texts[texts != text[place]])
    if kind == "word":
        nothing = text[:0]
        return Continuation(nothing, text), Continuation(nothing, other)
    right = Continuation(text[:GIVEN], text[GIVEN:])
    if kind == "context":
        return right, right._replace(context=other[:GIVEN])
    start = rng.integers(len(texts) - TEXT)
    return right, right._replace(tokens=texts[start : start + TEXT - GIVEN])


def _differences(model, pairs, draws, common):
    """How much larger the bound of the right answer is, [S, Q] by seed and question."""
    count, seeds = len(pairs), _SEEDS.value
    answers = []
    for seed in range(seeds):
        for index, pair in enumerate(pairs):
            number = 2 * (seed * count + index)
            answers += [
                it._replace(question=number + (not common) * i) for i, it in enumerate(pair)
            ]
    with progress(f"{draws} draws") as advance:
        nats = continuation_nll(
            jax.random.key(0),
            model,
            answers,
            draws=draws,
            difference=_CONDITIONAL.value == "difference",
            batch_size=_BATCH_SIZE.value,
            progress=advance,
        )
    right, wrong = nats.reshape(seeds, count, 2).transpose(2, 0, 1)
    return wrong - right


def _stable(differences):
    """The share of pairs of seeds that choose alike."""
    chosen = (differences > 0).sum(0)
    seeds = len(differences)
    alike = chosen * (chosen - 1) + (seeds - chosen) * (seeds - chosen - 1)
    return (alike / (seeds * (seeds - 1))).mean()


if __name__ == "__main__":
    cli.run(main)
