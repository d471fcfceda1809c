"""What the regressors of blocks and convolutions are held against."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from predictor.features import WORK, Workload, element_bytes, work
from predictor.models.kernel_roofline import Rooflines

Floats = NDArray[np.float64]

_DENSE, _DEPTHWISE = WORK.index("dense_macs"), WORK.index("depthwise_macs")
_ACTIVATIONS, _WEIGHTS = WORK.index("activation_bytes"), WORK.index("weight_bytes")
_ROWS_FOR_MLP, _ROWS_FOR_GP = 40_000, 1_000


@dataclass(frozen=True)
class Rows:
    """Blocks or convolutions of several targets.

    Attributes:
        features: (n, d), of everything that a model may see; the target is among them.
        work: (n, len(WORK)).
        targets: (n,) names.
    """

    features: Floats
    work: Floats
    targets: NDArray[np.str_]

    def __getitem__(self, which: NDArray[np.bool_]) -> "Rows":
        return Rows(self.features[which], self.work[which], self.targets[which])

    @property
    def macs(self) -> Floats:
        """(n,) multiply-accumulates."""
        return self.work[:, _DENSE] + self.work[:, _DEPTHWISE]

    @property
    def moved_bytes(self) -> Floats:
        """(n,) bytes of activations and weights."""
        return self.work[:, _ACTIVATIONS] + self.work[:, _WEIGHTS]


Baseline = Callable[[Rows, Floats, Rows], Floats]


def macs(train: Rows, latency_ms: Floats, test: Rows) -> Floats:
    """Log ms, a straight line over log MACs; one for each target."""
    predicted = np.empty(len(test.targets))
    for name in np.unique(test.targets):
        ours, asked = train.targets == name, test.targets == name
        line = np.polyfit(np.log1p(train.macs[ours]), np.log(latency_ms[ours]), 1)
        predicted[asked] = np.exp(np.polyval(line, np.log1p(test.macs[asked])))
    return predicted


def linear(train: Rows, latency_ms: Floats, test: Rows) -> Floats:
    """Non-negative prices of calls, kernels, MACs and bytes; a set for each target."""
    model = Rooflines().fit(train.work, list(train.targets), latency_ms)
    return model.predict(test.work, list(test.targets))


def roofline(train: Rows, latency_ms: Floats, test: Rows) -> Floats:
    """The larger of compute and memory time at the best rates seen, scaled to the median."""
    predicted = np.empty(len(test.targets))
    for name in np.unique(test.targets):
        ours, asked = train.targets == name, test.targets == name
        fastest = np.percentile(train.macs[ours] / latency_ms[ours], 99)
        widest = np.percentile(train.moved_bytes[ours] / latency_ms[ours], 99)
        bounds = [
            np.maximum(rows.macs[which] / max(fastest, 1e-9), rows.moved_bytes[which] / widest)
            for rows, which in ((train, ours), (test, asked))
        ]
        predicted[asked] = bounds[1] * np.median(latency_ms[ours] / bounds[0])
    return predicted


def boosting(train: Rows, latency_ms: Floats, test: Rows) -> Floats:
    """scikit-learn's gradient boosting on log latency, 600 trees of 127 leaves."""
    model = HistGradientBoostingRegressor(
        max_iter=600, max_leaf_nodes=127, learning_rate=0.08, early_stopping=False, random_state=0
    )
    return np.exp(model.fit(train.features, np.log(latency_ms)).predict(test.features))


def mlp(train: Rows, latency_ms: Floats, test: Rows) -> Floats:
    """Two hidden layers on logarithms, standardised; on 40,000 rows at most."""
    some = _some(len(latency_ms), _ROWS_FOR_MLP)
    model = make_pipeline(
        StandardScaler(),
        MLPRegressor(
            hidden_layer_sizes=(128, 128),
            early_stopping=len(some) > 2000,
            max_iter=300,
            random_state=0,
        ),
    )
    return _on_logs(model, train, latency_ms, test, some)


def gp(train: Rows, latency_ms: Floats, test: Rows) -> Floats:
    """A Gaussian process with one length-scale, on 1,000 rows at most."""
    some = _some(len(latency_ms), _ROWS_FOR_GP)
    kernel = ConstantKernel(1.0) * RBF(3.0) + WhiteKernel(1e-2, (1e-6, 1e1))
    model = make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True))
    return _on_logs(model, train, latency_ms, test, some)


BASELINES: dict[str, Baseline] = {
    "macs": macs,
    "linear": linear,
    "roofline": roofline,
    "boosting": boosting,
    "mlp": mlp,
    "gp": gp,
}


def derived_features(blocks: Sequence[Workload]) -> Floats:
    """(n, 17): logarithms of 1 + MACs, parameters and bytes; number of kernels; residues."""
    rows = np.empty((len(blocks), 17))
    for row, workload, asked in zip(rows, blocks, work(blocks), strict=True):
        block, size = workload.block, element_bytes(workload.precision)
        _, kernels, dense, depthwise, activations, weights = asked
        in_bytes = workload.batch * size * block.in_channels * block.resolution_px**2
        out_bytes = workload.batch * size * block.out_channels * block.out_resolution_px**2
        moved = activations + weights
        amounts = (dense + depthwise, depthwise, weights / size, in_bytes, out_bytes, moved)
        intensity = (dense + depthwise) / max(1.0, moved)
        channels = (block.in_channels, block.hidden_channels, block.out_channels)
        row[:] = (
            *np.log2(1.0 + np.array(amounts)),
            np.log2(1.0 + intensity),
            kernels,
            *(side % n for side in channels for n in (8, 16, 32)),
        )
    return rows


def _some(n: int, most: int) -> NDArray[np.intp]:
    return np.random.default_rng(0).permutation(n)[:most]


def _on_logs(
    model: object, train: Rows, latency_ms: Floats, test: Rows, some: NDArray[np.intp]
) -> Floats:
    logs = np.log(latency_ms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its steps are what it is given
        model.fit(_squeezed(train.features[some]), logs[some])  # type: ignore[attr-defined]
    predicted: Floats = model.predict(_squeezed(test.features))  # type: ignore[attr-defined]
    return np.exp(np.clip(predicted, logs.min() - 2.0, logs.max() + 2.0))


def _squeezed(features: Floats) -> Floats:
    """Sizes as logarithms, which is kind to models that are smooth."""
    return np.sign(features) * np.log1p(np.abs(features))
