"""The order statistic by counting, against a sort: equal to the bit on every input."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import optax_clip
from optax_clip._clipping import known_fraction
from optax_clip._threshold import counts, order_statistic, rows

from ..helpers import assert_close, assert_same_bits
from . import reference

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.optimised]

F16, F32, F64, BF16 = np.float16, np.float32, np.float64, ml_dtypes.bfloat16

# Each layout compiles once; hypothesis varies the bits in it and the traced fraction.
LAYOUTS = {
    "one vector": [((13,), F32)],
    "many leaves": [((3, 4), F32), ((), F32), ((0, 2), F32), ((5,), F32), ((1,), F32)],
    "bfloat16": [((2, 5), BF16), ((3,), BF16)],
    "float16": [((9,), F16), ((2, 2), F16)],
    "mixed": [((2, 3), F32), ((7,), BF16), ((4,), F16), ((0,), BF16)],
}
WIDE_LAYOUTS = {
    "float64": [((11,), F64), ((), F64)],
    "all four": [((3,), F64), ((4,), F32), ((2, 2), BF16), ((3,), F16)],
}


def special_patterns(dtype):
    """Zero, extreme denormals and normals, one, infinity and a NaN, as integers."""
    info = ml_dtypes.finfo(dtype)
    tiny, unit = info.smallest_subnormal, info.eps
    values = [0, tiny, 2 * tiny, info.smallest_normal - tiny, info.smallest_normal]
    values += [1 - unit, 1, 1 + unit, 3, info.max, np.inf, np.nan]
    return [int(np.asarray(v, dtype).view(f"u{info.bits // 8}")) for v in values]


def arrays(shape, dtype):
    """Arrays of any bits at all, with many ties, both signs and the special values."""
    width = np.dtype(dtype).itemsize
    sign = 1 << (8 * width - 1)
    magnitudes = st.sampled_from(special_patterns(dtype)) | st.integers(0, sign - 1)
    pattern = st.tuples(st.sampled_from([0, sign]), magnitudes).map(sum)
    size = math.prod(shape)
    return st.lists(pattern, min_size=size, max_size=size).map(
        lambda p: np.array(p, f"u{width}").view(dtype).reshape(shape)
    )


fractions = st.floats(0, 1, exclude_max=True, width=32) | st.sampled_from(
    [np.float32(f) for f in (0, 0.05, 0.1, 0.29, 0.3, 0.5, 0.7, 0.95, 1 - 2**-24)]
)


@functools.cache
def compiled(scope, x64=False):
    """A jitted clip whose fraction is an argument; one program per layout."""
    del x64  # for the cache: it changes what is traced

    @jax.jit
    def clip(fraction, leaves):
        tx = optax_clip.clip_top_k_coordinates(fraction, scope=scope)
        return tx.update(leaves, tx.init(leaves))

    return clip


def expected_clip(leaves, fraction, eps):
    """Clipped leaves, threshold and clipped fraction of the group, by sorting."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaNs; tau beyond a half float
        wide = [np.asarray(x).astype(F64) for x in leaves]
        tau = reference.threshold(wide, fraction, eps)
        clipped = [
            np.where(np.abs(w) > tau, np.copysign(np.asarray(tau, x.dtype), x), x)
            for x, w in zip(leaves, wide, strict=True)
        ]
    # NaN counts as infinite: not clipped, but above the threshold.
    ranked = [np.where(np.isnan(w), np.inf, np.abs(w)) for w in wide]
    above = sum(int(np.sum(w > tau)) for w in ranked)
    dtype = F64 if any(x.dtype == F64 for x in leaves) else F32
    share = np.asarray(above / sum(x.size for x in leaves), dtype)
    return clipped, np.asarray(tau, dtype), share


def check(leaves, fraction, scope, updates, state):
    """Compare updates and state with the sorted reference, for a float32 fraction."""
    eps = 2.0**-24
    if scope == "global":
        clipped, tau, share = expected_clip(leaves, fraction, eps)
        assert_same_bits(list(updates), clipped)
        assert_same_bits(state.threshold, tau)
        assert_close(state.clipped_fraction, share, F32, ulps=1)
        return
    assert state.threshold.shape == state.clipped_fraction.shape == (len(leaves),)
    for i, leaf in enumerate(leaves):
        if leaf.size:
            (clipped,), tau, share = expected_clip([leaf], fraction, eps)
            assert_same_bits(updates[i], clipped)
            assert float(state.threshold[i]) == float(tau)
            assert_close(state.clipped_fraction[i], share, F32, ulps=1)
        else:
            assert state.clipped_fraction[i] == 0


@pytest.mark.usefixtures("makes_nan")
@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data(), fraction=fractions)
def test_clipping_equals_sorting_to_the_bit(layout, scope, data, fraction):
    leaves = [data.draw(arrays(*spec)) for spec in LAYOUTS[layout]]
    updates, state = compiled(scope)(np.float32(fraction), leaves)
    check(leaves, fraction, scope, updates, state)


@pytest.mark.usefixtures("makes_nan")
@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("layout", WIDE_LAYOUTS)
@given(data=st.data(), fraction=fractions)
def test_clipping_in_double_precision_equals_sorting_to_the_bit(
    layout, scope, data, fraction
):
    leaves = [data.draw(arrays(*spec)) for spec in WIDE_LAYOUTS[layout]]
    with jax.enable_x64(True):
        updates, state = compiled(scope, x64=True)(np.float32(fraction), leaves)
    check(leaves, fraction, scope, updates, state)


@pytest.mark.usefixtures("makes_nan")
@given(data=st.data())
def test_fraction_zero_is_the_identity_to_the_bit(data):
    leaves = [data.draw(arrays(*spec)) for spec in LAYOUTS["mixed"]]
    updates, state = compiled("global")(np.float32(0), leaves)
    assert_same_bits(updates, leaves)
    assert state.clipped_fraction == 0


@pytest.mark.usefixtures("makes_nan")
@given(data=st.data(), fraction=fractions)
def test_clipping_twice_changes_nothing(data, fraction):
    leaves = [data.draw(arrays(*spec)) for spec in LAYOUTS["many leaves"]]
    once, first = compiled("global")(np.float32(fraction), leaves)
    twice, second = compiled("global")(np.float32(fraction), once)
    assert_same_bits(twice, once)
    assert_same_bits(second.threshold, first.threshold)


@pytest.mark.usefixtures("makes_nan")
@given(data=st.data(), fraction=fractions, seed=st.integers(0, 2**32 - 1))
def test_global_clipping_sees_neither_order_nor_leaves(data, fraction, seed):
    shapes = LAYOUTS["many leaves"]
    leaves = [data.draw(arrays(*spec)) for spec in shapes]
    flat = np.concatenate([x.ravel() for x in leaves])
    order = np.random.default_rng(seed).permutation(flat.size)
    expected, _ = compiled("global")(np.float32(fraction), [flat])
    cuts = np.cumsum([math.prod(shape) for shape, _ in shapes])[:-1]
    shuffled = [
        part.reshape(shape)
        for part, (shape, _) in zip(np.split(flat[order], cuts), shapes, strict=True)
    ]
    actual, _ = compiled("global")(np.float32(fraction), shuffled)
    flat_actual = np.concatenate([np.ravel(x) for x in actual])
    assert_same_bits(flat_actual, np.asarray(expected[0])[order])


@given(data=st.data(), fraction=fractions, shift=st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_threshold(data, fraction, shift):
    numbers = st.floats(2**-60, 2**60, width=32) | st.just(0.0)
    leaf = np.array(data.draw(st.lists(numbers, min_size=13, max_size=13)), F32)
    scale = F32(2.0**shift)
    (one,), _ = compiled("global")(np.float32(fraction), [leaf])
    (many,), _ = compiled("global")(np.float32(fraction), [leaf * scale])
    assert_same_bits(many, np.asarray(one) * scale)


@pytest.mark.parametrize(("size", "fraction"), [(1, 0.99), (7, 0.5), (100, 0.29)])
def test_exactly_floor_of_fn_distinct_coordinates_change(size, fraction, rng):
    g = {"a": rng.permutation(np.arange(1, size + 1)).astype(F32)}
    tx = optax_clip.clip_top_k_coordinates(fraction)
    updates, state = jax.jit(tx.update)(g, tx.init(g))
    m = reference.rank(fraction, size)
    assert np.sum(np.asarray(updates["a"]) != g["a"]) == m
    assert state.threshold == size - m


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9375])
@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_a_traced_fraction_equals_the_concrete_one(scope, fraction, rng):
    leaves = [
        rng.standard_t(2, shape).astype(dtype) for shape, dtype in LAYOUTS["mixed"]
    ]
    tx = optax_clip.clip_top_k_coordinates(fraction, scope=scope)
    concrete, state = jax.jit(tx.update)(leaves, tx.init(leaves))
    traced, other = compiled(scope)(np.float32(fraction), leaves)
    assert_same_bits(concrete, traced)
    assert_same_bits(state.threshold, other.threshold)
    assert_close(state.clipped_fraction, other.clipped_fraction, ulps=1)


@pytest.mark.parametrize("fraction", [1.0, 1.5, np.inf])
def test_a_traced_fraction_of_one_or_more_keeps_the_smallest_magnitude(fraction, rng):
    g = rng.standard_normal(13).astype(F32)
    (update,), state = compiled("global")(np.float32(fraction), [g])
    assert_same_bits(update, np.copysign(np.abs(g).min(), g))
    assert state.threshold == np.abs(g).min()


def test_a_traced_negative_fraction_is_the_identity(rng):
    g = rng.standard_normal(13).astype(F32)
    (update,), _ = compiled("global")(np.float32(-0.5), [g])
    assert_same_bits(update, g)


N_LARGE = 2**20 + 3
DISTRIBUTIONS = {
    "heavy-tailed": lambda rng: rng.standard_cauchy(N_LARGE),
    "over all exponents": lambda rng: np.exp(rng.normal(0, 40, N_LARGE)),
    "constant": lambda _: np.full(N_LARGE, -0.3),
    "two-valued": lambda rng: rng.choice([-1.0, 2.0], N_LARGE),
    "all equal but one": lambda _: np.append(np.ones(N_LARGE - 1), 1 + 2**-7),
    "all equal but a smaller one": lambda _: np.append(np.ones(N_LARGE - 1), 0.5),
    "zero but one": lambda _: np.append(np.zeros(N_LARGE - 1), 1.0),
    "NaN beyond the fraction": lambda rng: rng.choice([1.0, -3.0, np.nan], N_LARGE),
    "neighbours in the last bit": lambda rng: 1 + 2**-7 * rng.integers(0, 4, N_LARGE),
}


@pytest.mark.usefixtures("makes_nan")
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_million_coordinates_clip_as_a_sort_says(distribution, dtype, rng):
    with np.errstate(over="ignore"):
        leaves = [DISTRIBUTIONS[distribution](rng).astype(dtype)]
    for fraction in np.float32([1 / N_LARGE, 0.05, 0.95]):
        updates, state = compiled("global")(fraction, leaves)
        check(leaves, fraction, "global", updates, state)


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_many_leaves_clip_as_one(scope, rng):
    shapes = [(64, 64)] * 5 + [(64,)] * 5 + [(300, 256)] * 2 + [(1,), ()]
    leaves = [rng.standard_cauchy(shape).astype(F32) for shape in shapes]
    updates, state = compiled(scope)(np.float32(0.05), leaves)
    check(leaves, np.float32(0.05), scope, updates, state)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_more_leaves_than_share_a_loop_or_an_array_clip_as_a_sort_says(scope, rng):
    large, small = rows.IN_TURN + 3, 2 * rows.CONCATENATED + 3
    sizes = [rows.SMALL + rows.ROW + 7] * large + [200] * small
    leaves = [rng.standard_cauchy(size).astype(F32) for size in sizes]
    for leaf in leaves[::3]:  # large keys in few rows, found some passes after others
        leaf.sort()
    updates, state = compiled(scope)(np.float32(0.05), leaves)
    check(leaves, np.float32(0.05), scope, updates, state)


def test_small_leaves_are_concatenated_in_steps(rng):
    """One concatenation of a thousand operands would take minutes to compile."""
    most = rows.CONCATENATED
    leaves = [rng.normal(size=200).astype(F32) for _ in range(2 * most + 3)]
    operands = [
        len(e.invars)
        for e in equations_of_the_search(leaves, "global")
        if e.primitive.name == "concatenate"
    ]
    assert max(operands) <= most
    clip = optax_clip.clip_top_k_coordinates(0.1)
    clipped, _ = jax.jit(clip.update)(leaves, clip.init(leaves))
    tau = np.sort(np.abs(np.concatenate(leaves)))[-1 - int(0.1 * 200 * len(leaves))]
    assert_same_bits(clipped, [np.clip(leaf, -tau, tau) for leaf in leaves])


def equations_of_the_search(leaves, scope, fraction=0.1):
    """What one device runs: the primitive of the search shows nothing of it."""
    groups = range(len(leaves)) if scope == "leaf" else [0] * len(leaves)
    problem = order_statistic._Problem(tuple(groups), fraction, None)
    search = functools.partial(order_statistic._find, problem)
    return list(primitives(jax.make_jaxpr(search)(*leaves, 0.0).jaxpr))


def test_a_vmapped_clip_clips_each_row_by_itself(rng):
    batch = rng.standard_t(2, (5, 40)).astype(F32)
    tx = optax_clip.clip_top_k_coordinates(0.25)
    together = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))[0]))(batch)
    apart = [expected_clip([row], 0.25, 0)[0][0] for row in batch]
    assert_same_bits(together, np.stack(apart))


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_complex_leaves_clip_the_modulus_and_keep_the_phase(scope, rng):
    z = rng.standard_t(2, (30, 2)).astype(F32).view(np.complex64)[:, 0]
    g = {"real": rng.standard_t(2, 11).astype(F32), "z": z}
    tx = optax_clip.clip_top_k_coordinates(0.25, scope=scope)
    updates, state = jax.jit(tx.update)(g, tx.init(g))
    expected = reference.clip({k: v.astype(complex) for k, v in g.items()}, 0.25, scope)
    assert updates["z"].dtype == np.complex64
    assert_close(np.real(updates["z"]), expected["z"].real, F32)
    assert_close(np.imag(updates["z"]), expected["z"].imag, F32)
    assert_close(updates["real"], expected["real"].real, F32)
    assert_close(np.abs(updates["z"]).max(), np.ravel(state.threshold)[-1])


def primitives(jaxpr):
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_the_threshold_needs_no_sort_and_no_flat_copy(scope):
    shapes = [((2048, 2048), F32), ((2**22,), F32), ((2048, 2048), BF16)]
    leaves = [jax.ShapeDtypeStruct(*spec) for spec in shapes]
    used = equations_of_the_search(leaves, scope)
    names = {equation.primitive.name for equation in used}
    assert names.isdisjoint({"sort", "top_k", "approx_top_k"})
    joins = [e.outvars[0].aval.size for e in used if e.primitive.name == "concatenate"]
    assert max(joins) <= sum(leaf.size for leaf in leaves) / 64


@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("shape", [(2**31 + 7,), (2**17, 2**17)])
@pytest.mark.parametrize("fraction", [0.05, None], ids=["known", "traced"])
def test_leaves_past_two_to_the_31_can_be_lowered(fraction, scope, shape):
    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2
    traced = jax.ShapeDtypeStruct((), jnp.float32)

    @jax.jit
    def clip(f, g):
        given = f if fraction is None else fraction
        tx = optax_clip.clip_top_k_coordinates(given, scope=scope)
        return tx.update(g, tx.init(g))

    updates, _ = clip.lower(traced, leaves).out_info
    assert updates[0].shape == shape


# The rank, at sizes that no test can allocate


SIZES = [1, 10, 100, 1000, 2**20 + 3, 60_506_624, 2**31 - 1, 2**31, 2**33 + 5]
DECIMALS = ["0.01", "0.05", "0.1", "0.29", "0.3", "0.57", "0.58", "0.7", "0.999"]
DYADIC = [0.0, 0.25, 0.5, 0.625, 1 - 2**-10, 2**-10]


def counting_rank(fraction, size):
    """The rank that the package computes, as a Python integer."""
    return int(counts.rank(fraction, size))


def traced_rank(fraction, size):
    """The same for a fraction whose value is not known when the program is built."""
    return int(jax.vmap(lambda f: counts.rank(f, size))(jnp.asarray([fraction]))[0])


@pytest.mark.parametrize("fraction", DECIMALS)
def test_the_rank_of_a_decimal_fraction_is_what_a_reader_computes(fraction):
    expected = {n: math.floor(Fraction(fraction) * n) for n in SIZES}
    assert {n: reference.rank(float(fraction), n) for n in SIZES} == expected
    assert {n: counting_rank(float(fraction), n) for n in SIZES} == expected


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32, "traced"], ids=str)
@pytest.mark.parametrize("fraction", DYADIC)
def test_the_rank_of_a_dyadic_fraction_is_exact_for_every_kind_of_number(
    fraction, kind
):
    sizes = [n + i for n in SIZES[2:] for i in range(4)]
    expected = {n: math.floor(Fraction(fraction) * n) for n in sizes}
    if kind == "traced":
        found = {n: traced_rank(fraction, n) for n in sizes}
    else:
        found = {n: counting_rank(kind(fraction), n) for n in sizes}
    assert found == expected


@pytest.mark.parametrize("fraction", DECIMALS)
def test_a_traced_decimal_means_what_a_concrete_one_does(fraction):
    sizes = [*range(1, 30), *range(95, 105), 1000, 10_000]
    expected = {n: math.floor(Fraction(fraction) * n) for n in sizes}
    single = jnp.float32(float(fraction))
    assert {n: traced_rank(single, n) for n in sizes} == expected
    assert {n: counting_rank(single, n) for n in sizes} == expected


@pytest.mark.parametrize("fraction", DECIMALS)
def test_a_traced_double_is_as_good_as_a_concrete_one(fraction, x64):
    expected = {n: math.floor(Fraction(fraction) * n) for n in SIZES}
    double = jnp.float64(float(fraction))
    assert {n: traced_rank(double, n) for n in SIZES} == expected
    assert {n: counting_rank(double, n) for n in SIZES} == expected


@settings(max_examples=50)
@given(fraction=fractions, size=st.integers(1, 2**34))
def test_the_rank_of_a_traced_fraction_is_exact_up_to_its_own_rounding(fraction, size):
    product = Fraction(float(fraction)) * size
    m = traced_rank(fraction, size)
    assert min(math.floor(product), size - 1) <= m
    assert m <= min(math.floor(product + min(product / 2**24, 1)), size - 1)
    assert m == counting_rank(np.float32(fraction), size)


@given(fraction=st.floats(0, 1, exclude_max=True), size=st.integers(1, 2**34))
def test_the_rank_of_a_concrete_fraction_is_exact(fraction, size):
    assert counting_rank(fraction, size) == reference.rank(fraction, size)


@given(fraction=st.floats(0, 1, exclude_max=True), size=st.integers(1, 2**34))
@example(fraction=1 / 3, size=81)
def test_the_rank_among_a_number_that_is_found_later_is_exact(fraction, size):
    """That of the non-zero coordinates is known only when they have been counted.

    The fraction may be half a unit of its last place too small.
    """
    with counts.wide():
        found = counts.rank(fraction, jnp.asarray(size, jnp.int64))
    meant = Fraction(fraction) + Fraction(math.ulp(fraction)) / 2
    assert int(found) == min(math.floor(meant * size), size - 1)


@pytest.mark.parametrize("fraction", DECIMALS)
def test_the_rank_of_a_decimal_among_a_number_found_later(fraction):
    expected = {n: math.floor(Fraction(fraction) * n) for n in SIZES}
    with counts.wide():
        sizes = jnp.asarray(SIZES, jnp.int64)
        found = counts.rank(float(fraction), sizes).tolist()
    assert dict(zip(SIZES, found, strict=True)) == expected


def test_a_double_array_is_as_exact_a_fraction_as_a_number(x64):
    """In single precision 0.9 of ten million would be one less."""
    fraction, size = jnp.float64(0.9), 10_749_330
    known = known_fraction(fraction)
    assert known.dtype == np.float64
    assert counting_rank(known, size) == math.floor(Fraction("0.9") * size)
    assert 0 < known_fraction(jnp.float64(2)) < 1
