"""The streamed head against the one that is written out, `DenseScore`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy.stats import chisquare

import sedd_jax as sedd
from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.denoiser import denoise_weights, tweedie_weights
from sedd_jax.diffusion.euler import euler_weights
from sedd_jax.diffusion.score import DenseScore, StepWeights
from sedd_jax.diffusion.score_entropy import target
from sedd_jax.diffusion.temperature import TokenFilter
from sedd_jax.model import head_draws, tiles
from sedd_jax.model.config import COLUMN_GROUP, padded
from sedd_jax.model.head_inputs import HeadInputs
from sedd_jax.model.sharding import ANYWHERE, Placement
from sedd_jax.model.tiles import StreamedHead, Tiling, Unembedding
from sedd_jax.model.vocab_head import StreamedScore

V, PADDED = 600, 640  # five groups of columns, the last with padding
# Chunks of 256 columns: the third and last reaches back over half of the second. Blocks of 8 rows
# and of 2 for the remainder; 24 positions fit no block of the default tiling but one.
SMALL = Tiling(192, (8, 2), 3)  # 640 columns in three equal chunks
DEFAULT = tiles.CPU
GRAPHS = ("absorb", "uniform")
B, L, D = 4, 6, 8
SIGMA = {
    "absorb": np.array([1e-4, 1e-2, 0.5, 20], np.float32),
    "uniform": np.array([1e-4, 1e-2, 0.5, 20], np.float32),
}
WEIGHT = jnp.array([0.3, 1.0, 5.0, 2.0])
LEVEL = 1e-4  # of a chi-square test; keys are fixed, so a pass stays a pass
jit = functools.partial(
    functools.partial,
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What a compiled program is made for: either graph, to compile half as often."""

    states: int = V
    tiling: Tiling = SMALL
    placement: Placement = ANYWHERE

    def graph(self, name):
        if name == "absorb":
            return sedd.graph.absorbing(self.states - 1)
        return sedd.graph.uniform(self.states)


def streamed(case, hidden, table, shift, xt):
    stream = StreamedHead(case.states, case.tiling, case.placement)
    return StreamedScore(stream, table, HeadInputs(hidden, shift, xt))


def written_out(case, hidden, table, shift, xt):
    product = jnp.dot(hidden, table.kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    log_score = product + table.bias[None, None] - shift[..., None]
    return DenseScore(xt, log_score[..., : case.states])


target_of = jit(static_argnums=0)(target)


def entropies(case, name, form, hidden, table, shift, xt, x0, sigma, weight):
    wanted = target_of(case.graph(name), sigma, xt, x0)
    return entropies_of(case, form, wanted, hidden, table, shift, weight)


@jit(static_argnums=(0, 1))
def entropies_of(case, form, wanted, hidden, table, shift, weight):
    """The entropies, their weighted sum with its gradients, and the sum without them."""
    xt = wanted.xt

    def total(hidden, table, weight=weight):
        return form(case, hidden, table, shift, xt).weighted_entropy(wanted, weight)

    each = form(case, hidden, table, shift, xt).entropy(wanted)
    # times 3: the gradient must heed what comes after the sum
    alone = total(hidden, table)
    both = jax.value_and_grad(lambda *x: 3 * total(*x), argnums=(0, 1, 2))(hidden, table, weight)
    return each, alone, both


def problem(name, scale=0.01, seed=0, padded=PADDED):
    """Random numbers of everything, padding included."""
    rng = np.random.default_rng(seed)
    x0 = rng.integers(0, V - 1, (B, L))
    noised = V - 1 if name == "absorb" else (x0 + rng.integers(1, V, (B, L))) % V
    xt = np.where(rng.random((B, L)) < 0.5, noised, x0)
    xt[0, :2], x0[0, :2] = (V - 1 if name == "absorb" else 7), 500  # in what is reached back to
    normal = functools.partial(rng.normal, 0)
    hidden, kernel, bias, shift = (
        scale * normal(1, (B, L, D)),
        normal(1, (D, padded)),
        0.1 * normal(1, padded),
        normal(1, (B, L)),
    )
    kernel[:, V:] *= 100  # padding: would show
    bias[V:] += 10
    table = Unembedding(jnp.array(kernel, jnp.float32), jnp.array(bias, jnp.float32))
    hidden, shift = jnp.array(hidden, jnp.float32), jnp.array(shift, jnp.float32)
    xt, x0 = jnp.array(xt, jnp.int32), jnp.array(x0, jnp.int32)
    return hidden, table, shift, xt, x0, jnp.array(SIGMA[name]), WEIGHT


@functools.cache
def dense_answer(name, scale):
    return jax.device_get(entropies(Case(), name, written_out, *problem(name, scale)))


def size_of_terms(name, arrays):
    """What rounding errors of the entropy of every position are relative to."""
    hidden, table, shift, xt, x0, sigma, _ = arrays
    graph = Case().graph(name)
    log_score = np.float64(written_out(Case(), hidden, table, shift, xt).log_score)
    distribution = np.float64(graph.transition(x0, sigma))
    at_xt = np.asarray(xt)[..., None] == np.arange(V)
    ratio = distribution / distribution[at_xt].reshape(B, L, 1)
    logs = np.abs(log_score) + np.abs(np.log(np.maximum(ratio, 1e-30)))
    terms = np.where(at_xt, 0, np.exp(log_score) + ratio * (1 + logs)).sum(-1)
    return np.asarray(graph.limit)[np.asarray(xt)] * terms


def assert_near(got, wanted, rtol):
    """Relative to the largest entry."""
    got, wanted = np.float64(got), np.float64(wanted)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= rtol * np.abs(wanted).max()


def assert_same_answers(got, wanted, scale, rtol=1e-6):
    (each, alone, (thrice, gradient)), (exact, _, (_, exact_gradient)) = got, wanted
    assert (np.abs(each - exact) <= rtol * scale).all()
    total_scale = rtol * (np.float64(WEIGHT)[:, None] * scale).sum()
    total = (np.float64(WEIGHT)[:, None] * exact).sum()
    assert abs(alone - total) <= total_scale
    assert abs(thrice - 3 * total) <= 3 * total_scale
    jax.tree.map(functools.partial(assert_near, rtol=10 * rtol), gradient, exact_gradient)


# hidden states of 8 make log-scores of about 30 to either side, and more
SCALES = {"small": 0.01, "large": 4.0}


@pytest.mark.parametrize("size", SCALES)
@pytest.mark.parametrize("tiling", [SMALL, DEFAULT], ids=["small-tiles", "default-tiles"])
@pytest.mark.parametrize("name", GRAPHS)
def test_streamed_entropies_and_gradients_are_the_dense_ones(name, tiling, size):
    arrays = problem(name, SCALES[size])
    if size == "large":
        log_score = written_out(Case(), *arrays[:4]).log_score
        assert log_score.max() > 30 and log_score.min() < -30
    got = jax.device_get(entropies(Case(tiling=tiling), name, streamed, *arrays))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got))
    # a large log-score is itself rounded to 2e-6: so is its exp
    rtol = 1e-6 if size == "small" else 4e-6
    assert_same_answers(got, dense_answer(name, SCALES[size]), size_of_terms(name, arrays), rtol)
    d_table = got[2][1][1]
    assert not d_table.kernel[:, V:].any() and not d_table.bias[V:].any()


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_of_weight_zero_change_nothing(name):
    *arrays, weight = problem(name)
    weight = weight.at[1].set(0)
    _, alone, (_, (d_hidden, *_)) = entropies(Case(), name, streamed, *arrays, weight)
    each, _, _ = dense_answer(name, SCALES["small"])
    np.testing.assert_allclose(alone, (np.asarray(weight)[:, None] * each).sum(), rtol=1e-5)
    assert not d_hidden[1].any() and d_hidden[0].any()


def test_where_nothing_counts_all_is_zero():
    hidden, table, shift, _, x0, *rest = problem("absorb")
    got = entropies(Case(), "absorb", streamed, hidden, table, shift, x0, x0, *rest)
    assert not any(leaf.any() for leaf in jax.tree.leaves(got))


def test_where_all_masks_count_all_are_summed():
    hidden, table, shift, xt, *rest = problem("absorb")
    arrays = (hidden, table, shift, jnp.full_like(xt, V - 1), *rest)
    got, wanted = (
        jax.device_get(entropies(Case(), "absorb", form, *arrays))
        for form in (streamed, written_out)
    )
    assert (wanted[0] > 0).all()
    assert_same_answers(got, wanted, size_of_terms("absorb", arrays))


def with_masks(count):
    """The problem of the absorbing graph with as many masks, and where they are."""
    hidden, table, shift, _, x0, sigma, weight = problem("absorb")
    places = np.random.default_rng(5).permutation(B * L)[:count]
    masked = np.isin(np.arange(B * L), places).reshape(B, L)
    return (hidden, table, shift, jnp.where(masked, V - 1, x0), x0, sigma, weight), masked


@pytest.mark.parametrize("count", [10, 11, 1])
def test_blocks_without_a_row_that_counts_are_never_computed(count):
    """NaN would spread to the gradient of the table from any row that is multiplied by it."""
    (hidden, *rest), masked = with_masks(count)
    entropies_of_masks = functools.partial(entropies, Case(), "absorb", streamed)
    plain = entropies_of_masks(hidden, *rest)
    poisoned = entropies_of_masks(jnp.where(masked[..., None], hidden, jnp.nan), *rest)
    jax.tree.map(np.testing.assert_array_equal, poisoned, plain)
    assert (np.asarray(plain[0])[masked] > 0).all()
    # and a row that counts is computed: this can fail
    first = np.arange(B * L).reshape(B, L) == np.flatnonzero(masked)[0]
    poisoned = entropies_of_masks(jnp.where(first[..., None], jnp.nan, hidden), *rest)
    assert np.isnan(poisoned[2][1][1].kernel).any()


def test_bfloat16_is_near_float32_and_only_its_own_gradient_is_bfloat16():
    name = "uniform"
    hidden, *rest = problem(name, scale=0.3)
    low = hidden.astype(jnp.bfloat16)
    each, alone, (value, (d_hidden, d_table, _)) = entropies(Case(), name, streamed, low, *rest)
    assert d_hidden.dtype == jnp.bfloat16
    assert {x.dtype for x in (each, alone, value, *d_table)} == {jnp.dtype("float32")}
    exact = entropies(Case(), name, written_out, low.astype(jnp.float32), *rest)
    # the kernel and the gradient by the outputs are rounded to 2^-9
    scale = size_of_terms(name, (hidden, *rest))
    assert (np.abs(each - exact[0]) <= 0.01 * scale).all()
    assert 1e-6 < np.abs(value / exact[2][0] - 1) < 0.01
    assert_near(d_hidden, exact[2][1][0], 0.03)
    jax.tree.map(functools.partial(assert_near, rtol=0.03), d_table, exact[2][1][1])


RULES = {"tweedie": tweedie_weights, "euler": euler_weights, "denoise": denoise_weights}
ON_MESH = 768  # columns: two shards of three groups each


@functools.cache
def on_mesh(tensor="tensor"):
    axes = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=axes)
    return Placement(mesh, batch=("data",), tensor=tensor)


# the rows of every device, and of the last also the columns, are handled alike for both graphs
@pytest.mark.parametrize(("name", "tensor"), [("absorb", None), ("uniform", "tensor")])
def test_a_mesh_gives_the_answers_of_one_device(name, tensor):
    arrays = problem(name)
    assert PADDED // 2 % COLUMN_GROUP != 0  # a device's part of the table is no multiple of 128
    case = Case(placement=on_mesh(tensor))
    got = jax.device_get(entropies(case, name, streamed, *arrays))
    d_table = got[2][1][1]
    assert not d_table.kernel[:, V:].any() and not d_table.bias[V:].any()
    wanted = jax.device_get(entropies(Case(), name, written_out, *arrays))
    assert_same_answers(got, wanted, size_of_terms(name, arrays))


def draws(case, name, form, rule, *arrays):
    return draws_by_number(case, name, form, list(RULES).index(rule), *arrays)


def weights_by_number(case, name, number, xt, step):
    """All rules share a program: of a rule without a cut the cut is 0, where others have one."""

    def step_weights(total):
        every = [rule(case.graph(name), xt, total, step) for rule in RULES.values()]
        if any(each.cut is not None for each in every):
            zero = jnp.zeros(xt.shape)
            every = [each._replace(cut=zero if each.cut is None else each.cut) for each in every]
        return jax.tree.map(lambda *parts: jnp.stack(parts)[number], *every)

    return step_weights


@jit(static_argnums=(0, 1, 2))
def draws_by_number(case, name, form, number, keys, hidden, table, shift, xt, active, step):
    score = form(case, hidden, table, shift, xt)
    return score.draw(keys, weights_by_number(case, name, number, xt, step), active)


def drawing_problem(name):
    """Arrays to draw with: some masks or tokens active, some not."""
    hidden, table, shift, xt, x0, *_ = problem(name, scale=0.5, padded=ON_MESH)
    rng = np.random.default_rng(4)
    active = rng.random((B, L)) < 0.6
    if name == "absorb":
        shift += np.log(V)  # so that the ratios sum to about 1, as those of a network do
        xt = jnp.where(rng.random((B, L)) < 0.8, V - 1, x0)
        active &= xt == V - 1
    keys = jax.random.split(jax.random.key(3), B)
    return keys, hidden, table, shift, xt, active, jnp.array([0.5, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("name", GRAPHS)
def test_draws_and_totals_do_not_depend_on_tiles_nor_devices(name):
    arrays = drawing_problem(name)
    xt, active = np.asarray(arrays[4]), arrays[5]
    other = Case(placement=on_mesh()) if name == "uniform" else Case(tiling=DEFAULT)
    log_score = np.float64(written_out(Case(), *arrays[1:5]).log_score)
    at_xt = xt[..., None] == np.arange(V)
    total = np.where(at_xt, 0, np.exp(log_score)).sum(-1)
    for rule in RULES:
        draw, again = (draws(case, name, streamed, rule, *arrays) for case in (Case(), other))
        np.testing.assert_array_equal(again.xt, draw.xt)
        np.testing.assert_allclose(again.total, draw.total, rtol=1e-6)
        # the sum is within a few roundings, 6e-8, of log-scores of up to 10
        np.testing.assert_allclose(draw.total, np.where(active, total, 0), rtol=2e-6)
        drawn = np.asarray(draw.xt)
        np.testing.assert_array_equal(drawn[~active], xt[~active])
        assert (drawn != xt).sum() > 4
        assert drawn.max() < V and (name == "uniform" or (drawn[drawn != xt] < V - 1).all())
        if (name, rule) == ("absorb", "denoise"):
            assert (drawn != xt)[active].all()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_draw_of_a_row_does_not_depend_on_the_others(name):
    keys, hidden, table, shift, xt, active, step = drawing_problem(name)
    tweedie = functools.partial(draws, Case(), name, streamed, "tweedie")
    order = np.array([2, 0, 3, 1])
    plain = tweedie(keys, hidden, table, shift, xt, active, step)
    # other rows in other places; and one row is the same with nothing else to draw
    shuffled = [x[order] for x in (keys, hidden, shift, xt, active, step)]
    keys2, hidden2, shift2, xt2, active2, step2 = shuffled
    again = tweedie(keys2, hidden2, table, shift2, xt2, active2, step2)
    np.testing.assert_array_equal(again.xt, plain.xt[order])
    np.testing.assert_allclose(again.total, plain.total[order], rtol=1e-6)
    only = active & (np.arange(B) == 2)[:, None]
    alone = tweedie(keys, hidden, table, shift, xt, only, step)
    np.testing.assert_array_equal(alone.xt[2], plain.xt[2])
    np.testing.assert_array_equal(np.delete(alone.xt, 2, 0), np.delete(xt, 2, 0))


def test_nothing_is_drawn_from_blocks_that_are_not_active():
    keys, hidden, table, shift, xt, active, step = drawing_problem("uniform")
    active = np.arange(B * L).reshape(B, L) % 4 == 0  # 6: three blocks of 2
    plain, poisoned = (
        draws(Case(), "uniform", streamed, "tweedie", keys, h, table, shift, xt, active, step)
        for h in (hidden, jnp.where(active[..., None], hidden, jnp.nan))
    )
    jax.tree.map(np.testing.assert_array_equal, poisoned, plain)
    assert (plain.xt != xt).any()


@jit(static_argnums=(0, 1, 2))
def log_probs(case, name, form, number, hidden, table, shift, xt, active, step, states):
    score = form(case, hidden, table, shift, xt)
    return score.log_prob(weights_by_number(case, name, number, xt, step), active, states)


@pytest.mark.parametrize("name", GRAPHS)
def test_log_probabilities_are_the_dense_ones(name):
    _, hidden, table, shift, xt, active, step = drawing_problem(name)
    states = np.random.default_rng(9).integers(0, V - 1, (B, L))
    states = jnp.array(np.where(np.arange(L) % 3 == 0, xt, states))  # some stay
    arrays = hidden, table.first(PADDED), shift, xt, active, step, states
    for number in range(len(RULES)):
        got = log_probs(Case(placement=on_mesh()), name, streamed, number, *arrays)
        exact = log_probs(Case(), name, written_out, number, *arrays)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
        inactive = np.where(states == xt, 0, -np.inf)[~active]
        np.testing.assert_array_equal(np.asarray(got)[~active], inactive)
        finite = np.isfinite(np.asarray(got)[active])
        assert len(np.unique(np.asarray(got)[active][finite])) >= 2


@jit(static_argnums=(0, 1))
def shannon_entropies(case, form, hidden, table, shift, xt, active):
    return form(case, hidden, table, shift, xt).shannon_entropy(active)


@pytest.mark.parametrize("name", GRAPHS)
def test_shannon_entropies_are_the_dense_ones(name):
    _, hidden, table, shift, xt, active, _ = drawing_problem(name)
    exact = shannon_entropies(Case(), written_out, hidden, table, shift, xt, active)
    assert (np.asarray(exact)[active] > 0.1).all() and not np.asarray(exact)[~active].any()
    for case in (Case(), Case(tiling=DEFAULT), Case(placement=on_mesh())):
        got = shannon_entropies(case, streamed, hidden, table, shift, xt, active)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [streamed, written_out])
def test_where_rounding_leaves_nothing_to_leave_for_a_position_stays(form):
    """The first of 8 steps from sigma 20 at scores of 1: the cut is within rounding of them."""
    states, places = 5000, (1, 64)
    columns = padded(states)
    case = Case(states, DEFAULT)
    table = Unembedding(jnp.zeros((D, columns)), jnp.zeros(columns))
    xt = jnp.arange(64)[None] + 100

    @jit()
    def drawn(keys):
        score = form(case, jnp.zeros((*places, D)), table, jnp.zeros(places), xt)
        uniform = case.graph("uniform")
        weights = functools.partial(tweedie_weights, uniform, xt, delta_sigma=jnp.array([15.6]))
        return score.draw(keys, weights, jnp.ones(places, bool)).xt

    states = np.asarray(drawn(jax.random.split(jax.random.key(0), 1)))
    left = states != np.asarray(xt)
    assert not left.any() or len(np.unique(states[left])) > left.sum() // 2


FEW, ROWS, PLACES = 300, 8192, 2  # states, in three groups


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", GRAPHS)
def test_draws_follow_the_distribution_of_the_dense_scores(name, rule):
    rng = np.random.default_rng(6)
    hidden, kernel, bias = rng.normal(0, 0.3, (PLACES, D)), rng.normal(0, 1, (D, 384)), 0.1
    xt = jnp.array([FEW - 1, FEW - 1 if name == "absorb" else 140])
    table = Unembedding(jnp.array(kernel, jnp.float32), jnp.full(384, bias))
    shift = jnp.full(PLACES, np.log(FEW) if name == "absorb" else 0.0, jnp.float32)
    step = 0.15  # so that some stay

    def rows(x):
        return jnp.broadcast_to(x, (ROWS, *x.shape))

    one = [x[None] for x in (jnp.array(hidden, jnp.float32), shift, xt)]
    many = rows(one[0][0]), table, rows(shift), rows(xt)
    # large tiles, for speed: what is drawn is the same; on the mesh the groups are others, of 192
    placement = on_mesh() if name == "uniform" else ANYWHERE
    case = Case(FEW, Tiling(256, (4096,), 4096), placement)
    keys = jax.random.split(jax.random.key(7), ROWS)
    active = np.ones((ROWS, PLACES), bool)
    draw = draws(case, name, streamed, rule, keys, *many, active, jnp.full(ROWS, step))

    score = jnp.exp(written_out(case, one[0], table, one[1], one[2]).log_score)
    total = jnp.where(np.asarray(xt)[:, None] == np.arange(FEW), 0, score).sum(-1)
    step_weights = RULES[rule](case.graph(name), one[2], total, jnp.full(1, step))
    probs = np.float64(jump_probs(step_weights.weights(one[2], score)))[0]
    for place in range(PLACES):
        counts, expected = np.bincount(draw.xt[:, place], minlength=FEW), ROWS * probs[place]
        assert len(counts) == FEW and not counts[expected == 0].any()
        stays = probs[place, xt[place]]
        assert (stays == 0) if (rule, name) == ("denoise", "absorb") else 0.05 < stays < 0.95, stays
        rare = expected < 5  # too few for a chi-square: together they are enough, or too few too
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        keep = expected >= 5
        counts, expected = counts[keep], expected[keep]
        assert keep.sum() > 40
        assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > LEVEL
    # places of a row are independent: as often as by chance both leave, to 5 standard errors
    left = np.asarray(draw.xt) != np.asarray(xt)
    error = 5 * np.sqrt(1 / 16 / ROWS)
    assert abs(left.all(1).mean() - left.mean(0).prod()) < error


@jit(static_argnums=(0, 1, 2, 3))
def sharp_draws(case, name, form, token_filter, keys, hidden, table, shift, xt, active, step):
    score = form(case, hidden, table, shift, xt)
    step_weights = functools.partial(tweedie_weights, case.graph(name), xt, delta_sigma=step)
    return score.draw(keys, lambda total: step_weights(total=total), active, token_filter)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_likeliest_token_is_the_same_written_out(name):
    arrays = drawing_problem(name)
    case = Case(placement=on_mesh() if name == "uniform" else ANYWHERE)
    got = sharp_draws(case, name, streamed, TokenFilter(0.0), *arrays)
    wanted = sharp_draws(Case(), name, written_out, TokenFilter(0.0), *arrays)
    np.testing.assert_array_equal(got.xt, wanted.xt)
    xt, active = np.asarray(arrays[4]), np.asarray(arrays[5])
    log_score = np.array(written_out(Case(), *arrays[1:5]).log_score)
    np.put_along_axis(log_score, xt[..., None], -np.inf, -1)
    left = np.asarray(got.xt) != xt
    assert 4 < left.sum() <= active.sum() - (name == "uniform")
    np.testing.assert_array_equal(np.asarray(got.xt)[left], log_score.argmax(-1)[left])
    # whether a position is left does not depend on how sharply
    plain = draws(Case(), name, streamed, "tweedie", *arrays)
    np.testing.assert_array_equal(np.asarray(plain.xt) != xt, left)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "on_devices", "token_filter"),
    [("streamed", True, TokenFilter(0.7, 0.8)), ("written out", False, TokenFilter(0.6, 0.9))],
)
def test_sharper_draws_follow_the_nucleus_of_the_tempered_distribution(
    form, on_devices, token_filter
):
    rng = np.random.default_rng(6)
    hidden = jnp.array(rng.normal(0, 0.3, (1, 1, D)), jnp.float32)
    table = Unembedding(jnp.array(rng.normal(0, 1, (D, 384)), jnp.float32), jnp.full(384, 0.1))
    shift, xt, step = jnp.zeros((1, 1)), jnp.array([[140]]), 0.15
    case = Case(FEW, Tiling(256, (4096,), 512), on_mesh() if on_devices else ANYWHERE)
    many = (jnp.broadcast_to(x, (ROWS, *x.shape[1:])) for x in (hidden, shift, xt))
    hidden_of, shift_of, xt_of = many
    keys = jax.random.split(jax.random.key(8), ROWS)
    rest = (table, shift_of, xt_of, np.ones((ROWS, 1), bool), jnp.full(ROWS, step))
    form = streamed if form == "streamed" else written_out
    drawn = sharp_draws(case, "uniform", form, token_filter, keys, hidden_of, *rest)
    drawn = np.asarray(drawn.xt)[:, 0]

    score = jnp.exp(written_out(case, hidden, table, shift, xt).log_score)
    total = score.sum(-1) - score[..., 140]
    step_weights = tweedie_weights(case.graph("uniform"), xt, total, jnp.full(1, step))
    probs = np.float64(jump_probs(step_weights.weights(xt, score)))[0, 0]
    stays, probs[140] = probs[140], 0
    tempered = probs ** (1 / token_filter.temperature)
    tempered /= tempered.sum()
    largest = np.argsort(-tempered)
    count = 1 + np.searchsorted(np.cumsum(tempered[largest]), token_filter.top_p)
    tempered[largest[count:]] = 0
    expected = ROWS * (1 - stays) * tempered / tempered.sum()
    expected[140] = ROWS * stays
    counts = np.bincount(drawn, minlength=FEW)
    assert 20 < count < FEW and not counts[expected == 0].any()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert expected[-1] == 0 or expected[-1] >= 5
    keep = expected > 0
    assert chisquare(counts[keep], expected[keep]).pvalue > LEVEL


@jit(static_argnums=(0, 1, 2))
def tempered(case, form, token_filter, keys, hidden, table, shift, xt, step, states):
    """Tweedie draws from tempered ratios, and the log-probability of states."""
    score = form(case, hidden, table, shift, xt).tempered(token_filter)
    weights = functools.partial(tweedie_weights, case.graph("uniform"), xt, delta_sigma=step)
    active = jnp.ones(xt.shape, bool)
    return score.draw(keys, weights, active).xt, score.log_prob(weights, active, states)


def tempered_distribution(log_score, xt, token_filter, delta):
    """The probabilities of a tempered Tweedie step, from conditionals, and the size of the set."""
    states = len(log_score)
    logs = np.where(np.arange(states) == xt, 0, log_score) / token_filter.temperature
    conditional = np.exp(logs - logs.max())
    conditional /= conditional.sum()
    largest, count = np.argsort(-conditional), states
    if token_filter.top_p < 1:
        count = 1 + np.searchsorted(np.cumsum(conditional[largest]), token_filter.top_p)
    conditional[largest[count:]] = 0
    conditional /= conditional.sum()
    moved, growth = -np.expm1(-delta) / states, np.expm1(delta)
    weights = growth / states * (conditional - moved)
    weights[xt] = ((1 + growth) * conditional[xt] - growth / states) * (np.exp(-delta) + moved)
    weights = np.maximum(weights, 0)
    return weights / weights.sum(), count


# 0.2 makes of these ratios some that no float32 holds
@pytest.mark.parametrize(
    ("form", "token_filter"),
    [
        ("streamed", (0.8, 1.0)),
        ("streamed", (0.2, 1.0)),
        ("streamed", (0.9, 0.7)),
        ("written out", (0.2, 1.0)),
        ("written out", (0.9, 0.7)),
    ],
)
def test_a_tempered_step_is_that_of_the_tempered_conditional(form, token_filter):
    form = {"streamed": streamed, "written out": written_out}[form]
    token_filter, delta, repeats = TokenFilter(*token_filter), 0.15, 8
    rng = np.random.default_rng(6)
    hidden = jnp.array(rng.normal(0, 0.3, (1, 1, D)), jnp.float32)
    table = Unembedding(jnp.array(rng.normal(0, 1, (D, 384)), jnp.float32), jnp.full(384, 0.1))
    sharded = form is streamed and token_filter.temperature != 0.8
    case = Case(FEW, Tiling(256, (4096,), 512), on_mesh() if sharded else ANYWHERE)
    zero = jnp.zeros((1, 1), jnp.int32)
    logits = np.float64(written_out(case, hidden, table, zero, zero).log_score)[0, 0]
    # x_t, whose own logit must not count, is at first as likely as any, then next to impossible
    xt, shift = np.argsort(logits)[[1, 0]], np.float32(logits.max() - np.array([0, 25]))

    def rows(x):
        return jnp.broadcast_to(x, (repeats * FEW, 2, *x.shape[2:]))

    states = rows(jnp.tile(jnp.arange(FEW), repeats)[:, None])
    keys, step = jax.random.split(jax.random.key(8), len(states)), jnp.full(len(states), delta)
    many = rows(hidden), table, rows(shift), rows(jnp.asarray(xt))
    drawn, log_prob = tempered(case, form, token_filter, keys, *many, step, states)
    for place in range(2):
        distribution, count = tempered_distribution(
            logits - shift[place], xt[place], token_filter, delta
        )
        found = np.exp(np.float64(log_prob[:FEW, place]))
        np.testing.assert_allclose(found, distribution, rtol=2e-4, atol=1e-7)
        assert 0.05 < distribution[xt[0]] < 0.999 if place == 0 else distribution[xt[1]] == 0
        assert count == FEW if token_filter.top_p == 1 else 20 < count < FEW // 2
        counts, expected = np.bincount(drawn[:, place], minlength=FEW), len(states) * distribution
        assert not counts[expected == 0].any()
        rare = expected < 5
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        keep = expected >= 1
        counts, expected = counts[keep], expected[keep]
        assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > LEVEL


def test_equal_positions_draw_apart():
    _, table, *_ = problem("absorb", padded=ON_MESH)
    table = Unembedding(table.kernel, jnp.where(jnp.arange(ON_MESH) < V, 0.0, 20.0))
    hidden, shift = jnp.zeros((B, L, D)), jnp.full((B, L), np.log(V), jnp.float32)
    xt, active = jnp.full((B, L), V - 1), np.ones((B, L), bool)
    keys = jax.random.split(jax.random.key(8), B)
    step = jnp.ones(B)
    draw = draws(
        Case(), "absorb", streamed, "denoise", keys, hidden, table, shift, xt, active, step
    )
    # 24 draws of about 600 are nearly all different, also within a group and in the choice of it
    assert len(np.unique(draw.xt)) > 18
    assert len(np.unique(np.asarray(draw.xt) % COLUMN_GROUP)) > 12
    assert set(np.asarray(draw.xt).ravel() // COLUMN_GROUP) == set(range(5))


MANY, MANY_PADDED = 50257, 50304
LARGE = Case(MANY, DEFAULT)
NUM_GROUPS = MANY_PADDED // COLUMN_GROUP


@jit()
def at_uniforms(of_groups, of_states, hidden, table, shift, xt, cut):
    """The draws where all positions get these uniforms and leaving is certain; log-masses."""
    uniforms = {NUM_GROUPS: of_groups, COLUMN_GROUP: of_states}

    def uniform(key, shape):
        return uniforms[shape[0]] if shape[0] in uniforms else jnp.full(shape, 1e-12)

    everywhere = jnp.ones(xt.shape, bool)
    step_weights = StepWeights(scale=jnp.ones(xt.shape), cut=cut, stay=jnp.zeros(xt.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(categorical, "uniform", uniform)
        keys = jax.random.split(jax.random.key(0), len(xt))
        score = streamed(LARGE, hidden, table, shift, xt)
        draw = score.draw(keys, lambda total: step_weights, everywhere)
        return draw, head_draws.masses(score.head, table, score.inputs, everywhere, cut)


def test_tokens_of_a_large_vocabulary_have_the_probabilities_of_the_dense_scores():
    """Without draws: the masses of groups, and what is chosen where uniforms are given."""
    rng = np.random.default_rng(9)
    hidden = jnp.array(rng.normal(0, 0.7, (2, 3, D)), jnp.float32)
    kernel = jnp.array(rng.normal(0, 1, (D, MANY_PADDED)), jnp.float32)
    table = Unembedding(kernel, jnp.zeros(MANY_PADDED).at[MANY:].set(30))
    shift, xt = jnp.ones((2, 3)), jnp.array(rng.integers(0, MANY, (2, 3)), jnp.int32)
    xt = xt.at[1, 2].set(MANY - 1)
    score = np.zeros((2, 3, MANY_PADDED))
    score[..., :MANY] = np.exp(written_out(LARGE, hidden, table, shift, xt).log_score)
    np.put_along_axis(score, np.asarray(xt)[..., None], 0, axis=-1)
    of_groups, of_states = np.float32(rng.random(NUM_GROUPS)), np.float32(rng.random(COLUMN_GROUP))
    gumbel = -np.log(-np.log1p(-np.float64(of_states)))
    last = MANY // COLUMN_GROUP  # with padding
    for cut, group in [(0.0, 0), (0.3, last), (0.3, 200)]:
        weights = np.maximum(score - cut, 0).reshape(2, 3, NUM_GROUPS, COLUMN_GROUP)
        forced = of_groups.copy()
        forced[group] = 1e-18
        draw, masses = at_uniforms(
            forced, of_states, hidden, table, shift, xt, jnp.full((2, 3), cut)
        )
        np.testing.assert_allclose(masses, weights.sum(-1), rtol=1e-5)
        with np.errstate(divide="ignore"):
            state = np.argmax(np.log(weights[:, :, group]) + gumbel, axis=-1)
        np.testing.assert_array_equal(draw.xt, group * COLUMN_GROUP + state)
        np.testing.assert_allclose(draw.total, score.sum(-1), rtol=1e-5)


@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-12])
def test_a_rare_token_of_a_heavy_group_keeps_its_rate(share):
    """A group of two tokens: the rare one wins where its uniform is low enough, at its share."""
    group, heavy, rare = 211, 5, 77
    bias = np.full(MANY_PADDED, -200.0, np.float32)
    bias[group * COLUMN_GROUP + heavy], bias[group * COLUMN_GROUP + rare] = 0, np.log(share)
    table = Unembedding(jnp.zeros((D, MANY_PADDED)), jnp.array(bias))
    rows = jnp.zeros((2, 3, D)), table, jnp.zeros((2, 3)), jnp.zeros((2, 3), jnp.int32)
    half = np.full(NUM_GROUPS, 0.5, np.float32)
    # with 1/2 for the heavy one, ln 2 * share is where the rare one's exponential wins the race
    edge = -np.expm1(-share * np.log(2))
    for factor, winner in [(0.999, rare), (1.001, heavy)]:
        u = np.full(COLUMN_GROUP, 0.5, np.float32)
        u[rare] = factor * edge
        draw, _ = at_uniforms(half, u, *rows, jnp.zeros((2, 3)))
        assert (draw.xt == group * COLUMN_GROUP + winner).all()
