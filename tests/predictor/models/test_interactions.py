"""The Gaussian process on the residual of whole networks."""

import numpy as np
import pytest

from predictor.errors import UnusableMeasurementsError
from predictor.models.calibration import NetworkCalibration
from predictor.models.interactions import InteractionProcess, Slots, Variances

N_SLOTS, WIDTH = 6, 4


@pytest.fixture
def slots():
    rng = np.random.default_rng(0)
    ms = rng.uniform(0.1, 1.0, (N_SLOTS, WIDTH))
    groups = np.zeros((N_SLOTS, WIDTH, WIDTH))
    for choice in range(WIDTH):  # the same candidate is alike in every slot
        groups[:, choice, choice] = ms[:, choice]
    return Slots(ms, groups, np.array([(i, i + 1) for i in range(N_SLOTS - 1)]))


def drawn(n, seed=1):
    return np.random.default_rng(seed).integers(0, WIDTH, (n, N_SLOTS))


def sums(slots, choices):
    return slots.ms[np.arange(N_SLOTS), choices].sum(axis=1)


def covariance(slots, v, left, right, unit):
    """The kernel, written out from its definition."""
    ms, groups = slots.ms / unit, slots.groups_ms / unit
    k = np.empty((len(left), len(right)))
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            alike = sum(
                groups[slot, a[slot]] @ groups[other, b[other]]
                for slot in range(N_SLOTS)
                for other in range(N_SLOTS)
            )
            place = sum(ms[s, a[s]] ** 2 for s in range(N_SLOTS) if a[s] == b[s])
            adjacent = sum(
                (ms[s, a[s]] + ms[s + 1, a[s + 1]]) ** 2
                for s in range(N_SLOTS - 1)
                if a[s] == b[s] and a[s + 1] == b[s + 1]
            )
            product = np.prod([1.0 if a[s] == b[s] else v.similarity for s in range(N_SLOTS)])
            k[i, j] = (
                v.alike * alike + v.place * place + v.adjacent * adjacent + v.product * product
            )
    return k


def test_the_numbers_are_the_posterior_mean_of_the_process(slots):
    choices, new = drawn(12), drawn(5, seed=2)
    predicted = sums(slots, choices)
    residual = 0.05 * predicted * np.random.default_rng(3).uniform(-1.0, 1.0, size=12)
    v = Variances(0.01, 0.02, 0.03, 0.04, 0.7, 0.001)
    found = InteractionProcess(slots).posterior(v, choices, residual, predicted)
    unit = np.median(predicted)
    noise = v.noise * (predicted / unit) ** 2 + 1e-8
    k = covariance(slots, v, choices, choices, unit) + np.diag(noise)
    expected = covariance(slots, v, new, choices, unit) @ np.linalg.solve(k, residual)
    np.testing.assert_allclose(found.at(new), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kernel", ["alike", "place", "adjacent", "product"])
def test_a_kernel_left_out_has_no_part_in_the_answer(slots, kernel):
    choices = drawn(20)
    predicted = sums(slots, choices)
    residual = 0.05 * predicted * np.random.default_rng(3).normal(size=20)
    found = InteractionProcess(slots, without=[kernel]).fit(choices, residual, predicted)
    whole = InteractionProcess(slots).fit(choices, residual, predicted)
    assert whole.table_ms.any()
    assert whole.pairs_ms.any()
    assert whole.weights_ms.any()
    if kernel == "adjacent":
        assert not found.pairs_ms.any()
    elif kernel == "product":
        assert not found.weights_ms.any()
    else:  # what is left of the table is what the other additive kernel makes of it
        ms = slots.ms if kernel == "alike" else None
        unseen = np.ones((N_SLOTS, WIDTH), bool)
        unseen[np.arange(N_SLOTS), choices] = False
        if ms is not None:
            assert not found.table_ms[unseen].any()
        else:
            per_ms = found.table_ms / slots.ms
            np.testing.assert_allclose(per_ms, np.broadcast_to(per_ms[0], per_ms.shape))


def test_a_network_that_all_others_contradict_moves_nothing(slots):
    choices, new = drawn(60), drawn(100, seed=4)
    residual = truth("alike", slots, choices)
    predicted = sums(slots, choices)
    spoiled = residual.copy()
    spoiled[11] += 3.0 * predicted[11]
    process = InteractionProcess(slots)
    clean = process.fit(choices, residual, predicted).at(new)
    np.testing.assert_allclose(
        process.fit(choices, spoiled, predicted).at(new), clean, atol=0.02 * predicted.mean()
    )


def truth(kind, slots, choices):
    """What a device adds to the sum of blocks, relative to nothing in particular."""
    ms = slots.ms[np.arange(N_SLOTS), choices]
    if kind == "alike":
        return 0.3 * (ms * (choices == 2)).sum(axis=1)
    if kind == "adjacent":
        return 0.3 * ((ms[:, 1:] + ms[:, :-1]) * (choices[:, 1:] == choices[:, :-1])).sum(axis=1)
    centres = drawn(4, seed=17)
    differing = (choices[:, None] != centres[None]).sum(axis=2)
    return (0.55**differing) @ np.array([4.0, -3.0, 3.0, -4.0])


@pytest.mark.parametrize("kind", ["alike", "adjacent", "product"])
def test_what_blocks_do_to_each_other_is_found(slots, kind):
    choices, new = drawn(80), drawn(200, seed=9)
    rng = np.random.default_rng(5)
    measured = sums(slots, choices) + truth(kind, slots, choices)
    measured *= 1.0 + 0.003 * rng.normal(size=80)
    found = NetworkCalibration(slots).fit(choices, sums(slots, choices), measured)
    true_ms = sums(slots, new) + truth(kind, slots, new)
    error = np.abs(found.predict(new, sums(slots, new)) / true_ms - 1.0).mean()
    by_line = np.abs(found.line_.predict(sums(slots, new)[:, None]) / true_ms - 1.0).mean()
    assert found.interactions_ is not None
    assert error < 0.7 * by_line


def test_noise_alone_is_not_taken_for_interactions(slots):
    choices = drawn(40)
    measured = (0.3 + 1.1 * sums(slots, choices)) * (
        1.0 + 0.02 * np.random.default_rng(6).normal(size=40)
    )
    found = NetworkCalibration(slots).fit(choices, sums(slots, choices), measured)
    assert found.interactions_ is None
    np.testing.assert_array_equal(
        found.predict(choices, sums(slots, choices)),
        found.line_.predict(sums(slots, choices)[:, None]),
    )


def test_no_left_out_prediction_has_seen_its_measurement(slots):
    choices = drawn(25)
    base = sums(slots, choices) + truth("alike", slots, choices)
    told = []
    for factor in (0.8, 1.3):
        measured = base.copy()
        measured[7] *= factor
        told.append(NetworkCalibration(slots).fit(choices, sums(slots, choices), measured))
    assert told[0].interactions_ is not None
    assert told[1].interactions_ is not None
    assert told[0].left_out_ms_[7] == told[1].left_out_ms_[7]
    assert told[0].left_out_ms_[20] != told[1].left_out_ms_[20]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_refused(slots, bad):
    choices = drawn(10)
    residual = np.zeros(10)
    residual[3] = bad
    with pytest.raises(UnusableMeasurementsError, match="finite"):
        InteractionProcess(slots).fit(choices, residual, sums(slots, choices))
