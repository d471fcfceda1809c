import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from predictor.errors import BadTableError, UnusableMeasurementsError
from predictor.features import work
from predictor.models.block_regressor import LEAST_BLOCKS, BlockRegressor
from search_core.space.blocks import BlockKind, BlockSpec

PRICES_MS = np.array([0.02, 0.01, 2e-8, 9e-8, 1e-8, 4e-9])
BLOCKS = [
    BlockSpec(BlockKind.MBCONV, kernel, expansion, 1, channels, channels, 512 // channels)
    for kernel in (3, 5, 7)
    for expansion in (1, 3, 6)
    for channels in (16, 24, 32, 64, 96, 128)
]
SKIP = BlockSpec.parse("skip_k1_e1_s1_i16_o16_r8")


def latencies_ms(blocks, slowness=1.0):
    """A roofline, and what no roofline knows: kernels of 5 are badly implemented."""
    surprise = np.array([1.3 if block.kernel == 5 else 1.0 for block in blocks])
    return slowness * surprise * (work(blocks) @ PRICES_MS)


@pytest.fixture
def halves():
    order = np.random.default_rng(0).permutation(len(BLOCKS))
    return [BLOCKS[i] for i in order[:36]], [BLOCKS[i] for i in order[36:]]


def fitted(blocks, latency_ms, **parts):
    return BlockRegressor(**parts).fit(blocks, ["phone"] * len(blocks), latency_ms)


def worst(found, expected):
    return np.abs(found / expected - 1.0).max()


def test_left_out_blocks_are_predicted(halves):
    known, left_out = halves
    found = fitted(known, latencies_ms(known)).predict(left_out, "phone")
    assert worst(found.ms, latencies_ms(left_out)) < 0.05
    assert found.covered.all()


def test_what_is_known_elsewhere_helps_on_a_device_with_few_measurements(halves):
    known, left_out = halves
    few = known[:LEAST_BLOCKS]
    alone = fitted(few, latencies_ms(few, 3.0)).predict(left_out, "phone")
    blocks, devices = few + BLOCKS, ["phone"] * len(few) + ["other"] * len(BLOCKS)
    latency_ms = np.concatenate((latencies_ms(few, 3.0), latencies_ms(BLOCKS)))
    together = BlockRegressor().fit(blocks, devices, latency_ms).predict(left_out, "phone")
    expected = latencies_ms(left_out, 3.0)
    assert worst(together.ms, expected) < 0.1 < worst(alone.ms, expected)


def test_a_device_twice_as_slow_is_predicted_to_be_so(halves):
    known, left_out = halves
    ones, twice = (
        fitted(known, latencies_ms(known, slowness)).predict(left_out, "phone")
        for slowness in (1.0, 2.0)
    )
    assert twice.ms == pytest.approx(2.0 * ones.ms, rel=1e-3)
    assert twice.sigma_ms == pytest.approx(2.0 * ones.sigma_ms, rel=1e-2)


def test_what_is_outside_the_measurements_says_so(halves):
    known, _ = halves
    model = fitted(known, latencies_ms(known))
    inside = BlockSpec.parse("mbconv_k3_e4_s1_i48_o48_r16")
    outside = [
        BlockSpec.parse("mbconv_k3_e3_s1_i24_o24_r224"),
        BlockSpec.parse("mbconv_k3_e3_s2_i24_o32_r16"),  # no stride was measured
        BlockSpec.parse("conv_k3_e1_s1_i24_o24_r16"),
    ]
    found = model.predict([inside, *outside], "phone")
    assert found.covered.tolist() == [True, False, False, False]
    relative = found.sigma_ms / found.ms
    assert (relative[1:] > 2.0 * relative[0]).all()


def test_a_measurement_that_says_it_is_noisy_counts_for_less(halves):
    known, _ = halves
    latency_ms = latencies_ms(known)
    wrong = latency_ms.copy()
    wrong[0] *= 3.0
    sigma_ms = 0.001 * wrong
    sigma_ms[0] = 2.0 * wrong[0]
    devices = ["phone"] * len(known)
    warned = BlockRegressor().fit(known, devices, wrong, sigma_ms).predict(known[:1], "phone")
    assert worst(warned.ms, latency_ms[:1]) < 0.1


def test_blocks_that_compute_nothing_take_nothing(halves):
    known, _ = halves
    found = fitted(known, latencies_ms(known)).predict([SKIP], "phone")
    assert (found.ms[0], found.sigma_ms[0], bool(found.covered[0])) == (0.0, 0.0, True)


def test_the_same_measurements_give_the_same_model(halves):
    known, left_out = halves
    first, second = (
        fitted(known, latencies_ms(known)).predict(left_out, "phone") for _ in range(2)
    )
    assert (first.ms == second.ms).all()


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (3, np.nan, "row 3, column latency_ms"),
        (4, 0.0, "row 4, column latency_ms"),
        (5, -1.0, "row 5, column latency_ms"),
        (slice(None), 1.0, "nothing can be learnt"),
    ],
)
def test_bad_latencies_are_refused(row, value, message):
    latency_ms = latencies_ms(BLOCKS)
    latency_ms[row] = value
    with pytest.raises(BadTableError, match=message):
        fitted(BLOCKS, latency_ms)


def test_too_few_blocks_are_refused():
    few = BLOCKS[: LEAST_BLOCKS - 1]
    with pytest.raises(BadTableError, match="7 samples, and at least 8"):
        fitted(few, latencies_ms(few))


def test_a_negative_sigma_is_refused():
    latency_ms = latencies_ms(BLOCKS)
    sigma_ms = 0.01 * latency_ms
    sigma_ms[7] = -1.0
    with pytest.raises(BadTableError, match="row 7, column sigma_ms"):
        BlockRegressor().fit(BLOCKS, ["phone"] * len(BLOCKS), latency_ms, sigma_ms)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(BadTableError, match="differ in number: 54, 53, 54 and 54"):
        BlockRegressor().fit(BLOCKS, ["phone"] * 53, latencies_ms(BLOCKS))


def test_a_latency_of_a_block_that_computes_nothing_is_refused():
    with pytest.raises(BadTableError, match=r"row 54: .*skip_k1.* computes nothing"):
        fitted([*BLOCKS, SKIP], np.append(latencies_ms(BLOCKS), 0.1))


def test_a_device_without_measurements_is_refused(halves):
    known, left_out = halves
    with pytest.raises(UnusableMeasurementsError, match="no measurements of tablet"):
        fitted(known, latencies_ms(known)).predict(left_out, "tablet")


def test_predicting_before_fitting_is_refused():
    with pytest.raises(NotFittedError):
        BlockRegressor().predict(BLOCKS, "phone")
