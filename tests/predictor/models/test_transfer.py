"""Transfer in a world of two costs, where it is known what can be learnt from whom."""

import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

from predictor.errors import BadTableError, ModelDocumentError
from predictor.models import transfer
from predictor.models.transfer import STACK, Member, TransferRegressor, propose
from predictor.models.transfer_references import (
    Encoding,
    Measured,
    ReferenceModel,
    References,
)

N_SLOTS, N_CANDIDATES, N_NETWORKS, N_MEASURED = 8, 4, 400, 120


class World:
    """Networks whose time on a device is a mixture of arithmetic, launches and a hidden cost."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.choices = rng.integers(0, N_CANDIDATES, (N_NETWORKS, N_SLOTS))
        tables = rng.gamma(2.0, 1.0, (3, N_SLOTS, N_CANDIDATES))
        self.costs = tables[:, np.arange(N_SLOTS), self.choices].sum(2)  # (3, n)
        self.features = np.log(self.costs[:2]).T  # the third is hidden from the features

    def device(self, arithmetic, launches, hidden=0.0, noise=0.0, seed=0):
        ms = 1.0 + self.costs.T @ [arithmetic, launches, hidden]
        return ms * np.exp(noise * np.random.default_rng(seed).standard_normal(N_NETWORKS))

    def measured(self, latency_ms):
        rows = slice(0, N_MEASURED)
        return Measured(self.choices[rows], self.features[rows], latency_ms[rows])

    def references(self, devices):
        return References().fit({name: self.measured(ms) for name, ms in devices.items()})


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def references(world):
    return world.references(
        {
            "accelerator": world.device(0.2, 1.0, 0.1, noise=0.01, seed=1),
            "phone": world.device(1.0, 0.1, 1.0, noise=0.02, seed=2),
            "board": world.device(1.0, 0.3, 0.6, noise=0.01, seed=3),
        }
    )


@pytest.fixture(scope="module")
def encoded(world, references):
    return references.encode(world.choices, world.features)


def ranks(model, encoded, latency_ms):
    return spearmanr(model.predict(encoded).latency_ms, latency_ms).statistic


def fitted(references, encoded, latency_ms, n=12, **changed):
    rows = propose(encoded, n)
    return TransferRegressor(references, **changed).fit(encoded.rows(rows), latency_ms[rows])


def without_references():
    return {name: member for name, member in STACK.items() if name != "transfer"}


def test_alike_devices_tell_what_no_feature_shows(world, references, encoded):
    target = world.device(1.0, 0.2, 0.8, noise=0.01, seed=4)
    model = fitted(references, encoded, target)
    alone = fitted(references, encoded, target, stack=without_references())
    assert ranks(model, encoded, target) > 0.96
    assert ranks(model, encoded, target) > ranks(alone, encoded, target) + 0.03
    assert max(model.weights_, key=model.weights_.get) == "transfer"
    assert sum(model.weights_.values()) == pytest.approx(1.0)
    assert model.nearest_ in {"phone", "board"}
    assert not model.warning_


def test_references_that_mislead_are_not_believed_and_a_warning_says_so(world):
    strangers = {f"s{i}": world.device(0.0, 0.0, 1.0, noise=0.05, seed=i) for i in range(3)}
    references = world.references(strangers)
    encoded = references.encode(world.choices, world.features)
    target = world.device(1.0, 1.0, 0.0, noise=0.01, seed=9)
    model = fitted(references, encoded, target, n=20)
    assert ranks(model, encoded, target) > 0.98
    trusting = STACK | {"transfer": Member(("references",), 0.7)}
    weights = fitted(references, encoded, target, n=20, stack=trusting).weights_
    assert weights["analytic"] > 0.9
    assert "no similar device" in model.warning_


def test_one_interrupted_measurement_moves_little(world, references, encoded):
    target = world.device(1.0, 0.2, 0.8)
    rows = propose(encoded, 15)
    spoilt = target[rows].copy()
    spoilt[7] *= 3.0
    change = {}
    for robust in (True, False):
        model = TransferRegressor(references, robust=robust)
        before = model.fit(encoded.rows(rows), target[rows]).predict(encoded).latency_ms
        after = model.fit(encoded.rows(rows), spoilt).predict(encoded).latency_ms
        change[robust] = np.abs(np.log(after / before)).mean()
    assert change[True] < 0.5 * change[False]


def test_intervals_are_as_wide_as_the_noise_of_the_target(world, references, encoded):
    sigmas = []
    for noise in (0.01, 0.2):
        target = world.device(1.0, 0.2, 0.8, noise=noise, seed=5)
        predicted = fitted(references, encoded, target, n=25).predict(encoded)
        low, high = predicted.interval_ms(0.9)
        assert 0.8 <= np.mean((low <= target) & (target <= high)) <= 1.0
        assert np.all(low < predicted.latency_ms)
        sigmas.append(np.median(predicted.sigma))
    assert sigmas[1] > 3.0 * sigmas[0]
    assert sigmas[1] == pytest.approx(0.2, rel=0.6)


def test_predictions_scale_with_the_unit(world, references, encoded):
    target = world.device(1.0, 0.2, 0.8)
    once = fitted(references, encoded, target).predict(encoded)
    thousandfold = fitted(references, encoded, 1000.0 * target).predict(encoded)
    np.testing.assert_allclose(thousandfold.latency_ms, 1000.0 * once.latency_ms)
    np.testing.assert_allclose(thousandfold.sigma, once.sigma)


def test_evidence_of_normal_noise_is_the_density_of_what_was_measured(encoded):
    y = np.random.default_rng(0).standard_normal(6)
    few = encoded.rows(np.arange(6))
    kernels = transfer._kernels(few, few)
    variances, noise = np.array([[0.5, 0.2, 0, 0.1], [0, 1.0, 0, 0]]), np.array([0.1, 0.4])
    found = transfer._fit(kernels, variances, noise, np.inf, y)
    covariances = np.tensordot(variances, kernels, 1) + 1.0 + noise[:, None, None] * np.eye(6)
    densities = [multivariate_normal(np.zeros(6), c).logpdf(y) for c in covariances]
    np.testing.assert_allclose(np.diff(np.log(found.shares)), np.diff(densities), rtol=1e-6)
    left_out = []
    for i in range(6):
        rest = np.delete(np.arange(6), i)
        each = []
        for c in covariances:
            pull = np.linalg.solve(c[np.ix_(rest, rest)], c[rest, i])
            spread = np.sqrt(c[i, i] - pull @ c[rest, i])
            each.append(multivariate_normal(pull @ y[rest], spread**2).pdf(y[i]))
        left_out.append(np.log(found.shares @ each))
    assert found.log_density == pytest.approx(sum(left_out), rel=1e-6)


def test_students_noise_with_many_degrees_is_normal(encoded):
    y = np.random.default_rng(1).standard_normal(6)
    few = encoded.rows(np.arange(6))
    kernels = transfer._kernels(few, few)
    variances, noise = np.array([[0.5, 0.2, 0, 0.1], [0, 1.0, 0, 0]]), np.array([0.1, 0.4])
    normal = transfer._fit(kernels, variances, noise, np.inf, y)
    student = transfer._fit(kernels, variances, noise, 1e7, y)
    np.testing.assert_allclose(student.shares, normal.shares, rtol=1e-4)
    np.testing.assert_allclose(student.coefficients, normal.coefficients, rtol=1e-4)


def test_proposed_networks_leave_less_variance_than_random_ones(encoded):
    rows = propose(encoded, 15, seed=3)
    assert len(set(rows.tolist())) == 15
    assert np.array_equal(rows, propose(encoded, 15, seed=3))
    kernel = np.tensordot(transfer._SAMPLING_VARIANCES, transfer._kernels(encoded, encoded), 1)

    def left(chosen):
        cross = kernel[:, chosen]
        noisy = cross[chosen] + transfer._SAMPLING_NOISE * np.eye(len(chosen))
        return np.trace(kernel - cross @ np.linalg.solve(noisy, cross.T))

    rng = np.random.default_rng(0)
    assert left(rows) < min(left(rng.permutation(N_NETWORKS)[:15]) for _ in range(20))


def test_no_more_networks_are_proposed_than_there_are(encoded):
    assert sorted(propose(encoded.rows(np.arange(5)), 20)) == [0, 1, 2, 3, 4]


def plain(value):
    """As JSON would give it back."""
    return json.loads(json.dumps(value, default=lambda array: array.tolist()))


def test_stored_models_predict_the_same(world, references, encoded):
    target = world.device(1.0, 0.2, 0.8, noise=0.01)
    model = fitted(references, encoded, target)
    references_again = References.from_arrays(plain(references.to_arrays()))
    again = TransferRegressor.from_arrays(references_again, plain(model.to_arrays()))
    loaded = again.predict(references_again.encode(world.choices, world.features))
    np.testing.assert_allclose(loaded.latency_ms, model.predict(encoded).latency_ms)
    np.testing.assert_allclose(loaded.sigma, model.predict(encoded).sigma)
    assert (again.weights_, again.warning_) == (model.weights_, model.warning_)


def test_damaged_or_unknown_documents_are_refused(world, references, encoded):
    model = fitted(references, encoded, world.device(1.0, 0.2))
    for read, arrays in (
        (References.from_arrays, references.to_arrays()),
        (lambda found: TransferRegressor.from_arrays(references, found), model.to_arrays()),
    ):
        with pytest.raises(ModelDocumentError, match="format 99"):
            read(arrays | {"format": 99})
        del arrays[list(arrays)[-1]]
        with pytest.raises(ModelDocumentError, match="without"):
            read(arrays)


@pytest.mark.parametrize(
    ("spoil", "row", "text"),
    [
        (lambda ms: ms[:4], None, "at least 5"),
        (lambda ms: np.full_like(ms, 7.0), None, "nothing can be learnt"),
        (lambda ms: np.where(np.arange(len(ms)) == 3, np.nan, ms), 3, "positive number"),
        (lambda ms: np.where(np.arange(len(ms)) == 2, -1.0, ms), 2, "positive number"),
    ],
)
def test_latencies_that_teach_nothing_are_refused(world, references, encoded, spoil, row, text):
    latency_ms = spoil(world.device(1.0, 1.0)[:8])
    with pytest.raises(BadTableError, match=text) as caught:
        TransferRegressor(references).fit(encoded.rows(np.arange(len(latency_ms))), latency_ms)
    assert caught.value.row == row


def test_a_choice_that_no_reference_has_is_refused(world, references):
    choices = world.choices[:3].copy()
    choices[1, 2] = N_CANDIDATES
    with pytest.raises(BadTableError, match="slot 2") as caught:
        references.encode(choices, world.features[:3])
    assert caught.value.row == 1


def test_references_are_needed_and_named_when_they_are_unusable(world):
    with pytest.raises(BadTableError, match="at least one reference"):
        References().fit({})
    constant = np.full(N_NETWORKS, 3.0)
    with pytest.raises(BadTableError) as caught:
        world.references({"good": world.device(1.0, 1.0), "stuck": constant})
    assert caught.value.column == "stuck"
    with pytest.raises(BadTableError, match="3 latencies"):
        Measured(world.choices[:4], world.features[:4], constant[:3])


def test_a_reference_predicts_networks_it_never_ran(world):
    device = world.device(1.0, 0.3, 0.6, noise=0.01)
    model = ReferenceModel().fit(world.measured(device))
    unseen = slice(N_MEASURED, None)
    predicted = np.exp(model.predict(world.choices[unseen], world.features[unseen]))
    assert np.mean(np.abs(predicted / device[unseen] - 1.0)) < 0.02


def test_features_that_do_not_vary_count_for_nothing(world):
    encoding = Encoding().fit(world.choices, np.c_[world.features, np.full(N_NETWORKS, 5.0)])
    shifted = encoding.features(np.c_[world.features, np.full(N_NETWORKS, 9.0)])
    assert np.all(shifted[:, -1] == 0.0)
    assert np.mean((shifted**2).sum(1)) == pytest.approx(1.0)
