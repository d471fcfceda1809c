"""Latency of whole networks on one device, predicted from that device's own measurements.

For each column: draw networks to measure, fit, and predict every network that is not one of them
under another name.

    python -m benchmarks.latency_scratch --table nb201_pi5.csv.gz --space nasbench201 \
        --target pi5_litert_cifar100_lat_ms --samples 100,900 --json

A table may hold one measurement for several networks that compute the same: where it has a column
``rep_arch_idx``, a row was measured as the network whose ``arch_idx`` stands there, with that
network's dead branches. Only networks that were measured are drawn and predicted.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from benchmarks.records import last_line, new_record, plot_calibration, plot_parity, write_record
from benchmarks.table_spaces import Networks, networks_of
from benchmarks.tables import Table, read_table
from predictor.errors import BadTableError
from predictor.evaluation import check_latencies, prediction_quality
from predictor.models.scratch import FEWEST, Prediction, ScratchModel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MEASURED_AS, NAMED_BY = "rep_arch_idx", "arch_idx"
_LOGARITHM = "log "  # begins the names of features that are logarithms of others
_LEVELS = np.linspace(0.1, 0.9, 9)
_AVERAGED = (
    "spearman",
    "mape",
    "within_10",
    "mape_without_degenerate",
    "within_10_without_degenerate",
    "coverage_90",
)


@dataclass(frozen=True)
class Case:
    """One column of a table: the networks that were measured, and how long they took."""

    networks: Networks
    latency_ms: Floats


Method = Callable[[Case, Integers, Integers], Prediction]
"""A case, rows fitted to, rows asked for -> latencies of the latter."""


def main() -> int:
    """Run the benchmark and print its record."""
    arguments = _arguments()
    began = time.monotonic()
    table = read_table(arguments.table)
    samples = [int(n) for n in arguments.samples.split(",")]
    rows = np.arange(len(table)) if arguments.each_row else measured_rows(table)
    networks = networks_of(arguments.space, table.architectures(), rows.tolist())
    _say(f"{len(table)} rows, {len(networks)} measured networks")
    cases = {}
    for name in arguments.target.split(","):
        latency_ms = table.latencies_ms(name)[rows]
        check_latencies(latency_ms, name, at_least=max(samples) + FEWEST)
        cases[name] = Case(networks, latency_ms)

    def run(label: str, method: Method) -> dict[str, dict[str, dict[str, float]]]:
        found = {}
        for name, case in cases.items():
            _say(f"{label}: {name}")
            splits = draw(case, samples, arguments.seeds, arguments.split)
            found[name] = evaluate(case, method, splits)
        return found

    found = run("model", scratch())
    by_samples = _by_samples(found)
    record = new_record("latency_scratch") | {
        "table": arguments.table.name,
        "space": arguments.space,
        "split": arguments.split,
        "seeds": arguments.seeds,
        "rows": len(table),
        "measured_networks": len(networks),
        "degenerate": int(networks.degenerate.sum()),
        "features": len(networks.feature_names),
        **{f"{key}_mean": value for key, value in _mean([*by_samples.values()]).items()},
        "by_samples": by_samples,
        "targets": found,
        "noise_ceiling": {name: noise_ceiling(case) for name, case in cases.items()},
    }
    if arguments.baselines:
        record["baselines"] = {k: _by_samples(run(k, method)) for k, method in BASELINES.items()}
    if arguments.ablation:
        record["ablation"] = {k: _by_samples(run(k, method)) for k, method in ABLATION.items()}
    record["seconds"] = round(time.monotonic() - began, 1)
    write_record(record, arguments.out)
    if arguments.out is not None:
        _plot(cases, samples, arguments)
    if not arguments.json:
        _print_table(record)
    last_line(record)
    return 0


def measured_rows(table: Table) -> Integers:
    """Rows that hold a measurement of their own network, rising.

    Raises:
        BadTableError: a row was measured as one that is not in the table; it names the row.
    """
    if not {MEASURED_AS, NAMED_BY} <= set(table.columns):
        return np.arange(len(table))
    named = {name: row for row, name in enumerate(table.text(NAMED_BY))}
    for row, name in enumerate(table.text(MEASURED_AS)):
        if name not in named:
            raise BadTableError(f"no row is {NAMED_BY} {name}", row=row, column=MEASURED_AS)
    return np.unique([named[name] for name in table.text(MEASURED_AS)])


def draw(
    case: Case, samples: list[int], seeds: int, split: str
) -> Iterator[tuple[int, Integers, Integers]]:
    """Numbers of samples, rows drawn to be measured, rows asked for; the same for every method."""
    digests = np.unique(case.networks.digests, return_inverse=True)[1]
    for n in samples:
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(digests))
            fitted, asked = order[:n], order[n:]
            if split == "isomorphic":
                asked = asked[~np.isin(digests[asked], digests[fitted])]
            yield n, fitted, asked


def evaluate(
    case: Case, method: Method, splits: Iterator[tuple[int, Integers, Integers]]
) -> dict[str, dict[str, float]]:
    """Number of samples -> errors, means over the seeds."""
    results: dict[str, list[dict[str, float]]] = {}
    for n, fitted, asked in splits:
        began = time.process_time()
        predicted = method(case, fitted, asked)
        errors = _errors(predicted, case.latency_ms[asked], case.networks.degenerate[asked])
        errors["cpu_seconds"] = time.process_time() - began
        results.setdefault(str(n), []).append(errors)
    found = {n: _mean(runs, [*runs[0]]) for n, runs in results.items()}
    for n, runs in results.items():
        found[n]["spearman_sd"] = float(np.std([errors["spearman"] for errors in runs]))
    return found


def noise_ceiling(case: Case) -> dict[str, float] | None:
    """How well networks that no feature tells apart predict each other.

    Each is predicted as the mean of the others; None where there are fewer than 20 of them. What
    separates them is noise, and what the features do not see; as the others are noisy too, a model
    that draws on more networks may do a little better.
    """
    group = np.unique(case.networks.features, axis=0, return_inverse=True)[1].ravel()
    size, total = np.bincount(group), np.bincount(group, case.latency_ms)
    twins = np.flatnonzero((size[group] > 1) & ~case.networks.degenerate)
    if len(twins) < 20:
        return None
    own = case.latency_ms[twins]
    others = (total[group[twins]] - own) / (size[group[twins]] - 1)
    quality = prediction_quality(others, own)
    return {
        "n": quality.n,
        "spearman": quality.spearman,
        "mape": quality.mape,
        "within_10": quality.within_10,
    }


def _errors(predicted: Prediction, measured: Floats, degenerate: Any) -> dict[str, float]:
    errors = asdict(prediction_quality(predicted.latency_ms, measured))
    computing = ~degenerate
    proper = prediction_quality(predicted.latency_ms[computing], measured[computing])
    errors["mape_without_degenerate"] = proper.mape
    errors["within_10_without_degenerate"] = proper.within_10
    if np.isfinite(predicted.sigma_ms).all():
        errors["coverage_90"] = float(_coverage(predicted, measured, np.array([0.9]))[0])
        errors["half_width_90"] = float(
            np.mean(_away(0.9) * predicted.sigma_ms / predicted.latency_ms)
        )
        errors["covered"] = float(predicted.covered.mean())
    return errors


def _coverage(predicted: Prediction, measured: Floats, levels: Floats) -> Floats:
    away = np.abs(measured - predicted.latency_ms) / predicted.sigma_ms
    return np.array([(away <= _away(level)).mean() for level in levels])


def _away(level: float) -> float:
    """Standard deviations on either side that hold a share of a normal distribution."""
    return NormalDist().inv_cdf(0.5 + level / 2.0)


def scratch(keep: Callable[[str], bool] = lambda _: True, *, deviations: bool = True) -> Method:
    """The model, on all amounts or on those whose names are kept; logarithms are no amounts."""

    def method(case: Case, fitted: Integers, asked: Integers) -> Prediction:
        names = case.networks.feature_names
        amounts = [not name.startswith(_LOGARITHM) and keep(name) for name in names]
        choices, features = case.networks.choices, case.networks.features[:, amounts]
        model = ScratchModel(deviations=deviations)
        model.fit(choices[fitted], features[fitted], case.latency_ms[fitted])
        return model.predict(choices[asked], features[asked])

    return method


def _points(predict: Callable[[Case, Integers, Integers], Floats]) -> Method:
    """A method without sigma."""

    def method(case: Case, fitted: Integers, asked: Integers) -> Prediction:
        latency_ms = np.maximum(predict(case, fitted, asked), case.latency_ms[fitted].min())
        return Prediction(latency_ms, np.full(len(asked), np.nan), np.ones(len(asked), bool))

    return method


def _linear(columns: Callable[[Case], Floats]) -> Method:
    """Ridge in milliseconds on relative errors, those of next to nothing held down."""

    def predict(case: Case, fitted: Integers, asked: Integers) -> Floats:
        features, measured = StandardScaler().fit_transform(columns(case)), case.latency_ms[fitted]
        unit = np.maximum(measured / np.median(measured), 0.2)
        ridge = RidgeCV(np.logspace(-6, 4, 21))
        ridge.fit(features[fitted], measured, sample_weight=unit**-2)
        return ridge.predict(features[asked])

    return _points(predict)


def _logarithmic(regressor: Callable[[int], Any], columns: Callable[[Case], Floats]) -> Method:
    """A regressor of log milliseconds on standardised columns."""

    def predict(case: Case, fitted: Integers, asked: Integers) -> Floats:
        features = StandardScaler().fit_transform(columns(case))
        target = np.log(case.latency_ms[fitted])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = regressor(len(fitted)).fit(features[fitted], target - target.mean())
        # an extrapolated logarithm may be anything; an exponential of it should stay a number
        spread = np.ptp(target)
        away = np.clip(model.predict(features[asked]), -2.0 * spread, 2.0 * spread)
        return np.exp(away + target.mean())

    return _points(predict)


class _GaussianProcess:
    """Kernel tuned on at most 300 networks, conditioned on all."""

    def fit(self, X: Floats, y: Floats) -> GaussianProcessRegressor:  # noqa: N803
        kernel = ConstantKernel(1.0) * RBF(10.0, (1e-1, 1e4)) + WhiteKernel(0.1, (1e-6, 1e1))
        tuned = GaussianProcessRegressor(kernel, normalize_y=True).fit(X[:300], y[:300])
        if len(X) <= 300:
            return tuned
        fixed = GaussianProcessRegressor(tuned.kernel_, optimizer=None, normalize_y=True)
        return fixed.fit(X, y)


def _macs(case: Case) -> Floats:
    counted = ("dense MACs", "depthwise MACs")
    kept = [name in counted for name in case.networks.feature_names]
    return case.networks.features[:, kept].sum(1, keepdims=True)


def _onehot(case: Case) -> Floats:
    choices = case.networks.choices.T
    return np.concatenate([np.eye(slot.max() + 1)[slot] for slot in choices], axis=1)


def _everything(case: Case) -> Floats:
    return np.column_stack([_onehot(case), case.networks.features])


def _logarithms(case: Case) -> Floats:
    kept = [name.startswith(_LOGARITHM) for name in case.networks.feature_names]
    return case.networks.features[:, kept]


def _ridge(_: int) -> RidgeCV:
    return RidgeCV(np.logspace(-4, 4, 17))


def _boosting(_: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(
        learning_rate=0.05, max_iter=300, max_leaf_nodes=15, min_samples_leaf=5, random_state=0
    )


def _perceptron(n: int) -> MLPRegressor:
    rounds = max(100, 60_000 // n)
    return MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=rounds, random_state=0)


BASELINES: dict[str, Method] = {
    "MACs": _linear(_macs),
    "analytic, log-linear": _logarithmic(_ridge, _logarithms),
    "additive one-hot": _linear(_onehot),
    "gradient boosting": _logarithmic(_boosting, _everything),
    "MLP 64-64": _logarithmic(_perceptron, _everything),
    "Gaussian process": _logarithmic(lambda _: _GaussianProcess(), _everything),
}

_MERGED = ("distinct_", "plain_", "conv_relus")

ABLATION: dict[str, Method] = {
    "without deviations": scratch(deviations=False),
    "without the written reading": scratch(lambda name: not name.startswith("written:")),
    "without the wanted reading": scratch(lambda name: not name.startswith("wanted:")),
    "without equal and fused values": scratch(
        lambda name: not any(part in name for part in _MERGED)
    ),
    "counts of choices alone": scratch(lambda name: name.startswith("choices of")),
}


def _mean(
    runs: list[dict[str, float]], names: list[str] | tuple[str, ...] = _AVERAGED
) -> dict[str, float]:
    kept = [name for name in names if name in runs[0]]
    return {name: float(np.mean([run[name] for run in runs])) for name in kept}


def _by_samples(found: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Number of samples -> means over the columns."""
    numbers = [*next(iter(found.values()))]
    return {n: _mean([by_samples[n] for by_samples in found.values()]) for n in numbers}


def _plot(cases: dict[str, Case], samples: list[int], arguments: argparse.Namespace) -> None:
    """Parity and calibration of the model beside the record, of one seed."""
    parity, calibration = {}, {}
    for name, case in cases.items():
        for n, fitted, asked in draw(case, samples, 1, arguments.split):
            predicted, measured = scratch()(case, fitted, asked), case.latency_ms[asked]
            parity[f"{name}, {n}"] = (measured, predicted.latency_ms)
            calibration[f"{name}, {n}"] = (_LEVELS, _coverage(predicted, measured, _LEVELS))
    stem = arguments.out.with_suffix("")
    shown = dict(list(parity.items())[:6])
    plot_parity(shown, stem.with_name(f"{stem.name}_parity.svg"), "from scratch")
    plot_calibration(calibration, stem.with_name(f"{stem.name}_calibration.svg"), "from scratch")


def _print_table(record: dict[str, Any]) -> None:
    groups = {"model": record["by_samples"]} | record.get("baselines", {})
    for label, by_samples in (groups | record.get("ablation", {})).items():
        for n, errors in by_samples.items():
            print(
                f"{label:32} {n:>5}  Spearman {errors['spearman']:.4f}  "
                f"MAPE {100 * errors['mape']:6.2f} % "
                f"({100 * errors['mape_without_degenerate']:.2f} % without degenerate)  "
                f"within 10 % {100 * errors['within_10']:.1f} %"
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="CSV or gzipped CSV")
    parser.add_argument("--space", required=True, help="fbnet, or a space of search_core")
    parser.add_argument("--target", required=True, help="columns in ms, joined by commas")
    parser.add_argument("--samples", default="100,900", help="measured networks, joined by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--split",
        choices=["isomorphic", "random"],
        default="isomorphic",
        help="random asks for networks that are measured ones under another name as well",
    )
    parser.add_argument(
        "--each-row",
        action="store_true",
        help=f"take every row as measured itself, whatever {MEASURED_AS} says",
    )
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--out", type=Path, help="record to write; plots go beside it")
    parser.add_argument("--json", action="store_true", help="nothing but the last line on stdout")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
