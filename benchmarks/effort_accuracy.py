"""Does the effort told before a search is the effort it takes? Time and memory, case by case.

The machine is calibrated as a worker does it. Then, in a process of its own for each case, the
real `run_search` and `train_network` run for a bounded number of steps, and their seconds and
the peak of their resident memory stand beside what was predicted from the profile alone. The
decided network's MACs are kept to the middle of the space's band, for which the prediction
reckons with `search_core.effort.spending`.

    python -m benchmarks.effort_accuracy
    python -m benchmarks.effort_accuracy --data cifar10/ --out RECORD.json

Without `--data`, the spaces of CIFAR-10 run on noise of the same shape: a step does not care.
The last line is JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

from search_core.data.catalogue import dataset_info
from search_core.effort import MachineProfile, SearchPlan, predict, spending
from search_core.space.presets import get_space

BATCH_SIZE = 32


@dataclass(frozen=True)
class Case:
    """A search and the training after it, cut short.

    Attributes:
        epoch_steps: so many batches are an epoch.
    """

    space: str
    dataset: str
    estimator: str
    threads: int
    search_steps: int
    warmup_steps: int
    training_steps: int
    epoch_steps: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.space} {self.estimator} {self.threads}t"

    def plan(self) -> SearchPlan:
        """What the prediction is made from."""
        n_train = self.epoch_steps * BATCH_SIZE
        return SearchPlan(
            space=get_space(self.space),
            n_train=n_train,
            n_test=n_train // 4,
            batch_size=BATCH_SIZE,
            search_steps=self.search_steps,
            warmup_steps=self.warmup_steps,
            training_steps=self.training_steps,
            estimator=self.estimator,
        )


CASES = (
    Case("micro", "digits", "dsnas", 1, 352, 88, 352, 44),
    Case("micro", "digits", "dsnas_paired", 1, 352, 88, 88, 44),
    Case("micro", "digits", "proxyless_two_path", 1, 176, 44, 88, 44),
    Case("micro", "digits", "reinforce", 1, 132, 44, 88, 44),
    Case("nasbench201_n1", "cifar10", "dsnas", 1, 120, 24, 60, 60),
    Case("nasbench201", "cifar10", "dsnas_paired", 1, 40, 8, 24, 40),
    Case("spos_cifar", "cifar10", "dsnas", 1, 24, 6, 12, 24),
    Case("proxyless_cifar_mb", "cifar10", "dsnas", 1, 16, 4, 8, 16),
    Case("micro", "digits", "dsnas", 2, 352, 88, 352, 44),
    Case("spos_cifar", "cifar10", "dsnas", 2, 24, 6, 12, 24),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate, run every case, print the table and the record."""
    options = _options(arguments)
    if options.child:
        print(json.dumps(_child(json.loads(options.child), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.data is not None:  # decoded once, and cut to what the cases need
            part = Path(folder) / "part.npz"
            _in_child({"cut": str(part)}, 1, options)
            options.data = part
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    profiles: dict[int, MachineProfile] = {}
    rows = []
    for case in CASES:
        if case.threads not in options.threads or not case.name.startswith(options.only):
            continue
        if case.threads not in profiles:
            profiles[case.threads] = _calibrated(case.threads, options)
        rows.append(_row(case, profiles[case.threads], options))
        if not options.json:
            print(_line(rows[-1]), flush=True)
    record = _record(rows, profiles)
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record if options.json else record["summary"]))


def _row(case: Case, profile: MachineProfile, options: argparse.Namespace) -> dict[str, Any]:
    predicted = predict(case.plan(), profile, _decided(case))
    actual = _in_child({"case": asdict(case)}, case.threads, options)
    seconds = {phase: predicted.seconds_by_phase[phase] for phase in ("searching", "training")}
    return {
        **asdict(case),
        "predicted_seconds": seconds,
        "actual_seconds": actual["seconds"],
        "predicted_bytes": predicted.memory_bytes,
        "actual_bytes": actual["peak_bytes"],
        "ratio": {
            **{phase: seconds[phase] / actual["seconds"][phase] for phase in seconds},
            "seconds": sum(seconds.values()) / sum(actual["seconds"].values()),
            "memory": predicted.memory_bytes / actual["peak_bytes"],
        },
    }


def _decided(case: Case) -> Any:
    """The candidates of a network in the middle of the band of MACs."""
    _, table = get_space(case.space).slot_costs(lambda block: float(block.macs))
    rows = tuple(map(tuple, table))
    return spending(rows, sum(0.5 * (min(row) + max(row)) for row in rows))


def _calibrated(threads: int, options: argparse.Namespace) -> MachineProfile:
    started = perf_counter()
    document = _in_child({"calibrate": options.seconds}, threads, options)
    profile = MachineProfile.from_document(document)
    if not options.json:
        print(
            f"calibrated {threads} thread(s) in {perf_counter() - started:.0f} s, "
            f"{profile.error:.0%} typical error of a block left out",
            flush=True,
        )
    return profile


def _in_child(task: dict[str, Any], threads: int, options: argparse.Namespace) -> Any:
    command = [sys.executable, "-m", "benchmarks.effort_accuracy", "--child", json.dumps(task)]
    command += ["--child-threads", str(threads)]
    if options.data is not None:
        command += ["--data", str(options.data)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


# -- in a process of its own -------------------------------------------------------------


def _child(task: dict[str, Any], options: argparse.Namespace) -> Any:
    import torch

    from search_core.memory import keep_freed_memory

    keep_freed_memory()  # as attempts do
    torch.set_num_threads(options.child_threads)
    if "calibrate" in task:
        from predictor.agent.host import device_model
        from search_core.calibration import calibrate

        profile = calibrate(
            name=device_model(),
            seconds=task["calibrate"],
            modules=("search_core.search", "search_core.data.load"),
        )
        return profile.to_document()
    if "cut" in task:
        return _cut(options.data, Path(task["cut"]))
    return _run(Case(**task["case"]), options.data)


def _cut(folder: Path, part: Path) -> dict[str, Any]:
    """Write the first images of CIFAR-10 as a data set of its own."""
    import numpy as np

    from search_core.data.dataset import ImageDataset
    from search_core.data.load import load_dataset

    whole = load_dataset("cifar10", root=folder)
    assert isinstance(whole, ImageDataset)
    n_train = max(case.epoch_steps for case in CASES) * BATCH_SIZE
    np.savez(
        part,
        x_train=whole.train_images[:n_train].permute(0, 2, 3, 1).numpy(),
        y_train=whole.train_labels[:n_train].numpy(),
        x_test=whole.test_images[:n_train].permute(0, 2, 3, 1).numpy(),
        y_test=whole.test_labels[:n_train].numpy(),
    )
    return {"images": n_train}


def _run(case: Case, folder: Path | None) -> dict[str, Any]:
    """The real seconds of both phases, and the peak of this process's resident memory."""
    from search_core.config import SearchConfig
    from search_core.constraint import AugmentedLagrangian, Constraint
    from search_core.costs import macs_cost
    from search_core.search import run_search
    from search_core.train import WeightRecipe, accuracy, train_network

    space, data = get_space(case.space), _images(case, folder)
    total = case.search_steps + case.training_steps
    recipe = WeightRecipe(total, case.epoch_steps, BATCH_SIZE, learning_rate=0.05)
    config = SearchConfig(
        recipe=recipe,
        search_steps=case.search_steps,
        warmup_steps=case.warmup_steps,
        estimator=case.estimator,
        alpha_learning_rate=44.0 / case.search_steps,
    )
    cost = macs_cost(space)
    middle = cost.offset + sum(0.5 * (min(row) + max(row)) for row in cost.table)
    limit = Constraint("macs", cost, middle, AugmentedLagrangian(equality=True))
    started = perf_counter()
    found = run_search(space, config, data, [limit], report=_Keeper())
    searched = perf_counter()
    child = found.supernet.derive(found.decide([limit]))
    train_network(child, data, recipe, seed=0, start_step=case.search_steps, report=_Keeper())
    accuracy(child, data)
    return {
        "seconds": {"searching": searched - started, "training": perf_counter() - searched},
        "peak_bytes": _peak_bytes(),
    }


class _Keeper:
    """Keeps checkpoints as the service does."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()

    def __call__(self, event: Any) -> None:
        from search_core.checkpoints import save_checkpoint
        from search_core.events import CheckpointReady

        if isinstance(event, CheckpointReady):
            save_checkpoint(event.checkpoint, Path(self._folder.name) / "kept.pt")


def _images(case: Case, folder: Path | None) -> Any:
    """So many images that an epoch has the case's steps."""
    import torch

    from search_core.data.augmentation import Augmentation
    from search_core.data.dataset import ImageDataset
    from search_core.data.load import load_dataset

    n_train = case.epoch_steps * BATCH_SIZE
    n_test = n_train // 4
    if case.dataset == "digits" or folder is not None:
        bundled = case.dataset == "digits"
        whole = load_dataset("digits") if bundled else load_dataset("a part", root=folder)
        assert isinstance(whole, ImageDataset)
        return replace(
            whole,
            train_images=whole.train_images[:n_train].clone(),
            train_labels=whole.train_labels[:n_train].clone(),
            test_images=whole.test_images[:n_test].clone(),
            test_labels=whole.test_labels[:n_test].clone(),
            augmentation=whole.augmentation if bundled else Augmentation(shift_px=4, flip=True),
        )
    info = dataset_info(case.dataset)
    shape = (n_train, info.channels, info.resolution_px, info.resolution_px)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.arange(n_train) % info.n_classes
    return ImageDataset(
        name="noise",
        train_images=noise,
        train_labels=labels,
        test_images=noise[:n_test],
        test_labels=labels[:n_test],
        mean=(127.5,) * info.channels,
        std=(73.9,) * info.channels,
        n_classes=info.n_classes,
        augmentation=Augmentation(shift_px=4, flip=True),
    )


def _peak_bytes() -> int:
    """The most this process had resident; `getrusage` would count its parent's, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this system does not tell the peak of a process's memory")


# -- reporting ---------------------------------------------------------------------------


def _line(row: dict[str, Any]) -> str:
    parts = [f"{Case(**{k: row[k] for k in Case.__dataclass_fields__}).name:<40}"]
    parts += [
        f"{phase} {row['predicted_seconds'][phase]:6.2f} of "
        f"{row['actual_seconds'][phase]:6.2f} s ({row['ratio'][phase]:.2f})"
        for phase in ("searching", "training")
    ]
    parts.append(f"together {row['ratio']['seconds']:.2f}")
    parts.append(
        f"memory {row['predicted_bytes'] / 2**20:5.0f} of {row['actual_bytes'] / 2**20:5.0f} MiB"
        f" ({row['ratio']['memory']:.2f})"
    )
    return "  ".join(parts)


def _record(rows: Sequence[dict[str, Any]], profiles: dict[int, MachineProfile]) -> dict[str, Any]:
    errors = {
        name: [abs(row["ratio"][name] - 1.0) for row in rows] for name in ("seconds", "memory")
    }
    return {
        "command": "python -m benchmarks.effort_accuracy",
        "cpu_count": os.cpu_count(),
        "system": platform.system(),
        "profiles": [profile.to_document() for profile in profiles.values()],
        "cases": list(rows),
        "summary": {
            "cases": len(rows),
            **{f"{name}_mean_error": mean(found) for name, found in errors.items() if found},
            **{f"{name}_largest_error": max(found) for name, found in errors.items() if found},
        },
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10 in any of its forms; else noise")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="cases whose name starts so")
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing blocks")
    parser.add_argument("--json", action="store_true", help="print the record alone")
    parser.add_argument("--out", type=Path, help="write the record there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--child-threads", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
