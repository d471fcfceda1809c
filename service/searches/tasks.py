"""A search from start to end, as a worker's attempt runs it: where search and prediction meet.

Read `run_search_job` downwards; it is the whole road from a budget to a measured network.
"""

import json
import platform
import random
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from predictor.kits import network_subject
from predictor.latency_term import LatencyTerm
from predictor.network import NetworkLatencyModel
from predictor.quantize import quantize
from search_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from search_core.config import SearchConfig
from search_core.constraint import AugmentedLagrangian, Constraint, Observed
from search_core.data.dataset import Dataset
from search_core.data.load import load_dataset
from search_core.errors import (
    BudgetUnreachableError,
    CheckpointError,
    SearchCoreError,
    SearchInterrupted,
)
from search_core.estimators.presets import ESTIMATORS
from search_core.events import CheckpointReady, Notice, Progress, Report, SearchEvent
from search_core.export import (
    check_parity,
    onnx_accuracy,
    onnx_bytes,
    parity_report,
    python_source,
    safetensors_bytes,
    torch_export_bytes,
)
from search_core.memory import keep_freed_memory
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.search import SearchResult, run_search
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace
from search_core.train import WeightRecipe, accuracy, recalibrate_batch_norm, train_network
from service.db.base import utc_now
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.latency_models.repository import active_model, get_model
from service.measurements.models import Measurement
from service.measurements.priorities import block_priorities
from service.measurements.repository import cancel_tasks, prioritise
from service.searches.lifecycle import end, enter_phase, start
from service.searches.measuring import NotMeasurableError, Stopwatch
from service.searches.models import SearchArtifact
from service.searches.repository import append_event, get_search
from service.searches.schedule import BATCH_SIZE, Schedule
from service.searches.schemas import SearchCreate
from service.targets.repository import get_target
from service.version import VERSION

HEADROOM = 0.015
"""A decoded network is only trained when it measures this far under the budget, relative;
the final file is measured later, on a device that may have drifted by a percent."""

MAX_DECODES = 12

UNSPENT = 0.02
LOOSENINGS = 2
"""How often a network that leaves more than `UNSPENT` of the budget unspent is thought over."""

_PARITY_IMAGES = 32
_RANGE_IMAGES = 128
"""Training images whose activations set the ranges of an int8 file."""


@dataclass(frozen=True)
class _Trained:
    """A network with its files and numbers.

    Attributes:
        onnx: the file that the target runs, in the target's batch and precision.
        test_accuracy: of that file.
    """

    architecture: Architecture
    network: Network
    onnx: bytes
    test_accuracy: float


def run_search_job(context: AttemptContext, search_id: str) -> None:
    """Run one attempt of a search to a terminal status.

    Raises:
        SearchInterrupted: the job was handed back; the next attempt resumes from the last
            checkpoint.
        LeaseLostError: another attempt may be running.
    """
    try:
        _Attempt(context, search_id).run()
    except SearchInterrupted:
        if context.handed_back:
            raise
        _end(context, search_id, "cancelled", code="user_cancelled", text="Cancelled.")
    except NotMeasurableError as error:
        _end(context, search_id, "failed", code=error.code, text=str(error))
    except SearchCoreError as error:
        _end(context, search_id, "failed", code="search_error", text=str(error))


class _Attempt:
    """The state one attempt carries from step to step."""

    def __init__(self, context: AttemptContext, search_id: str) -> None:
        self._context = context
        self._id = search_id
        with context.transaction() as (session, _):
            search = get_search(session, search_id, lock=True)
            self.spec = SearchCreate.model_validate(search.spec)
            self.space: SearchSpace = get_space(self.spec.search_space)
            row = (
                get_model(session, search.latency_model_id)  # as every attempt before this one
                if search.latency_model_id is not None
                else active_model(session, search.target_id, self.space.digest)
            )
            assert row is not None, "the job was released without a latency model"
            cancel_tasks(session, search_id)  # what an earlier attempt still waited for
            start(session, search, row.id)
            self.latency_model_id = row.id
            self.model = NetworkLatencyModel.from_document(row.document)
            self._model_report = row.report
            profile = get_target(session, search.target_id).profile
            self.precision, self.batch = str(profile["precision"]), int(profile["batch"])
        self.budget_ms = self.spec.latency_budget_ms
        self.latency = LatencyTerm(self.model, self.budget_ms)
        self.data: Dataset = load_dataset(
            self.spec.dataset, context.settings.datasets_dir / self.spec.dataset
        )
        self._should_stop = context.stop_check(
            lambda session: get_search(session, search_id).status == "cancelling"
        )
        self._stopwatch = Stopwatch(context, search_id, search.target_id, self._should_stop)
        self._checkpoints = context.settings.checkpoints_dir / search_id
        self._one_stage = ESTIMATORS[self.spec.algorithm]().trains_weights
        self._decodes: list[dict[str, Any]] = []
        self._measured: dict[Architecture, Measurement] = {}  # the latest of each

    def run(self) -> None:
        """Search, decide under the budget, train, verify, compare, publish."""
        torch.set_num_threads(self._context.settings.attempt_threads or torch.get_num_threads())
        keep_freed_memory()
        config = self._search_config()

        self._enter("searching")
        found = run_search(
            self.space,
            config,
            self.data,
            [self._latency_constraint()],
            report=self._reporter("search.pt"),
            should_stop=self._should_stop,
            resume=self._resume("search.pt"),
        )

        limit_ms = self._first_limit_ms
        while True:
            self._enter("deriving")
            try:
                child, limit_ms = self._decide(found, limit_ms)
            except BudgetUnreachableError:
                return self._publish_infeasible(found)
            self._enter("training")
            trained = self._train(child, found, config.recipe)
            self._enter("verifying")
            subject = network_subject(self.space, child)
            measured = self._stopwatch.measure(trained.onnx, subject, "certificate")
            self._measured[child] = measured
            if measured.latency_ms <= self.budget_ms:
                break
            limit_ms = self._tightened(child, measured.latency_ms)

        baseline = None
        if self.spec.random_baseline:
            self._enter("comparing")
            baseline = self._random_baseline(config.recipe, child)
        self._publish(trained, measured, baseline, found)

    def _search_config(self) -> SearchConfig:
        schedule = Schedule.of(self.spec.epochs, self.data.steps_per_epoch(BATCH_SIZE))
        recipe = WeightRecipe(
            total_steps=schedule.total_steps,
            warmup_steps=schedule.rising_steps,
            batch_size=BATCH_SIZE,
            learning_rate=0.05,
        )
        return SearchConfig(
            recipe=recipe,
            search_steps=schedule.search_steps,
            warmup_steps=schedule.warmup_steps,
            seed=self.spec.seed,
            estimator=self.spec.algorithm,
            # the logits must be able to travel as far in a short search as in a long one
            alpha_learning_rate=max(1e-3, 44.0 / schedule.search_steps),
        )

    def _latency_constraint(self) -> Constraint:
        """What networks within the budget are predicted at, if any are; the device decides."""
        reachable_ms = max(self._first_limit_ms, self.model.band_ms[0])
        return Constraint("latency", self.latency, reachable_ms, AugmentedLagrangian(equality=True))

    @property
    def _first_limit_ms(self) -> float:
        """The largest prediction that should measure under the budget with some headroom."""
        bound_ms = self.model.largest_within(self.budget_ms)
        return min(bound_ms, self.budget_ms * (1.0 - HEADROOM))

    def _decide(self, found: SearchResult, limit_ms: float) -> tuple[Architecture, float]:
        """The best architecture that measures under the budget, and the limit it was decoded at.

        The first network is decided against the upper bound of its prediction, so that it is
        likely to fit. The device has the last word: while a network measures over the budget,
        the limit is lowered below its prediction; when one leaves much of the budget unspent,
        the limit is raised, a few times at most, by what the model overestimated.

        Raises:
            BudgetUnreachableError: not even the fastest network measures under the budget.
        """
        aim_ms, fitting, loosened = self.budget_ms * (1.0 - HEADROOM), None, 0
        while len(self._decodes) < MAX_DECODES:
            child = self._decode(found, limit_ms)
            if child in self._measured:
                if fitting is None and self._measured[child].latency_ms <= aim_ms:
                    fitting = child, limit_ms
                break
            measured_ms = self._probe(found, child, limit_ms)
            corrected_ms = self.latency.exact(child) * aim_ms / measured_ms
            if measured_ms <= aim_ms:
                fitting = child, limit_ms
                if loosened == LOOSENINGS or measured_ms >= aim_ms * (1.0 - UNSPENT):
                    break
                loosened, limit_ms = loosened + 1, corrected_ms
            elif fitting is not None:
                break
            else:
                limit_ms = self._tightened(child, measured_ms)
        return fitting or (self._last_resort(), limit_ms)

    def _probe(self, found: SearchResult, child: Architecture, limit_ms: float) -> float:
        """Measure a decided network before anything is spent on its training."""
        network = found.supernet.derive(child)
        recalibrate_batch_norm(network, self.data)
        subject = network_subject(self.space, child)
        probe = self._stopwatch.measure(self._deployed(network), subject, "table")
        self._measured[child] = probe
        self._decodes.append(
            {
                "architecture": self.space.format(child),
                "limit_ms": limit_ms,
                "predicted_ms": self.latency.exact(child),
                "measured_ms": probe.latency_ms,
            }
        )
        return probe.latency_ms

    def _decode(self, found: SearchResult, limit_ms: float) -> Architecture:
        """The knapsack's answer, or the fastest network there is when nothing fits the limit."""
        limit = Constraint("latency", self.latency, limit_ms, Observed())
        try:
            return found.decide([limit])
        except BudgetUnreachableError as unreachable:
            return found.decide([replace(limit, budget=unreachable.minimum)])

    def _tightened(self, child: Architecture, measured_ms: float) -> float:
        """A limit that excludes `child` and corrects for what the model underestimated."""
        predicted_ms = self.latency.exact(child)
        aim_ms = self.budget_ms * (1.0 - HEADROOM)
        return min(aim_ms * predicted_ms / measured_ms, predicted_ms * (1.0 - 1e-6))

    def _last_resort(self) -> Architecture:
        """The slowest network that measured within the budget itself, headroom or not."""
        within = [a for a, m in self._measured.items() if m.latency_ms <= self.budget_ms]
        if not within:
            nearest_ms = min(m.latency_ms for m in self._measured.values())
            raise BudgetUnreachableError(self.budget_ms, nearest_ms)
        return max(within, key=self.latency.exact)

    def _train(self, child: Architecture, found: SearchResult, recipe: WeightRecipe) -> _Trained:
        """One-stage methods go on from the supernet's weights; the others train from scratch."""
        name = f"child-{'.'.join(map(str, child.choices))}.pt"
        if self._one_stage:
            return self._finish(child, found.supernet.derive(child), recipe, found.steps, name)
        graph, generator = self.space.graph(child), stream(self.spec.seed, "child")
        return self._finish(child, Network.initialised(graph, generator), recipe, 0, name)

    def _random_baseline(self, recipe: WeightRecipe, child: Architecture) -> dict[str, Any]:
        """A random architecture of the same budget, trained from scratch with as many steps."""
        architecture = self._random_within_budget(fallback=child)
        network = Network.initialised(
            self.space.graph(architecture), stream(self.spec.seed, "baseline")
        )
        trained = self._finish(architecture, network, recipe, 0, "baseline.pt")
        subject = network_subject(self.space, architecture)
        measured = self._stopwatch.measure(trained.onnx, subject, "table")
        return self._result_of(trained, measured)

    def _random_within_budget(self, fallback: Architecture) -> Architecture:
        """Uniform among the networks predicted at 90 to 100 % of the budget, if any is drawn."""
        rng = random.Random(self.spec.seed)
        drawn = [self.space.sample(rng) for _ in range(10_000)]
        fitting = [a for a in drawn if self.latency.exact(a) <= self.budget_ms]
        close = [a for a in fitting if self.latency.exact(a) >= 0.9 * self.budget_ms]
        if close:
            return close[0]
        return max(fitting, key=self.latency.exact) if fitting else fallback

    def _finish(
        self,
        architecture: Architecture,
        network: Network,
        recipe: WeightRecipe,
        start_step: int,
        checkpoint_name: str,
    ) -> _Trained:
        train_network(
            network,
            self.data,
            recipe,
            seed=self.spec.seed,
            start_step=start_step,
            report=self._reporter(checkpoint_name),
            should_stop=self._should_stop,
            resume=self._resume(checkpoint_name),
        )
        deployed = self._deployed(network)
        in_float = self.precision == "float32"
        right = accuracy(network, self.data) if in_float else onnx_accuracy(deployed, self.data)
        return _Trained(architecture, network, deployed, right)

    def _deployed(self, network: Network) -> bytes:
        """The file that the target runs: in its batch, and quantised where it computes in int8."""
        plain = onnx_bytes(network, batch=self.batch)
        if self.precision == "float32":
            return plain
        n_images = max(_RANGE_IMAGES, self.batch) // self.batch * self.batch
        images = self.data.plain_batch(self.spec.seed, 0, n_images).images
        return quantize(plain, [group.numpy() for group in torch.split(images, self.batch)])

    # -- what the outside sees ---------------------------------------------------------

    def _enter(self, phase: str) -> None:
        with self._context.transaction() as (session, _):
            enter_phase(session, get_search(session, self._id, lock=True), phase)

    def _reporter(self, checkpoint_name: str) -> Report:
        def report(event: SearchEvent) -> None:
            match event:
                case CheckpointReady(checkpoint):
                    save_checkpoint(checkpoint, self._checkpoints / checkpoint_name)
                case Progress() as progress:
                    self._report_progress(progress)
                case Notice(code, text):
                    self._warn(code, text)

        return report

    def _report_progress(self, progress: Progress) -> None:
        metrics = dict(progress.metrics)
        with self._context.transaction() as (session, _):
            search = get_search(session, self._id, lock=True)
            search.progress = {
                "completed": progress.completed,
                "total": progress.total,
                "unit": "step",
                "remaining_seconds": progress.remaining_seconds,
                "metrics": metrics,
                "updated_at": utc_now().isoformat(),
            }
            data = {
                "phase": search.phase,
                "step": progress.completed,
                "total": progress.total,
                "remaining_seconds": progress.remaining_seconds,
                **metrics,
            }
            append_event(session, self._id, "metrics", data)
            if progress.probabilities is not None:
                worth = block_priorities(self.space, self._model_report, progress.probabilities)
                prioritise(session, search.target_id, worth)

    def _resume(self, checkpoint_name: str) -> Checkpoint | None:
        path: Path = self._checkpoints / checkpoint_name
        if not path.exists():
            return None
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            self._warn("checkpoint_unreadable", str(error))
            return None
        self._warn("resumed", f"from step {checkpoint.step} of {checkpoint_name}")
        return checkpoint

    def _warn(self, code: str, text: str) -> None:
        with self._context.transaction() as (session, _):
            get_search(session, self._id, lock=True)  # event numbers are given one at a time
            append_event(session, self._id, "warning", {"code": code, "text": text})

    # -- results -----------------------------------------------------------------------

    def _result_of(self, trained: _Trained, measured: Measurement) -> dict[str, Any]:
        return {
            **self._numbers(trained.architecture, measured),
            "test_accuracy": trained.test_accuracy,
        }

    def _numbers(self, architecture: Architecture, measured: Measurement) -> dict[str, Any]:
        return {
            "architecture": self.space.format(architecture),
            "predicted_ms": self.latency.exact(architecture),
            "measured": {
                "median_ms": measured.latency_ms,
                "p10_ms": measured.p10_ms,
                "p90_ms": measured.p90_ms,
                "n": measured.n,
                "measurement": measured.id,
            },
            "test_accuracy": None,
            "parameters": self.space.parameters(architecture),
            "macs": self.space.macs(architecture),
        }

    def _files(self, trained: _Trained, measured: Measurement) -> dict[str, tuple[bytes, str]]:
        """Content and media type of each file of the network, by name."""
        facts = {
            "architecture": self.space.format(trained.architecture),
            "space": f"{self.space.name}@{self.space.version}",
            "trained on": f"{self.spec.dataset}, mean {self.data.mean}, std {self.data.std}",
            "test accuracy": trained.test_accuracy,
            "latency": f"{measured.latency_ms:.4g} ms, the median of {measured.n} runs",
        }
        binary = "application/octet-stream"
        in_float = {"model_float32.onnx": (onnx_bytes(trained.network, batch=self.batch), binary)}
        return {
            "model.onnx": (trained.onnx, binary),
            **(in_float if self.precision != "float32" else {}),
            "network.pt2": (torch_export_bytes(trained.network), binary),
            "network.py": (python_source(trained.network, facts).encode(), "text/x-python"),
            "weights.safetensors": (safetensors_bytes(trained.network), binary),
        }

    def _publish(
        self,
        trained: _Trained,
        measured: Measurement,
        baseline: dict[str, Any] | None,
        found: SearchResult,
    ) -> None:
        """Write `succeeded` with every file; the one place that does."""
        assert measured.latency_ms <= self.budget_ms
        files = self._files(trained, measured)
        images = next(self.data.test_batches(_PARITY_IMAGES)).images
        contents = {name: content for name, (content, _) in files.items()}
        quantised = (
            {} if self.precision == "float32" else {"model.onnx": contents.pop("model.onnx")}
        )
        parity = check_parity(trained.network, contents, images)
        parity |= parity_report(trained.network, quantised, images)  # int8 differs; told, not held
        stored = {
            name: self._context.artifacts.put(content) for name, (content, _) in files.items()
        }
        assert stored["model.onnx"] == measured.model_sha256, "the file measured is the file kept"
        result = {
            "network": self._result_of(trained, measured),
            "random_baseline": baseline,
            "decodes": self._decodes,
            "frozen_slots": len(found.frozen),
            "onnx_sha256": stored["model.onnx"],
        }
        manifest = json.dumps(
            {
                "format": "tailor-manifest/1",
                "search": self._id,
                "spec": self.spec.model_dump(),
                "space": {
                    "name": self.space.name,
                    "version": self.space.version,
                    "digest": self.space.digest,
                },
                "latency_model": self.latency_model_id,
                "measurement": measured.id,
                "result": result,
                "preprocessing": {"mean": self.data.mean, "std": self.data.std},
                "parity": parity,  # largest absolute difference of scores, by file
                "files": stored,
                "software": {
                    "tailor": VERSION,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
            },
            indent=1,
            sort_keys=True,
        ).encode()
        files["manifest.json"] = (manifest, "application/json")
        stored["manifest.json"] = self._context.artifacts.put(manifest)
        with self._context.transaction() as (session, job):
            for name, (content, media_type) in files.items():
                session.add(
                    SearchArtifact(
                        search_id=self._id,
                        name=name,
                        sha256=stored[name],
                        size_bytes=len(content),
                        media_type=media_type,
                    )
                )
            search = get_search(session, self._id, lock=True)
            end(session, search, "succeeded", result=result)
            jobs.finish(session, job, "succeeded")
        rmtree(self._checkpoints, ignore_errors=True)

    def _publish_infeasible(self, found: SearchResult) -> None:
        """Nothing meets the budget on this device: say how near it comes, and with what."""
        nearest, measured = min(self._measured.items(), key=lambda item: item[1].latency_ms)
        result = {
            "network": self._numbers(nearest, measured),
            "random_baseline": None,
            "decodes": self._decodes,
            "frozen_slots": len(found.frozen),
            "onnx_sha256": measured.model_sha256,
        }
        text = (
            f"No network of {self.space.name} measured at or under {self.budget_ms:g} ms; "
            f"the nearest takes {measured.latency_ms:.4g} ms."
        )
        _end(
            self._context,
            self._id,
            "infeasible",
            code="budget_unreachable",
            text=text,
            result=result,
        )
        rmtree(self._checkpoints, ignore_errors=True)


def _end(
    context: AttemptContext,
    search_id: str,
    status: str,
    *,
    code: str,
    text: str,
    result: dict[str, Any] | None = None,
) -> None:
    """End search and job in one transaction, without an answer."""
    with context.transaction() as (session, job):
        end(
            session,
            get_search(session, search_id, lock=True),
            status,
            code=code,
            text=text,
            result=result,
        )
        job_status = {"infeasible": "succeeded"}.get(status, status)
        jobs.finish(session, job, job_status, text)
    rmtree(context.settings.checkpoints_dir / search_id, ignore_errors=True)
