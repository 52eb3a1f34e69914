"""Learns six sentences of four words, {I, You, We} love {AI, NLP} ., and writes them from masks.

    python -m examples.sentences --workdir=FOLDER    # 40 seconds on 2 CPU cores

The example prints the forward process on one token, what the trained network predicts for masked
words, one sample while it is denoised, and how often each sentence is sampled from [MASK] [MASK]
[MASK] [MASK]. Every sample must be one of the six, with equal frequencies (chi-square test), or the
exit code is 1. It writes `frequencies.png`. Training and sampling are those of the library, with a
network of 45 thousand parameters.

The published network has rotary embeddings, which encode relative positions only. In a row of four
masks it therefore predicts the same word everywhere, and four of five of its samples are not a
sentence. Sentences at fixed positions need `model.learned_positions`.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.stats import chisquare

from examples import new_file
from sedd_jax.diffusion.denoiser import denoise_probs
from sedd_jax.diffusion.graph import absorbing
from sedd_jax.experiment import cli
from sedd_jax.experiment.config import Config, default_config, parse
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.batches import row_keys
from sedd_jax.inference.build import build_family
from sedd_jax.inference.prompt import empty_prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import Params
from sedd_jax.training.step import build_train_step, init_state

WORDS = ["I", "You", "We", "love", "AI", "NLP", ".", "[MASK]"]


def encode(*sentences: str) -> np.ndarray:
    """Returns the ids of sentences whose words are separated by spaces, [B, L]."""
    return np.array([[WORDS.index(word) for word in one.split()] for one in sentences], np.int32)


def decode(row: np.ndarray) -> str:
    """Returns the sentence of a row of ids."""
    return " ".join(WORDS[token] for token in row)


DATA = encode(*(f"{who} love {what} ." for who in ("I", "You", "We") for what in ("AI", "NLP")))
PARTLY_NOISED = ("[MASK] love [MASK] .", "You [MASK] NLP [MASK]", "[MASK] [MASK] [MASK] [MASK]")


def settings() -> Config:
    """Returns the settings of the run: the defaults, with a small network and a fast schedule."""
    config = default_config()
    config.model.hidden_size = 32
    config.model.cond_dim = 16
    config.model.num_blocks = 2
    config.model.num_heads = 2
    config.model.length = DATA.shape[1]
    config.model.dropout = 0.0
    config.model.learned_positions = True
    config.train.steps = 1500
    config.train.batch_size = 16 * len(DATA)
    config.train.importance = True
    config.optim.learning_rate = 5e-3
    config.optim.warmup_steps = 20
    config.optim.decay = "cosine"
    config.optim.ema_decay = 0.98  # 0.9999 averages over more steps than the run has
    return parse(config)


def train(config: Config) -> tuple[ScoreBased, Params, list[float]]:
    """Returns the model, its averaged weights, and the loss of every step."""
    family = build_family(config, vocab_size=len(WORDS) - 1)
    keys = run_keys(config.seed)
    state = jax.jit(lambda key: init_state(key, family, config.optim))(keys.init)
    train_step = jax.jit(
        build_train_step(family, config.train, config.optim, keys.train), donate_argnums=0
    )
    batch, losses = jnp.asarray(np.tile(DATA, (config.train.batch_size // len(DATA), 1))), []
    for _ in range(config.train.steps):
        state, metrics = train_step(state, batch)
        losses.append(metrics["loss"])
    return family, state.ema_params, jax.device_get(losses)


def predictions(family: ScoreBased, params: Params, xt: np.ndarray, t) -> np.ndarray:
    """Returns the predicted distribution of the clean word at every position (Eq. 18), [B, L, N].

    Args:
      family: the model.
      params: its weights.
      xt: noised tokens, [B, L].
      t: time, a scalar or [B]. It hardly matters: under the absorbing graph the true distribution
        does not depend on it.
    """
    graph, noise, model = family

    def denoised(params, xt, t):
        sigma = jnp.broadcast_to(noise.sigma(t), len(xt))
        probs = denoise_probs(graph, xt, jnp.exp(model.apply(params, xt, sigma)), sigma)
        return probs / probs.sum(-1, keepdims=True)

    return np.asarray(jax.jit(denoised)(params, jnp.asarray(xt), jnp.float32(t)))


def draw(family: ScoreBased, params: Params, config: Config, num_samples: int, steps: int):
    """Returns samples [N, L], and the first one after every step, [steps + 2, L].

    Args:
      family: the model.
      params: its weights.
      config: the settings, for the seed and t_min.
      num_samples: N.
      steps: Tweedie steps before the final denoising step.
    """
    generator = family.generator(Sampling(steps), t_min=config.train.t_min, trace=True)
    keys = row_keys(run_keys(config.seed).sample, jnp.arange(num_samples))
    tokens, diagnostics = jax.jit(generator)(params, keys, empty_prompt(num_samples, DATA.shape[1]))
    return np.asarray(tokens), np.asarray(diagnostics.trace[:, 0])


def frequencies(tokens: np.ndarray) -> tuple[np.ndarray, int, float]:
    """Returns the count of each sentence, that of other samples, and the chi-square p-value."""
    counts = (tokens[:, None] == DATA).all(-1).sum(0)
    return counts, len(tokens) - int(counts.sum()), float(chisquare(counts).pvalue)


def fault(invalid: int, p_value: float) -> str:
    """Returns what is wrong with the samples, an empty string if nothing is."""
    if invalid:
        return f"failed: {invalid} of the samples are none of the six sentences."
    if p_value < 1e-3:
        return f"failed: the six sentences are not equally frequent, p = {p_value:.1e}."
    return ""


def show_forward(sigma: float = 1.5) -> None:
    """Prints the distribution of one token after the forward process (Eq. 16)."""
    words = ("cat", "dog")
    probs = absorbing(len(words)).transition(jnp.array(words.index("cat")), jnp.array(sigma))
    cells = ", ".join(f"{word} {p:.3f}" for word, p in zip((*words, "[MASK]"), probs, strict=True))
    print(f"cat after total noise {sigma}: {cells}; 1 - exp(-{sigma}) = {-np.expm1(-sigma):.3f}")


def show_predictions(family: ScoreBased, params: Params) -> None:
    """Prints the predicted distribution of every masked word of some sentences."""
    xt = encode(*PARTLY_NOISED)
    for row, probs in zip(xt, predictions(family, params, xt, t=0.5), strict=True):
        print(f"\n{decode(row)}")
        for place in np.flatnonzero(row == len(WORDS) - 1):
            cells = zip(WORDS, probs[place], strict=False)  # the mask has no entry
            print(f"  word {place + 1}: " + "  ".join(f"{word} {p:.4f}" for word, p in cells))


def plot(counts: np.ndarray, file: Path) -> None:
    """Writes a bar chart of the frequencies, with a line at equal shares."""
    from matplotlib.figure import Figure  # imported here: optional, and the plot comes last

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar([decode(row) for row in DATA], counts)
    axes.axhline(counts.sum() / len(DATA), color="black", linestyle="--", label="equal shares")
    axes.set_ylabel(f"of {counts.sum()} samples")
    axes.tick_params("x", rotation=20)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Trains, prints the tables, and checks the samples."""
    file = new_file(flags.FLAGS.workdir, "frequencies.png")
    show_forward()
    config = settings()
    family, params, losses = train(config)
    print(
        f"\nloss, mean of the first and of the last 100 of {len(losses)} steps: "
        f"{np.mean(losses[:100]):.3f}, {np.mean(losses[-100:]):.3f} nats per word"
    )
    show_predictions(family, params)
    tokens, trace = draw(family, params, config, flags.FLAGS.num_samples, steps=16)
    print("\none sample:")
    for step, row in enumerate(trace):
        if step == 0 or (row != trace[step - 1]).any():
            print(f"  after {step:2d} network evaluations: {decode(row)}")
    counts, invalid, p_value = frequencies(tokens)
    print(f"\n{len(tokens)} samples:")
    for row, count in zip(DATA, counts, strict=True):
        print(f"  {decode(row):15}{count:6d}{count / len(tokens):8.3f}")
    print(f"  {'none of them':15}{invalid:6d}\nchi-square test of equal shares: p = {p_value:.3f}")
    plot(counts, file)
    print(f"written: {file}")
    if reason := fault(invalid, p_value):
        sys.exit(reason)


if __name__ == "__main__":  # here, since the binaries define a flag of the same name
    flags.DEFINE_string("workdir", None, "Folder for the plot; made if absent.")
    flags.DEFINE_integer("num_samples", 600, "Number of samples.", lower_bound=60)
    cli.run(main)
