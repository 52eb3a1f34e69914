"""The report of the oracle: every sampler by network evaluations, and how the error grows."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.display.plot import Plot
from sedd_jax.display.table import Table
from sedd_jax.experiment.build import build_noise
from sedd_jax.inference.sampling import Sampling
from sedd_jax.system.registry import is_dotted, split_options
from sedd_jax.verification.markov import markov_model, random_model
from sedd_jax.verification.oracle import GRAPHS, Excess, Oracle, OracleConfig
from sedd_jax.verification.report import Claim, Section

LENGTH_STEPS = 64  # of the dependence on the length
TARGET = 512  # steps of Tweedie whose error others should reach
BUDGET = 128  # network evaluations to reach it with
PLAIN = ("euler", "tweedie", "first_hitting")  # without corrections
# to the data, with more steps; and a sampler of the user's own should
_CONVERGE = (*PLAIN, "gibbs")
_ERRORS = 4.5  # standard errors that a claim allows
_OTHER_ROWS = 2**30  # the number of the first row that no table has
_THREADS = 2  # a program is compiled on one core while another runs


class Figure(NamedTuple):
    """A way to sample, and how far its samples are from the data."""

    sampler: str
    steps: int
    nfe: int
    rows: int
    found: Excess


def oracle_sections(config: OracleConfig, samplers: tuple[str, ...]) -> Iterator[Section]:
    """Yields the sections of the report, one after another as they are computed.

    Args:
      config: the settings.
      samplers: names or dotted paths of samplers.
    """
    settings, noise = config.oracle, build_noise(config.noise)
    model = random_model(
        config.seed, config.data.vocab_size, settings.hidden, settings.concentration
    )
    oracle = Oracle(model, config.model.length, config.seed)
    yield _check_data(oracle, settings)
    for name, graph in GRAPHS.items():
        case = _Case(oracle, name, graph(model.num_tokens), noise, config)
        serving = [each for each in samplers if Sampling(sampler=each).method.serves(case.graph)]
        figures = case.figures(serving)
        yield _check_samplers(case, figures)
        if settings.max_steps >= TARGET and set(serving).difference(PLAIN):
            yield _check_best(case, figures)
    yield _check_lengths(model, noise, config)


class _Case(NamedTuple):
    """The data and a graph."""

    oracle: Oracle
    name: str
    graph: Graph
    noise: Noise
    config: OracleConfig

    def figure(self, sampler: str, steps: int, rows: int, first_row: int = 0) -> Figure:
        sampling, t_min = Sampling(sampler=sampler, steps=steps), self.config.train.t_min
        drawn = self.oracle.draw(self.graph, self.noise, sampling, rows, t_min, first_row)
        found = self.oracle.excess(*drawn)
        return Figure(sampler, steps, sampling.max_nfe(self.oracle.length), rows, found)

    def figures(self, samplers: Sequence[str]) -> list[Figure]:
        settings = self.config.oracle
        return _in_threads(
            lambda sampler, steps: self.figure(sampler, steps, settings.evaluations // steps),
            [
                (sampler, 2**power)
                for sampler in samplers
                for power in range(3, settings.max_steps.bit_length())
            ],
        )


def _in_threads(compute: Callable[..., Figure], cases: list[tuple]) -> list[Figure]:
    """The results of all cases, in their order."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        return list(pool.map(lambda case: compute(*case), cases))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, without the cases that have not begun


def _check_data(oracle, settings):
    """The data's own samples, and the rounding of the scores."""
    rows = max(settings.evaluations // 8, 2)
    own = oracle.excess(oracle.data(rows, jax.random.key(oracle.seed)))
    row = oracle.data(1, jax.random.key(oracle.seed + 2))
    graph, sigma = GRAPHS["uniform"](oracle.model.num_tokens), jnp.array([1e-3])
    found = np.asarray(jax.jit(markov_model(graph).apply)(oracle.model.params, row, sigma))
    with jax.enable_x64(True):
        exact = jax.jit(markov_model(graph).apply)(oracle.model.params, row, sigma.astype(float))
    off = float(np.abs(found - np.asarray(exact)).max())
    claims = [
        Claim(
            "samples of the data: |excess| in standard errors",
            abs(own.mean) / own.error,
            "<=",
            _ERRORS,
        ),
        Claim("log-scores in float32 and float64: largest difference", off, "<=", 1e-3),
    ]
    title = f"The data: {oracle.model.num_tokens} tokens, length {oracle.length}"
    columns = ("entropy, nats/token", "samples", "excess", "+-", "bigram TV")
    row = (oracle.entropy, rows, own.mean, own.error, own.bigram_tv)
    return Section("Oracle", claims, [Table(title, columns, [row])])


def _check_samplers(case, figures):
    """Excess of every sampler by network evaluations."""
    by_sampler = {}
    for figure in figures:
        by_sampler.setdefault(figure.sampler, []).append(figure)
    # sampler error falls as 1 / steps or faster
    surely = [
        last.nfe * (last.found.mean - _ERRORS * last.found.error)
        for name, (*_, last) in by_sampler.items()
        if is_dotted(split_options(name, "sampler")[0]) or name in _CONVERGE
    ]
    claims = [
        Claim(
            f"{case.name}: samples of probability 0",
            sum(figure.found.impossible for figure in figures),
            "<=",
            0,
        ),
        Claim(
            f"{case.name}: excess x evaluations at the most steps, less {_ERRORS} standard errors, "
            f"worst of {', '.join(_CONVERGE)} and samplers of your own",
            max(surely, default=math.nan),
            "<=",
            4.0,
        ),
    ]
    title = f"{case.name}: excess of the samples over the entropy, nats per token, true scores"
    columns = ("sampler", "evaluations", "mean", "rows", "excess", "+-", "bigram TV")
    rows = [
        (name, nfe, found.evaluations, rows, found.mean, found.error, found.bigram_tv)
        for name, _, nfe, rows, found in figures
    ]
    curves = {
        name: _above_zero([(each.nfe, each.found.mean, each.found.error) for each in points])
        for name, points in by_sampler.items()
    }
    plot = Plot(f"oracle_{case.name}", "network evaluations", "excess, nats per token", curves)
    title, table = f"Samplers, {case.name} graph", Table(title, columns, rows)
    return Section(title, claims, [table], [plot])


def _check_best(case, figures):
    """Whether few evaluations of the best sampler reach Tweedie's error, and how fast."""
    settings, name = case.config.oracle, case.name
    tweedie = [figure for figure in figures if figure.sampler == "tweedie"]
    nfe = Sampling(sampler="tweedie", steps=TARGET).max_nfe(case.oracle.length)
    reached = _first_order(tweedie, nfe)
    (coarse,) = (figure for figure in tweedie if figure.steps == 32)
    reached_tv = coarse.found.bigram_tv * coarse.nfe / nfe
    able: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.nfe <= BUDGET and figure.sampler not in PLAIN:
            able.setdefault(figure.sampler, []).append(figure)
    best = min(able, key=lambda each: np.mean([_off(figure.found) for figure in able[each]]))
    rows = settings.evaluations // 4
    best = case.figure(best, able[best][-1].steps, rows, _OTHER_ROWS)
    own = case.oracle.excess(case.oracle.data(rows, jax.random.key(case.oracle.seed)))
    found = best.found
    claims = []
    if not settings.hidden:  # of Markov chains; a figure on other data
        claims = [
            Claim(
                f"{name}: |excess| of {best.sampler} with {best.nfe} evaluations, plus a standard "
                f"error; limit: Tweedie's with {nfe}",
                _off(found),
                "<=",
                reached,
            ),
            Claim(
                f"{name}: its bigram TV beyond that of as many samples of the data; limit: "
                f"Tweedie's with {nfe}",
                found.bigram_tv - own.bigram_tv,
                "<=",
                reached_tv,
            ),
        ]
    table = Table(
        f"The best sampler with at most {BUDGET} evaluations, drawn anew, and Tweedie by the first "
        "order of its figures",
        ("", "evaluations", "rows", "excess", "+-", "bigram TV"),
        [
            ("tweedie", nfe, None, reached, None, reached_tv),
            (best.sampler, best.nfe, rows, found.mean, found.error, found.bigram_tv),
            ("the data", None, rows, own.mean, own.error, own.bigram_tv),
        ],
    )
    return Section(f"Evaluations, {name} graph", claims, [table, _speed(case, best)])


def _off(found):
    """The absolute excess, plus a standard error: samples may be too likely, too."""
    return abs(found.mean) + found.error


def _first_order(figures, nfe):
    """The excess c / n + d / n^2 that is fitted to figures, at n evaluations."""
    n = np.array([figure.nfe for figure in figures])
    mean, error = np.array([(each.found.mean, each.found.error) for each in figures]).T
    d, c = np.polyfit(1 / n, n * mean, 1, w=1 / (n * error))
    return float(c / nfe + d / nfe**2)


def _speed(case, best):
    """Seconds to Tweedie's error; they depend on the machine, so they are no claim."""
    ways = [Sampling(sampler=best.sampler, steps=best.steps), Sampling(steps=TARGET)]
    rows = []
    for batch in (1, 8):
        seconds = case.oracle.seconds(case.graph, case.noise, ways, batch, case.config.train.t_min)
        ratio = float(np.median(seconds[:, 0] / seconds[:, 1]))
        rows.append((batch, *map(float, np.median(seconds, axis=0)), ratio))
    title = (
        f"Seconds of a batch, {best.sampler} with {best.nfe} evaluations and tweedie alternating"
    )
    return Table(title, ("batch", best.sampler, f"tweedie, {TARGET} steps", "ratio"), rows)


def _check_lengths(model, noise, config):
    """Excess of whole rows at a fixed number of steps, by length."""
    settings = config.oracle
    tokens = settings.evaluations * config.model.length // LENGTH_STEPS
    cases = [
        (
            _Case(Oracle(model, length, config.seed), name, graph(model.num_tokens), noise, config),
            each,
        )
        for length in (4**i for i in range(3, 17))
        if length <= settings.max_length
        for name, graph in GRAPHS.items()
        for each in ("euler", "tweedie")
    ]
    figures = _in_threads(
        lambda case, sampler: case.figure(
            sampler, LENGTH_STEPS, max(tokens // case.oracle.length, 2)
        ),
        cases,
    )
    rows, curves = [], {}
    for (case, sampler), figure in zip(cases, figures, strict=True):
        length, found = case.oracle.length, figure.found
        point = (length, found.mean * length, found.error * length)
        rows.append((case.name, sampler, *point, figure.rows))
        curves.setdefault(f"{sampler}, {case.name}", []).append(point)
    shown = {name: _above_zero(points) for name, points in curves.items()}
    slopes = [
        (name, float(np.polyfit(np.log(x), np.log(y), 1)[0]))
        for name, (x, y, _) in shown.items()
        if len(x) > 1
    ]
    title = f"Excess of a row, nats, at {LENGTH_STEPS} steps"
    tables = [
        Table(title, ("graph", "sampler", "length", "excess", "+-", "rows"), rows),
        Table("Slope of the excess over the length, log-log", ("sampler", "slope"), slopes),
    ]
    plot = Plot("oracle_lengths", "tokens of a row", "excess of a row, nats", shown)
    return Section("Dependence on the length", [], tables, [plot])


def _above_zero(points):
    """A curve of (x, y, error), of the points that a logarithmic axis can show."""
    shown = [point for point in points if point[1] > 0]
    return tuple(map(list, zip(*shown, strict=True))) if shown else ([], [], [])
