"""What does a step of a search cost, beside plain training of the same path?

Plain training and every estimator run interleaved in one process on the same paths, weights and
images; a figure is the median of the quotients within a repeat. Plain training is the best loop
that we can write (channels last, fused SGD, gradients set to None); beside it stands the loop as
it is commonly written (NCHW, SGD as it comes). A search step is all that a search does in one,
the price of a budget and the logits' optimiser included.

    python -m benchmarks.search_cost --out benchmarks/results/RECORD.json
    python -m benchmarks.search_cost --quick --json
    python -m benchmarks.search_cost --space spos_imagenet --resolution 64 --batch 64
    python -m benchmarks.search_cost --device cuda

Memory that is resident is that of whole runs, `run_search` and `train_network`, each in a
process of its own. The last line of the output is JSON.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step_cases import (
    Bench,
    Step,
    at_resolution,
    interleaved,
    noise,
    ratios,
    repeated,
    sampled,
    saved_bytes,
    timed,
)
from search_core.config import SearchConfig
from search_core.estimators.presets import ESTIMATORS
from search_core.events import CheckpointReady, SearchEvent
from search_core.memory import keep_freed_memory
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_SEARCH
from search_core.randomness import stream
from search_core.search import run_search
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace
from search_core.train import WeightRecipe, train_network

ALPHA_EVERY = 5  # ProxylessNAS: weight steps for each step of the logits
FEW, MANY = 3, 12  # candidates
OFFICIAL_SCHEDULE = 1.57  # of the published code's default, measured apart

TARGETS = {
    "dsnas_step_ratio": 1.03,
    "proxyless_weight_ratio": 1.02,
    "proxyless_two_path_ratio": 0.90,
    "proxyless_recompute_ratio": 2.05,
    "proxyless_schedule_ratio": 1.20,
    "saved_bytes_ratio": 1.02,
    "saved_bytes_growth_ratio": 1.0,
    "resident_ratio": 1.05,
    "plain_vs_naive_ratio": 0.85,
    "candidates_growth_ratio": 1.03,
    "input_share": 0.02,
}
"""At most this; on a GPU plain training is to take at most half of the naive loop's time."""

MEANING = {
    "dsnas_step_ratio": "DSNAS step, weights and logits / plain step",
    "proxyless_weight_ratio": "ProxylessNAS weight step / plain",
    "proxyless_two_path_ratio": "ProxylessNAS two-path logits step / plain",
    "proxyless_recompute_ratio": "ProxylessNAS all-candidates logits step / plain",
    "proxyless_schedule_ratio": f"ProxylessNAS schedule, logits every {ALPHA_EVERY} / plain",
    "saved_bytes_ratio": "bytes saved for backward, worst single-path mode / plain",
    "saved_bytes_growth_ratio": f"the same with {MANY} candidates / with {FEW}",
    "resident_ratio": "resident memory of a search / of training, own weights apart",
    "plain_vs_naive_ratio": "plain step here / naive PyTorch step",
    "candidates_growth_ratio": f"step with {MANY} candidates / with {FEW}",
    "input_share": "drawing and augmenting a batch / plain step",
}

Figures = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and the figures as one line of JSON."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    space = get_space(options.space)
    if options.resolution:
        space = at_resolution(space, options.resolution)
    if options.resident is not None:
        print(json.dumps({"bytes": resident_bytes(options.resident, space, options)}))
        return
    record = _record(options, space)
    figures, details = measure(space, options)
    record |= {"figures": figures, "details": details}
    if not options.json:
        print(table(record))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(figures))


def measure(space: SearchSpace, options: argparse.Namespace) -> tuple[Figures, dict[str, Any]]:
    """Every figure, and what it was made from."""
    bench = Bench(space, options.batch, options.device, options.precision)
    quotients, milliseconds, saved = _steps(bench, options)
    figures = {f"{name}_ratio": median(values) for name, values in quotients.items()}
    names = {
        "dsnas_ratio": "dsnas_step_ratio",
        "weight_ratio": "proxyless_weight_ratio",
        "proxyless_ratio": "proxyless_recompute_ratio",
    }
    figures = {names.get(name, name): value for name, value in figures.items()}
    figures["plain_vs_naive_ratio"] = 1.0 / figures.pop("naive_ratio")
    figures["proxyless_schedule_ratio"] = (
        figures["proxyless_weight_ratio"] + figures["proxyless_two_path_ratio"] / ALPHA_EVERY
    )
    figures["saved_bytes_ratio"] = max(saved.values())
    growth = candidates_growth(space, options)
    figures |= growth
    figures["input_share"] = _input_share(space, options, milliseconds["plain"] / 1e3)
    if options.device == "cpu" and not options.quick:
        resident = {kind: _in_child(kind, options) for kind in ("search", "plain")}
        figures["resident_ratio"] = resident["search"] / resident["plain"]
    details: dict[str, Any] = {
        "milliseconds": milliseconds,
        "quotients": {
            name: {"low": min(values), "high": max(values), "n": len(values)}
            for name, values in quotients.items()
        },
        "saved_bytes_ratio": saved,
    }
    if not options.quick:
        details["profile"] = profiles(bench)
    return {name: round(value, 4) for name, value in sorted(figures.items())}, details


def _cases(bench: Bench, architecture: Architecture) -> dict[str, Step]:
    return {
        "plain": bench.plain(architecture),
        "naive": bench.naive(architecture),
        "weight": bench.weight_step(architecture),
        **{name: bench.search_step(name, architecture) for name in ESTIMATORS},
    }


def _steps(
    bench: Bench, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, float]]:
    """Quotients to plain of each case over all paths, median milliseconds, saved bytes."""
    quotients: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    saved: dict[str, list[float]] = {}
    for architecture in sampled(bench.space, options.paths):
        cases = _cases(bench, architecture)
        of_path = interleaved(cases, options.repeats, options.device)
        kept = {name: saved_bytes(step, bench.supernet) for name, step in cases.items()}
        for name in cases:
            seconds.setdefault(name, []).extend(of_path[name])
            if name != "plain":
                quotients.setdefault(name, []).extend(ratios(of_path, name, "plain"))
            if name not in ("plain", "naive", "reinforce"):  # which keeps nothing at all
                saved.setdefault(name, []).append(kept[name] / kept["plain"])
        del cases
    return (
        quotients,
        {name: 1e3 * median(values) for name, values in seconds.items()},
        {name: max(values) for name, values in saved.items()},
    )


def candidates_growth(space: SearchSpace, options: argparse.Namespace) -> Figures:
    """Time and saved bytes with `MANY` candidates in every slot, over those with `FEW`."""
    architecture = sampled(space, 1)[0]
    kinds = ("weight", "dsnas")
    cases, kept = {}, {}
    for n in (FEW, MANY):
        many = repeated(space, architecture, n)
        bench = Bench(many, options.batch, options.device, options.precision)
        path = bench.space.architecture([n - 1] * len(space.slots))
        cases[f"weight{n}"] = bench.weight_step(path)
        cases[f"dsnas{n}"] = bench.search_step("dsnas", path)
        interleaved({"dsnas": cases[f"dsnas{n}"]}, 1, options.device)
        kept[n] = saved_bytes(cases[f"dsnas{n}"], bench.supernet)
    seconds = interleaved(cases, 2 * options.repeats, options.device)
    growth = [median(ratios(seconds, f"{k}{MANY}", f"{k}{FEW}")) for k in kinds]
    return {
        "candidates_growth_ratio": max(growth),
        "saved_bytes_growth_ratio": kept[MANY] / kept[FEW],
    }


def _input_share(space: SearchSpace, options: argparse.Namespace, plain_seconds: float) -> float:
    data = noise(space, 4 * options.batch).to(options.device)
    draws = [
        timed(lambda step=step: data.training_batch(0, step, options.batch), options.device)
        for step in range(12)
    ]
    return median(draws) / plain_seconds


def _in_child(kind: str, options: argparse.Namespace) -> int:
    """Bytes resident in a process that does nothing but run `kind`."""
    arguments = ["--space", options.space, "--resolution", str(options.resolution)]
    arguments += ["--batch", str(options.batch), "--threads", str(options.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.search_cost", "--resident", kind, *arguments],
        # what is freed goes back at once, so that the heap's holes do not count
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


_OWN = ("supernet", "weight_optimizer", "network", "optimizer")
"""The parts of a checkpoint, of a search or of training, that a run cannot do without."""


def resident_bytes(kind: str, space: SearchSpace, options: argparse.Namespace) -> int:
    """Peak resident memory of this process over a run, less the run's own weights and momenta.

    Both runs are of one path, two epochs with their checkpoints; the search has as many copies
    of each block to choose from as the space has candidates.
    """
    architecture = sampled(space, 1)[0]
    data = noise(space, 4 * options.batch)
    recipe = WeightRecipe(8, 1, batch_size=options.batch, learning_rate=0.01)
    own: list[int] = []

    def report(event: SearchEvent) -> None:
        if isinstance(event, CheckpointReady):
            state = event.checkpoint.state
            parts = [state[name] for name in _OWN if name in state]
            own.append(sum(tensor.nbytes for part in parts for tensor in _tensors(part)))

    if kind == "search":
        many = repeated(space, architecture, space.n_candidates)
        run_search(many, SearchConfig(recipe, 8, 1), data, report=report)
    else:
        graph = space.graph(architecture)
        network = Network.initialised(graph, stream(0, "bench weights"), BN_EPS_SEARCH)
        train_network(network, data, recipe, seed=0, report=report)
    peak = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return peak - own[-1]


def _tensors(state: object) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)


def profiles(bench: Bench) -> dict[str, dict[str, float]]:
    """Where the time of a step goes, as shares of it: by torch's profiler, over three steps."""
    architecture = sampled(bench.space, 1)[0]
    cases = {
        "plain": bench.plain(architecture),
        "dsnas": bench.search_step("dsnas", architecture),
        "proxyless_two_path": bench.search_step("proxyless_two_path", architecture),
        "proxyless": bench.search_step("proxyless", architecture),
    }
    activities = [ProfilerActivity.CPU]
    if bench.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    shares = {}
    for name, step in cases.items():
        for _ in range(2):
            step()
        with profile(activities=activities) as profiler:
            for _ in range(3):
                step()
        events = profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        parts: dict[str, float] = {}
        for event in events:
            part = _part(event.key)
            parts[part] = parts.get(part, 0.0) + event.self_cpu_time_total / total
        shares[name] = {part: round(share, 4) for part, share in sorted(parts.items())}
        shares[name]["aten_calls"] = sum(e.count for e in events if e.key.startswith("aten::")) / 3
    return shares


def _part(key: str) -> str:
    if "convolution_backward" in key:
        return "convolution backward"
    if "conv" in key and key.startswith("aten::"):
        return "convolution"
    if "batch_norm_backward" in key:
        return "batch norm backward"
    if "batch_norm" in key:
        return "batch norm"
    if any(word in key for word in ("hardtanh", "clamp", "relu")):
        return "activations"
    if any(word in key for word in ("sgd", "SGD", "adam", "Adam")):
        return "optimisers"
    if key.startswith("aten::"):
        return "other operations"
    return "autograd and the rest"


def table(record: Mapping[str, Any]) -> str:
    """The figures beside their targets, every estimator, and where the time goes."""
    figures, details = record["figures"], record["details"]
    lines = [
        "{space}, batch {batch}, {device} {precision}, {threads} threads, "
        "{paths} paths x {repeats} repeats"
        "".format_map(record),
        "",
        f"| {'figure':64} | median | target |",
        f"|{'-' * 66}|--------|--------|",
    ]
    for name, meaning in MEANING.items():
        if name in figures:
            limit = 0.5 if name == "plain_vs_naive_ratio" and _cuda(record) else TARGETS[name]
            lines.append(f"| {meaning:64} | {figures[name]:6.3f} | {limit:6.2f} |")
    lines += ["", f"(the published ProxylessNAS schedule: {OFFICIAL_SCHEDULE})", ""]
    lines += [f"{'step':24} {'ms':>9} {'/ plain':>8} {'low':>7} {'high':>7} {'saved':>7}"]
    for name, milliseconds in details["milliseconds"].items():
        quotients = details["quotients"].get(name)
        between = (
            f"{milliseconds / details['milliseconds']['plain']:8.3f} "
            f"{quotients['low']:7.3f} {quotients['high']:7.3f}"
            if quotients
            else f"{1.0:8.3f} {'':7} {'':7}"
        )
        saved = details["saved_bytes_ratio"].get(name)
        lines.append(
            f"{name:24} {milliseconds:9.2f} {between} {'' if saved is None else f'{saved:7.3f}'}"
        )
    for name, shares in details.get("profile", {}).items():
        spread = ", ".join(
            f"{part} {share:.1%}"
            for part, share in sorted(shares.items(), key=lambda item: -item[1])
            if part != "aten_calls"
        )
        lines.append(f"{name}: {spread}; {shares['aten_calls']:.0f} aten calls a step")
    return "\n".join(lines)


def _cuda(record: Mapping[str, Any]) -> bool:
    return str(record["device"]).startswith("cuda")


def _record(options: argparse.Namespace, space: SearchSpace) -> dict[str, Any]:
    given = shlex.join(["python", "-m", "benchmarks.search_cost", *options.given])
    processor = torch.cuda.get_device_name() if options.device != "cpu" else platform.processor()
    return {
        "command": given,
        "space": space.name,
        "batch": options.batch,
        "device": options.device,
        "precision": options.precision,
        "processor": processor or platform.machine(),
        "threads": torch.get_num_threads(),
        "paths": options.paths,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--space", default="proxyless_imagenet", help="a preset, by name")
    parser.add_argument(
        "--resolution", type=int, help="side of the images in pixels; 0: the space's own"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], help="of all but the naive loop"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--paths", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    parser.add_argument("--out", type=Path, help="where to write the whole record")
    parser.add_argument("--resident", choices=["search", "plain"], help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.given = given
    cuda = options.device.startswith("cuda")
    if options.resolution is None:
        own = options.space != "proxyless_imagenet"
        options.resolution = 0 if own else 32 if cuda else 64
    if options.batch is None:
        options.batch = 256 if cuda else 32 if options.quick else 64
    if options.precision is None:
        options.precision = "bfloat16" if cuda else "float32"
    if options.quick:
        options.paths, options.repeats = min(options.paths, 2), min(options.repeats, 9)
    return options


if __name__ == "__main__":
    if "--resident" not in sys.argv:
        keep_freed_memory()  # for every loop alike, the naive one as well
    main()
