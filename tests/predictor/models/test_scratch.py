"""Latency from scratch, on devices whose law is known."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from predictor.errors import BadTableError, ModelDocumentError
from predictor.models.scratch import FEWEST, ScratchModel

N_SLOTS, N_CANDIDATES = 6, 4


@pytest.fixture(scope="module")
def networks():
    """Choices and counts of 600 networks: how often each candidate occurs, and two totals."""
    rng = np.random.default_rng(0)
    choices = rng.integers(0, N_CANDIDATES, (600, N_SLOTS))
    counts = np.stack([(choices == k).sum(1) for k in range(N_CANDIDATES)], 1).astype(float)
    macs = choices @ np.array([1e6, 2e6, 1e6, 4e6, 3e6, 2e6])
    return choices, np.column_stack([counts, macs, np.sqrt(macs)])


def prices_ms(features):
    return 0.5 + features[:, :4] @ np.array([0.1, 0.4, 0.2, 0.8]) + 2e-8 * features[:, 4]


def fitted(networks, latency_ms, n=200, **options):
    choices, features = networks
    return ScratchModel(**options).fit(choices[:n], features[:n], latency_ms[:n])


def errors(model, networks, latency_ms, n=200):
    choices, features = networks
    predicted = model.predict(choices[n:], features[n:])
    return np.abs(predicted.latency_ms / latency_ms[n:] - 1.0)


def test_a_device_that_adds_is_learnt_from_a_few_networks(networks):
    latency_ms = prices_ms(networks[1])
    model = fitted(networks, latency_ms, n=30)
    assert errors(model, networks, latency_ms, n=30).max() < 0.01


def test_deviations_learn_what_the_amounts_do_not_tell(networks):
    choices, features = networks
    latency_ms = prices_ms(features) * np.where(choices[:, 0] == choices[:, 1], 1.3, 1.0)
    with_them = errors(fitted(networks, latency_ms), networks, latency_ms).mean()
    without = errors(fitted(networks, latency_ms, deviations=False), networks, latency_ms).mean()
    assert with_them < 0.75 * without


def test_sigma_holds_what_it_promises(networks):
    noise = np.exp(0.05 * np.random.default_rng(1).standard_normal(600))
    latency_ms = prices_ms(networks[1]) * noise
    predicted = fitted(networks, latency_ms).predict(networks[0][200:], networks[1][200:])
    away = np.abs(latency_ms[200:] - predicted.latency_ms) / predicted.sigma_ms
    assert 0.84 < (away < 1.645).mean() < 0.96
    assert 0.03 < np.median(predicted.sigma_ms / predicted.latency_ms) < 0.08


def test_a_network_that_takes_next_to_nothing_does_not_spoil_the_others(networks):
    latency_ms = prices_ms(networks[1])
    spoilt = latency_ms.copy()
    spoilt[:3] = 1e-5
    assert errors(fitted(networks, spoilt), networks, latency_ms).mean() < 0.1


def test_an_amount_or_a_choice_outside_of_what_was_measured_is_not_covered(networks):
    choices, features = networks
    model = fitted(networks, prices_ms(features))
    asked, amounts = choices[:3].copy(), features[:3].copy()
    asked[1, 0] = N_CANDIDATES
    amounts[2, 4] *= 10
    predicted = model.predict(asked, amounts)
    assert predicted.covered.tolist() == [True, False, False]


def test_an_amount_that_no_measured_network_has_costs_nothing_and_is_not_covered(networks):
    choices, features = networks
    fresh = np.column_stack([features, np.zeros(600)])
    model = ScratchModel().fit(choices[:200], fresh[:200], prices_ms(features)[:200])
    asked = fresh[200:].copy()
    asked[:, -1] = 1.0
    one, other = model.predict(choices[200:], fresh[200:]), model.predict(choices[200:], asked)
    np.testing.assert_allclose(other.latency_ms, one.latency_ms, rtol=1e-9)
    assert not other.covered.any()


def test_many_networks_are_predicted_as_few_are(networks):
    model = fitted(networks, prices_ms(networks[1]) * (1 + 0.1 * (networks[0][:, 0] == 2)))
    few = model.predict(networks[0][:50], networks[1][:50])
    many = model.predict(np.tile(networks[0][:50], (60, 1)), np.tile(networks[1][:50], (60, 1)))
    np.testing.assert_allclose(many.latency_ms[-50:], few.latency_ms, rtol=1e-12)
    np.testing.assert_allclose(many.sigma_ms[-50:], few.sigma_ms, rtol=1e-9)


def test_a_model_comes_back_from_its_arrays(networks, tmp_path):
    latency_ms = prices_ms(networks[1]) * (1 + 0.1 * (networks[0][:, 0] == 2))
    model = fitted(networks, latency_ms)
    np.savez(tmp_path / "model.npz", **model.to_arrays())
    with np.load(tmp_path / "model.npz", allow_pickle=False) as arrays:
        again = ScratchModel.from_arrays(dict(arrays))
    one, other = model.predict(*networks), again.predict(*networks)
    np.testing.assert_allclose(other.latency_ms, one.latency_ms, rtol=1e-12)
    np.testing.assert_allclose(other.sigma_ms, one.sigma_ms, rtol=1e-6)
    np.testing.assert_array_equal(other.covered, one.covered)


@pytest.mark.parametrize(
    "damage",
    [
        {"document": np.frombuffer(b'{"format": "tailor-scratch-latency-9"}', np.uint8)},
        {"document": np.frombuffer(b"{", np.uint8)},
        {"prices": np.array([np.nan])},
        {"kernel": np.zeros(2)},
        {"weights": None},
    ],
)
def test_damaged_arrays_are_refused(networks, damage):
    arrays = fitted(networks, prices_ms(networks[1])).to_arrays() | damage
    arrays = {name: values for name, values in arrays.items() if values is not None}
    with pytest.raises(ModelDocumentError):
        ScratchModel.from_arrays(arrays)


@pytest.mark.parametrize(
    ("row", "value", "says"),
    [(7, np.nan, "row 7"), (5, -1.0, "row 5"), (3, 0.0, "row 3"), (2, np.inf, "row 2")],
)
def test_a_latency_that_is_none_is_named(networks, row, value, says):
    latency_ms = prices_ms(networks[1])
    latency_ms[row] = value
    with pytest.raises(BadTableError, match=says) as caught:
        fitted(networks, latency_ms)
    assert caught.value.row == row


def test_too_few_or_constant_latencies_are_refused(networks):
    with pytest.raises(BadTableError, match=f"at least {FEWEST}"):
        fitted(networks, prices_ms(networks[1]), n=FEWEST - 1)
    with pytest.raises(BadTableError, match="nothing can be learnt"):
        fitted(networks, np.full(600, 3.0))


def test_an_amount_that_is_not_finite_is_named(networks):
    choices, features = networks
    broken = features.copy()
    broken[4, 1] = np.nan
    with pytest.raises(BadTableError, match="row 4"):
        ScratchModel().fit(choices, broken, prices_ms(features))
    with pytest.raises(BadTableError, match="row 4"):
        fitted(networks, prices_ms(features)).predict(choices, broken)


def test_networks_of_another_shape_are_refused(networks):
    choices, features = networks
    model = fitted(networks, prices_ms(features))
    with pytest.raises(BadTableError, match="6 slots and 6 features"):
        model.predict(choices, features[:, 1:])
    with pytest.raises(BadTableError, match="600 networks and 11 latencies"):
        ScratchModel().fit(choices, features, prices_ms(features)[:11])


def test_predicting_comes_after_fitting(networks):
    with pytest.raises(NotFittedError):
        ScratchModel().predict(*networks)
