"""Proves the maths on a small space: `python -m sedd_jax.exact --config=configs/exact_absorb.py`.

Every sequence is enumerated, so distributions, bounds and samplers are computed and not estimated.
With --objective=NAME, or --objective=all, training objectives are audited instead.
With configs/exact_held.py, or any config.train.hold, given tokens are checked alone; with
configs/exact_conditions.py, or any config.data.condition, classes are.
With configs/oracle_markov.py samplers are measured at real length, on data whose scores are known.
Prints tables and claims, writes report.md, report.json and plots, and exits with code 1 if a claim
fails.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.hold import NONE
from sedd_jax.display.plot import check_plots
from sedd_jax.errors import BadInput
from sedd_jax.experiment import cli
from sedd_jax.experiment.build import build_graph
from sedd_jax.experiment.config_files import define_config_flag
from sedd_jax.inference.build import build_family
from sedd_jax.inference.sampling import SAMPLERS
from sedd_jax.system import mirror
from sedd_jax.system.files import check_output_path
from sedd_jax.verification.adaptive import check_adaptive
from sedd_jax.verification.audit import check_audits, check_objectives, pairs_of
from sedd_jax.verification.conditioning import check_conditioning
from sedd_jax.verification.conditions import check_conditions, two_classes
from sedd_jax.verification.correctors import check_correctors
from sedd_jax.verification.exact.space import Space
from sedd_jax.verification.guidance import check_guidance
from sedd_jax.verification.held import check_held
from sedd_jax.verification.interval import check_interval_bounds
from sedd_jax.verification.oracle import OracleConfig, check_oracle_settings
from sedd_jax.verification.oracle_report import oracle_sections
from sedd_jax.verification.order import check_order
from sedd_jax.verification.rare import check_rare_tokens
from sedd_jax.verification.report import (
    FILES,
    ExactConfig,
    Section,
    check_settings,
    render,
    write,
)
from sedd_jax.verification.samplers import check_samplers
from sedd_jax.verification.scores import check_scores
from sedd_jax.verification.training import check_bound, check_training

_CONFIG = define_config_flag("One of configs/exact_*.py, or configs/oracle_markov.py.")
_OBJECTIVE = flags.DEFINE_string(
    "objective",
    None,
    "Audit a training objective instead: a name with options, module:function, or all.",
)
_SAMPLER = flags.DEFINE_multi_string(
    "sampler",
    [],
    "With configs/oracle_markov.py: one more sampler, a name with options or module:class.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the report and the plots; by default runs/NAME of the config file."
)


def main() -> None:
    """Checks every claim, as the flags say."""
    config, computed = _check()
    started, sections = time.monotonic(), []
    with _new_folder() as folder:
        shown = mirror.shown(folder)
        try:
            for section in computed:
                sections.append(section)
                print(render(section), flush=True)
        finally:  # an interrupted run keeps the finished sections
            write(sections, folder, _about(config))
    claims = [claim for section in sections for claim in section.claims]
    failed = [claim.statement for claim in claims if not claim.holds]
    print(
        f"{len(claims) - len(failed)} of {len(claims)} claims hold; "
        f"{time.monotonic() - started:.0f} s; the report is in {shown}.",
        file=sys.stderr,
    )
    for statement in failed:
        print(f"FAILED: {statement}", file=sys.stderr)
    if failed:
        sys.exit(1)


def _check() -> tuple[ExactConfig | OracleConfig, Iterator[Section]]:
    """Returns the checked settings, and the sections of their report, not yet computed."""
    if "oracle" in (_CONFIG.value or ()):
        config = cli.config_from(_CONFIG, OracleConfig)
        samplers = tuple(dict.fromkeys((*SAMPLERS.names, *_SAMPLER.value)))
        check_oracle_settings(config, samplers)
        if _OBJECTIVE.value:
            raise BadInput("--objective is for --config=configs/exact_absorb.py and its like.")
        return config, oracle_sections(config, samplers)
    if _SAMPLER.value:
        raise BadInput("--sampler adds to the samplers of --config=configs/oracle_markov.py.")
    config = cli.config_from(_CONFIG, ExactConfig, "exact_absorb")
    check_settings(config)
    if not _OBJECTIVE.value:
        return config, sections_of(config)
    if config.data.condition:
        raise BadInput(
            "--objective audits networks that are told nothing: leave out config.data.condition."
        )
    space = Space(build_graph(config.graph, config.data.vocab_size), config.model.length)
    every = _OBJECTIVE.value == "all"
    audits = pairs_of(space) if every else ((config.model.output, _OBJECTIVE.value),)
    check_audits(config, audits)
    data = space.random_data(config.seed, config.exact.support)
    return config, check_objectives(config, audits, space, data)


def sections_of(config: ExactConfig) -> Iterator[Section]:
    """Yields the sections of the report, one after another as they are computed."""
    exact, t_min = config.exact, config.train.t_min
    conditions = two_classes(config)
    family = build_family(config, config.data.vocab_size, conditions=conditions)
    space = Space(family.graph, config.model.length)
    data = space.random_data(config.seed, exact.support)
    if conditions:
        yield check_conditions(config, family, space, data, conditions)
        return
    if config.train.hold != NONE:
        yield check_held(config, family, space, data)
        return
    schedules = {
        "loglinear": noises.loglinear(config.noise.eps),
        "geometric": noises.geometric(config.noise.sigma_min, config.noise.sigma_max),
    }
    sparse = space.random_data(config.seed, 0.3)
    for name, distribution in (("full support", data), ("sparse support", sparse)):
        section = check_scores(space, schedules, distribution, config.seed)
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
    small = Space(build_graph(config.graph, 3), 3)
    yield check_order(
        small,
        schedules,
        small.random_data(config.seed),
        t_min=t_min,
        num_samples=exact.num_samples,
    )
    yield check_correctors(space, schedules, data, t_min=t_min)
    if space.graph.absorbs:
        settings = {"t_min": t_min, "num_samples": exact.num_samples}
        yield check_adaptive(space, schedules["loglinear"], sparse, **settings)
        yield check_interval_bounds(small, config)
    yield check_conditioning(space, schedules, data, t_min=t_min, max_steps=exact.max_steps)
    yield check_guidance(space, schedules["loglinear"], data, t_min=t_min)
    yield check_rare_tokens(num_draws=exact.num_draws, seed=config.seed)
    trained = check_training(
        config,
        family,
        space,
        data,
        set_sizes=(64, 512, 4096, 65_536),
        sampler_steps=exact.max_steps,
        num_samples=exact.num_samples,
    )
    yield trained.section
    yield check_bound(config, family, trained.params, space, data, repeats=exact.repeats)


@contextlib.contextmanager
def _new_folder():
    """Creates the folder of the report; a report is never overwritten."""
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    check_plots()
    with (
        mirror.opened(_WORKDIR.value or f"runs/{name}", "--workdir", only=FILES) as folder,
        mirror.synced(folder, "--workdir"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--workdir={folder} cannot be made: {error}") from error
        check_output_path(folder / "report.json", "--workdir")
        yield folder


def _about(config):
    return {
        "config": dataclasses.asdict(config),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy", "scipy")},
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    cli.run(main)
