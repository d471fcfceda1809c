"""Latency on devices nobody knows, from a few networks measured there and devices known already.

    python -m benchmarks.latency_transfer --table fbnet_latency_ms.csv.gz --task F3 --json
    python -m benchmarks.latency_transfer --table T.csv --space nasbench201 --sources a,b,c \
        --targets x,y --samples 20 --seeds 5 --baselines --json

Protocols: ``nasflat`` compares on every network of the table, those measured on the target
included, as NASFLAT does; ``heldout`` on networks that were measured on no device; ``help`` is
HELP's: its rows, and without the fastest and slowest tenth of the target's networks. A seed
chooses the pool that the target's networks are proposed from, nothing else.

The last line is JSON: means over targets, and for each target means over seeds.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.records import (
    last_line,
    new_record,
    plot_bars,
    plot_calibration,
    plot_parity,
    write_record,
)
from benchmarks.table_spaces import FBNET, Networks, networks_of
from benchmarks.tables import read_table
from predictor.errors import BadTableError
from predictor.evaluation import prediction_quality
from predictor.models.transfer import KERNELS, STACK, Transferred, TransferRegressor, propose
from predictor.models.transfer_references import Encoded, Measured, ReferenceModel, References

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVEL = 0.9
_REPORTED = ("spearman", "kendall", "mape", "within_5", "within_10", "p95", "bias")
_HELP_TEST = 1000
_HELP_SOURCES = {FBNET: 4000}
_HELP_SOURCES_ELSE = 900
_MOST_SOURCE_SAMPLES = 900  # a Gaussian process of more takes minutes
_SOURCE_SEED = 0
_CEILING_SAMPLES = 900

_GPUS = ("1080ti", "2080ti", "titan_rtx", "titanx", "titanxp")
_ND_SOURCES = "1080ti_1,1080ti_32,1080ti_{},silver_4114,silver_4210r,samsung_a50,pixel3,essential_ph_1,samsung_s7"  # noqa: E501
TASKS = {
    "ND": (_ND_SOURCES.format(256), "titan_rtx_256,gold_6226,fpga,pixel2,raspi4,eyeriss"),
    "FD": (_ND_SOURCES.format(64), "fpga,raspi4,eyeriss"),
    "F1": (
        "2080ti_1,essential_ph_1,silver_4114,titan_rtx_1,titan_rtx_32",
        "eyeriss,fpga,raspi4,samsung_a50,samsung_s7",
    ),
    "F2": (
        "essential_ph_1,gold_6226,gold_6240,pixel3,raspi4",
        "1080ti_1,1080ti_32,2080ti_32,titan_rtx_1,titanxp_1",
    ),
    "F3": (
        "essential_ph_1,pixel2,pixel3,raspi4,samsung_s7",
        "1080ti_1,1080ti_32,2080ti_1,titan_rtx_1,titan_rtx_32",
    ),
    "F4": (
        "1080ti_64,2080ti_1,eyeriss,gold_6226,gold_6240,raspi4,samsung_s7,silver_4210r,titan_rtx_1,titan_rtx_32",
        "1080ti_1,pixel2,essential_ph_1",
    ),
    "FA": (
        ",".join(f"{gpu}_{batch}" for gpu in _GPUS for batch in (1, 32, 64)),
        "gold_6226,essential_ph_1,samsung_s7,pixel2",
    ),
}
"""NASFLAT's splits of HELP's devices (`correlation_trainer/device_task_list.py`)."""


@dataclass(frozen=True)
class Rows:
    """Which rows of the table are used for what.

    Attributes:
        sources: measured on every source.
        candidates: may be measured on the target.
        test: compared on; a sample of the target is left out of it under ``heldout``.
    """

    sources: Integers
    candidates: Integers
    test: Integers


@dataclass(frozen=True)
class Sample:
    """What any method may know: the target's networks, measured, and all networks unmeasured."""

    networks: Networks
    encoded: Encoded
    rows: Integers
    latency_ms: Floats


Method = Callable[[Sample], Floats]
"""Milliseconds of every network of the table."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the protocol and print the record."""
    arguments = _arguments(argv)
    began = time.monotonic()
    table = read_table(arguments.table)
    networks = networks_of(arguments.space, table.architectures())
    sources = {name: table.latencies_ms(name) for name in arguments.sources}
    targets = {name: table.latencies_ms(name) for name in arguments.targets}
    chosen = _source_rows(arguments, len(networks))
    say = _Progress(began)

    say(f"{len(sources)} sources, {len(chosen)} networks each")
    references = References().fit(
        {
            name: Measured(networks.choices[chosen], networks.features[chosen], ms[chosen])
            for name, ms in sources.items()
        }
    )
    encoded = references.encode(networks.choices, networks.features)

    record = new_record("latency_transfer") | {
        "protocol": arguments.protocol,
        "space": arguments.space,
        "task": arguments.task,
        "samples": arguments.samples,
        "source_samples": len(chosen),
        "seeds": arguments.seeds,
        "networks": len(networks),
        "level": LEVEL,
    }
    runs: dict[str, list[_Run]] = {}
    for name, measured in targets.items():
        rows = _rows(arguments, chosen, measured, networks.degenerate)
        runs[name] = [
            _run(references, encoded, rows, measured, seed, arguments, networks.degenerate)
            for seed in range(arguments.seeds)
        ]
        say(f"{name}: Spearman {np.mean([run.quality['spearman'] for run in runs[name]]):.4f}")
    record["targets"] = {name: _summary(of) for name, of in runs.items()}
    record |= _means(record["targets"])

    def compare(method: Method, *, at_random: bool = False) -> dict[str, float]:
        summaries = {}
        for name, of in runs.items():
            measured, qualities = targets[name], []
            for run in of:
                rows = run.drawn if at_random else run.rows
                predicted = method(Sample(networks, encoded, rows, measured[rows]))
                qualities.append(_quality(predicted, measured, run.test))
            summaries[name] = _mean_of(qualities)
        return _mean_of(list(summaries.values())) | {
            f"{name} spearman": summary["spearman"] for name, summary in summaries.items()
        }

    if arguments.baselines:
        record["baselines"] = {}
        for name, method in _baselines().items():
            record["baselines"][name] = compare(method)
            say(f"baseline {name}: Spearman {record['baselines'][name]['spearman']:.4f}")
        record["ceiling"] = {
            name: _ceiling(networks, measured, runs[name][0].test)
            for name, measured in targets.items()
        }
    if arguments.ablation:
        record["ablation"] = {"everything": compare(_fitted(references))}
        for name, method in _ablations(references).items():
            record["ablation"][name] = compare(method)
            say(f"{name}: Spearman {record['ablation'][name]['spearman']:.4f}")
        whole = _fitted(references)
        record["ablation"]["without proposals"] = compare(whole, at_random=True)
    record["seconds"] = round(time.monotonic() - began, 1)
    write_record(record, arguments.out)
    if arguments.out:
        _plot(record, runs, targets, arguments.out)
    if not arguments.json:
        _print(record)
    last_line(record)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--space", help="fbnet, or a space of search_core by name")
    parser.add_argument("--sources", type=_names, help="columns, joined by commas")
    parser.add_argument("--targets", type=_names, help="columns, joined by commas")
    parser.add_argument("--task", choices=tuple(TASKS), help="one of NASFLAT's splits instead")
    parser.add_argument("--protocol", choices=("nasflat", "heldout", "help"), default="nasflat")
    parser.add_argument("--samples", type=int, help="of a target; 20, with help's protocol 10")
    parser.add_argument("--source-samples", type=int, help="of each source")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--baselines", action="store_true", help="and the noise ceiling")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--out", type=Path, help="write the record here, plots beside it")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    arguments = parser.parse_args(argv)
    if arguments.task:
        sources, targets = TASKS[arguments.task]
        arguments.sources = arguments.sources or _names(sources)
        arguments.targets = arguments.targets or _names(targets)
        arguments.space = arguments.space or (FBNET if arguments.task != "ND" else "nasbench201")
    missing = [n for n in ("space", "sources", "targets") if not getattr(arguments, n)]
    if missing:
        parser.error(f"give --task, or {' and '.join(f'--{name}' for name in missing)}")
    if arguments.samples is None:
        arguments.samples = 10 if arguments.protocol == "help" else 20
    both = set(arguments.sources) & set(arguments.targets)
    if both:
        parser.error(f"{', '.join(sorted(both))}: a target cannot be one of its own sources")
    return arguments


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _source_rows(arguments: argparse.Namespace, n: int) -> Integers:
    """Rows that every source was measured on: HELP's are the first, else random ones."""
    few = 800 if arguments.space == FBNET else 900
    wanted = min(arguments.source_samples or few, n)
    if arguments.protocol == "help":
        first = min(_HELP_SOURCES.get(arguments.space, _HELP_SOURCES_ELSE), n)
        return np.arange(min(arguments.source_samples or _MOST_SOURCE_SAMPLES, first))
    return np.sort(np.random.default_rng(_SOURCE_SEED).permutation(n)[:wanted])


def _rows(
    arguments: argparse.Namespace,
    sources: Integers,
    measured: Floats,
    degenerate: NDArray[np.bool_],
) -> Rows:
    """Networks of which nothing is left to run tell nothing of others: none is a candidate."""
    everything = np.arange(len(measured))
    if arguments.protocol == "nasflat":
        return Rows(sources, np.flatnonzero(~degenerate), everything)
    if arguments.protocol == "heldout":
        return Rows(sources, np.flatnonzero(~degenerate), np.setdiff1d(everything, sources))
    first = _HELP_SOURCES.get(arguments.space, _HELP_SOURCES_ELSE)
    if len(measured) < first + _HELP_TEST:
        raise BadTableError(
            f"HELP's protocol needs {first + _HELP_TEST} rows, the table has {len(measured)}"
        )
    train, test = everything[:first], everything[first : first + _HELP_TEST]
    candidates = _trimmed(train, measured)
    return Rows(sources, candidates[~degenerate[candidates]], _trimmed(test, measured))


def _trimmed(rows: Integers, measured: Floats) -> Integers:
    """Without the tenth that is fastest and the tenth that is slowest."""
    low, high = np.quantile(measured[rows], (0.1, 0.9))
    return rows[(measured[rows] >= low) & (measured[rows] <= high)]


@dataclass(frozen=True)
class _Run:
    """One target with one seed."""

    rows: Integers
    drawn: Integers  # as many candidates at random, for comparison
    test: Integers
    predicted: Transferred
    quality: dict[str, float]
    coverage: dict[float, float]
    weights: dict[str, float]
    alike: float
    nearest: str
    warning: str


def _run(
    references: References,
    encoded: Encoded,
    rows: Rows,
    measured: Floats,
    seed: int,
    arguments: argparse.Namespace,
    degenerate: NDArray[np.bool_],
) -> _Run:
    picked = rows.candidates[propose(encoded.rows(rows.candidates), arguments.samples, seed)]
    model = TransferRegressor(references).fit(encoded.rows(picked), measured[picked])
    predicted = model.predict(encoded)
    test = rows.test if arguments.protocol == "nasflat" else np.setdiff1d(rows.test, picked)
    quality = _quality(predicted.latency_ms, measured, test)
    computing = _quality(predicted.latency_ms, measured, test[~degenerate[test]])
    quality |= {f"{name}_without_degenerate": computing[name] for name in ("mape", "within_10")}
    coverage = {}
    for level in (0.5, 0.7, 0.8, 0.9, 0.95):
        low, high = predicted.interval_ms(level)
        inside = (low[test] <= measured[test]) & (measured[test] <= high[test])
        coverage[level] = float(inside.mean())
    low, high = predicted.interval_ms(LEVEL)
    quality["half_width"] = float(((high - low) / 2 / predicted.latency_ms)[test].mean())
    drawn = np.random.default_rng(seed).choice(rows.candidates, len(picked), replace=False)
    return _Run(
        picked,
        drawn,
        test,
        predicted,
        quality,
        coverage,
        model.weights_,
        model.alike_,
        model.nearest_,
        model.warning_,
    )


def _quality(predicted: Floats, measured: Floats, test: Integers) -> dict[str, float]:
    found = asdict(prediction_quality(predicted[test], measured[test]))
    return {name: found[name] for name in _REPORTED}


def _summary(runs: list[_Run]) -> dict[str, Any]:
    """Means over seeds."""
    return _mean_of([run.quality for run in runs]) | {
        "spearman_std": float(np.std([run.quality["spearman"] for run in runs])),
        "coverage": float(np.mean([run.coverage[LEVEL] for run in runs])),
        "weights": _mean_of([run.weights for run in runs]),
        "nearest": runs[0].nearest,
        "alike": float(np.mean([run.alike for run in runs])),
        "warned": sum(bool(run.warning) for run in runs),
    }


def _mean_of(each: list[dict[str, Any]]) -> dict[str, float]:
    numbers = [k for k, value in each[0].items() if isinstance(value, float)]
    return {name: float(np.mean([one[name] for one in each])) for name in numbers}


def _means(targets: dict[str, Any]) -> dict[str, float]:
    means = _mean_of(list(targets.values()))
    named = (
        "spearman",
        "mape",
        "mape_without_degenerate",
        "within_5",
        "within_10",
        "within_10_without_degenerate",
        "coverage",
        "half_width",
    )
    return {f"{name}_mean": means[name] for name in named}


def _baselines() -> dict[str, Method]:
    """Methods that know no other device, but for the one reference that is most alike."""

    def regress(make: Callable[[], Any], columns: Callable[[Sample], Floats]) -> Method:
        def method(sample: Sample) -> Floats:
            x = columns(sample)
            log = np.log(sample.latency_ms)
            spread = float(log.std())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted = make().fit(x[sample.rows], (log - log.mean()) / spread)
            guess = np.clip(fitted.predict(x), -10.0, 10.0)
            return np.exp(log.mean() + spread * guess)

        return method

    def features(sample: Sample) -> Floats:
        return sample.encoded.features

    def nearest(sample: Sample) -> Floats:
        scaled = sample.encoded.scaled
        log = np.log(sample.latency_ms)
        alike = [abs(np.corrcoef(column, log)[0, 1]) for column in scaled[sample.rows].T]
        return scaled[:, [int(np.argmax(alike))]]

    def gaussian_process() -> GaussianProcessRegressor:
        kernel = kernels.RBF(1.0, (1e-3, 1e3)) + kernels.WhiteKernel(0.1, (1e-9, 1e3))
        return GaussianProcessRegressor(kernel, random_state=0)

    def macs(sample: Sample) -> Floats:
        names = sample.networks.feature_names
        columns = [names.index(n) for n in ("dense MACs", "depthwise MACs") if n in names]
        return np.log1p(sample.networks.features[:, columns].sum(1, keepdims=True))

    penalties = np.logspace(-4, 3, 15)
    return {
        "macs": regress(LinearRegression, macs),
        "nearest reference": regress(LinearRegression, nearest),
        "analytic": regress(lambda: RidgeCV(penalties), features),
        "additive": regress(lambda: RidgeCV(penalties), lambda s: s.encoded.choices),
        "gradient boosting": regress(
            lambda: HistGradientBoostingRegressor(min_samples_leaf=3, random_state=0), features
        ),
        "mlp": regress(
            lambda: make_pipeline(
                StandardScaler(),
                MLPRegressor(
                    hidden_layer_sizes=(64, 64), solver="lbfgs", alpha=1.0, random_state=0
                ),
            ),
            features,
        ),
        "gaussian process": regress(gaussian_process, features),
    }


def _fitted(references: References, **changed: Any) -> Method:
    def method(sample: Sample) -> Floats:
        model = TransferRegressor(references, **changed)
        model.fit(sample.encoded.rows(sample.rows), sample.latency_ms)
        return model.predict(sample.encoded).latency_ms

    return method


def _ablations(references: References) -> dict[str, Method]:
    """The method without one of its parts."""
    whole = STACK["transfer"]
    found = {
        f"without {name}": _fitted(
            references,
            stack=STACK
            | {"transfer": whole._replace(kernels=tuple(k for k in KERNELS if k != name))},
        )
        for name in KERNELS
    }
    found["without robust noise"] = _fitted(references, robust=False)
    found["without stacking"] = _fitted(references, stack={"transfer": whole})
    found["without any reference"] = _fitted(
        references, stack={name: member for name, member in STACK.items() if name != "transfer"}
    )
    return found


def _ceiling(networks: Networks, measured: Floats, test: Integers) -> dict[str, float]:
    """What a model of the target's own reaches with many networks: noise limits it."""
    drawn = np.random.default_rng(_SOURCE_SEED).permutation(len(measured))
    own = drawn[: min(_CEILING_SAMPLES, len(drawn) // 2)]
    model = ReferenceModel().fit(
        Measured(networks.choices[own], networks.features[own], measured[own])
    )
    predicted = np.exp(model.predict(networks.choices, networks.features))
    return _quality(predicted, measured, np.setdiff1d(test, own))


class _Progress:
    def __init__(self, began: float) -> None:
        self._began = began

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", file=sys.stderr, flush=True)


def _plot(
    record: dict[str, Any], runs: dict[str, list[_Run]], targets: dict[str, Floats], out: Path
) -> None:
    parity, calibration = {}, {}
    for name, of in runs.items():
        shown = np.random.default_rng(0).permutation(of[0].test)[:200]
        parity[name] = (targets[name][shown], of[0].predicted.latency_ms[shown])
        levels = np.array(list(of[0].coverage))
        realised = np.mean([list(run.coverage.values()) for run in of], axis=0)
        calibration[name] = (levels, realised)
    title = f"{record['samples']} networks measured, {record['protocol']}"
    plot_parity(parity, out.with_name(f"{out.stem}_parity.svg"), title)
    plot_calibration(calibration, out.with_name(f"{out.stem}_calibration.svg"), title)
    if "ablation" in record:
        values = {name: of["spearman"] for name, of in record["ablation"].items()}
        plot_bars(values, out.with_name(f"{out.stem}_ablation.svg"), title, "mean Spearman")


def _print(record: dict[str, Any]) -> None:
    for name, of in record["targets"].items():
        print(
            f"{name:20s} Spearman {of['spearman']:.3f}  MAPE {of['mape']:.1%}  "
            f"within 10 % {of['within_10']:.0%}  coverage {of['coverage']:.0%}"
        )


if __name__ == "__main__":
    main()
