import numpy as np
import pytest

from predictor.errors import UnusableMeasurementsError
from predictor.models.kernel_roofline import Rooflines

PRICES = np.array([0.05, 2e-9, 8e-9])


@pytest.fixture
def work():
    rng = np.random.default_rng(0)
    return np.column_stack((np.ones(60), rng.uniform(1e6, 1e9, 60), rng.uniform(1e5, 1e7, 60)))


def test_prices_come_back_from_the_latencies_that_they_make(work):
    latency_ms = work @ PRICES
    model = Rooflines().fit(work, ["phone"] * 60, latency_ms)
    assert model.predict(work, ["phone"] * 60) == pytest.approx(latency_ms, rel=0.02)


def test_a_device_without_some_sort_of_work_is_priced_as_its_peers(work):
    """The second device is three times as slow and never ran the last sort of work."""
    slow = work[:20].copy()
    slow[:, 2] = 0.0
    everything = np.concatenate((work, slow))
    devices = ["phone"] * 60 + ["slow"] * 20
    latency_ms = np.concatenate((work @ PRICES, 3.0 * slow @ PRICES))
    model = Rooflines().fit(everything, devices, latency_ms)
    assert model.predict(work, ["slow"] * 60) == pytest.approx(3.0 * work @ PRICES, rel=0.1)


def test_no_price_is_negative_when_noise_would_have_it_so(work):
    noise = np.random.default_rng(1).lognormal(0.0, 0.3, 60)
    model = Rooflines().fit(work, ["phone"] * 60, (work[:, :2] @ PRICES[:2]) * noise)
    assert (model.prices_ms_["phone"] >= 0.0).all()


def test_a_device_that_was_never_measured_is_refused(work):
    model = Rooflines().fit(work, ["phone"] * 60, work @ PRICES)
    with pytest.raises(UnusableMeasurementsError, match="no measurements of tablet"):
        model.predict(work[:1], ["tablet"])
