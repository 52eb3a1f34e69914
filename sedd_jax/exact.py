"""Proves the maths on a small space: `python -m sedd_jax.exact --config=configs/exact_absorb.py`.

Every sequence is written down, so laws, bounds and samplers are computed and not estimated. Prints
tables and claims; with --workdir also writes report.md, report.json and plots. Exits with code 1 if
a claim fails.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sedd_jax.claims.bound import check_bound
from sedd_jax.claims.rare import check_rare_tokens
from sedd_jax.claims.report import Section, render, write
from sedd_jax.claims.samplers import check_samplers
from sedd_jax.claims.scores import check_scores
from sedd_jax.claims.settings import ExactConfig, check_settings
from sedd_jax.claims.training import check_training
from sedd_jax.diffusion import noise as noises
from sedd_jax.enumeration.space import Space
from sedd_jax.errors import BadInput
from sedd_jax.runtime import cli
from sedd_jax.runtime.components import build_components

_CONFIG = config_flags.DEFINE_config_file("config", None, "One of configs/exact_*.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the report and the plots; made.")


def main() -> None:
    """Checks as the flags say."""
    config = cli.config_from(_CONFIG, ExactConfig)
    check_settings(config)
    folder = _new_folder(_WORKDIR.value)
    started, sections = time.monotonic(), []
    for section in sections_of(config):
        sections.append(section)
        print(render(section), flush=True)
    if folder is not None:
        write(sections, folder)
    claims = [claim for section in sections for claim in section.claims]
    failed = [claim.statement for claim in claims if not claim.holds]
    print(
        f"{len(claims) - len(failed)} of {len(claims)} claims hold; "
        f"{time.monotonic() - started:.0f} s.",
        file=sys.stderr,
    )
    for statement in failed:
        print(f"FAILED: {statement}", file=sys.stderr)
    if failed:
        sys.exit(1)


def sections_of(config: ExactConfig) -> Iterator[Section]:
    """Yields the sections of the report, one after another as they are computed."""
    exact, t_min = config.exact, config.train.t_min
    components = build_components(config, config.data.vocab_size)
    graph, noise, _ = components
    space = Space(graph, config.model.length)
    data = space.random_data(config.seed, exact.support)
    schedules = {
        "loglinear": noises.loglinear(config.noise.eps),
        "geometric": noises.geometric(config.noise.sigma_min, config.noise.sigma_max),
    }
    sparse = space.random_data(config.seed, 0.3)
    for name, law in (("full support", data), ("sparse support", sparse)):
        section = check_scores(space, noise, law, config.seed)
        yield section._replace(title=f"{section.title}, {name}")
    yield check_samplers(
        space,
        schedules,
        data,
        t_min=t_min,
        max_steps=exact.max_steps,
        drawn_steps=(16, 64),
        num_samples=exact.num_samples,
    )
    yield check_rare_tokens(num_draws=exact.num_draws, seed=config.seed)
    trained = check_training(
        config,
        components,
        space,
        data,
        set_sizes=(64, 512, 4096, 65_536),
        sampler_steps=exact.max_steps,
        num_samples=exact.num_samples,
    )
    yield trained.section
    yield check_bound(config, components, trained.params, space, data, repeats=exact.repeats)


def _new_folder(name):
    """Makes the folder, or returns None without a name; a report is never overwritten."""
    if name is None:
        return None
    folder = Path(name)
    if (folder / "report.json").exists():
        raise BadInput(f"{folder} holds a report already; choose another --workdir.")
    try:
        import matplotlib  # noqa: F401  before anything is computed
    except ImportError as error:
        raise BadInput('--workdir needs matplotlib: pip install -e ".[plots]".') from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--workdir={folder} cannot be made: {error}") from error
    return folder


if __name__ == "__main__":
    cli.run(main)
