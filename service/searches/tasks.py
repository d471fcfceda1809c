"""A search from start to end, as a worker's attempt runs it: where search and prediction meet.

Read `run_search_job`, then `_Attempt.run` downwards: it is the whole road from budgets to
measured networks. `deciding` chooses networks, `files` exports them.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from sqlalchemy.orm import Session

from predictor.kits import network_subject
from predictor.latency_term import LatencyTerm
from predictor.measurements import Effort
from predictor.quantize import quantize
from search_core.baselines import hand_made_architecture, random_architecture
from search_core.checkpoints import Checkpoint
from search_core.config import SearchConfig
from search_core.data.dataset import Dataset
from search_core.errors import (
    BudgetUnreachableError,
    CheckpointError,
    SearchCoreError,
    SearchInterrupted,
)
from search_core.estimators.presets import ESTIMATORS
from search_core.events import CheckpointReady, Notice, Progress, Report, SearchEvent
from search_core.export import onnx_bytes, onnx_right_labels
from search_core.memory import keep_freed_memory
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.search import (
    SearchResult,
    WarmStart,
    finished_search,
    run_search,
)
from search_core.space.presets import get_space
from search_core.space.space import Architecture, SearchSpace
from search_core.train import WeightRecipe, recalibrate_batch_norm, right_labels, train_network
from service.agents.signing import ensure_signer
from service.datasets.known import find_dataset
from service.datasets.load import open_dataset
from service.db.base import utc_now
from service.jobs import repository as jobs
from service.jobs.context import AttemptContext
from service.latency_models.documents import parsed
from service.latency_models.repository import active_model, get_model
from service.measurements.models import Measurement
from service.measurements.priorities import block_priorities
from service.measurements.repository import cancel_tasks, prioritise
from service.searches.checkpoints import CheckpointFolder, read_checkpoint
from service.searches.creation import SUPERNET
from service.searches.deciding import Aim, Decider, Goal, decode
from service.searches.files import (
    Files,
    add_manifest,
    add_network,
    search_section,
    software,
)
from service.searches.lifecycle import end, enter_phase, paused, start
from service.searches.limits import RunLimit
from service.searches.measuring import NotMeasurableError, Stopwatch, too_noisy
from service.searches.models import Search, SearchArtifact
from service.searches.repository import (
    append_event,
    get_artifact,
    get_search,
    origin_of,
    targets_of,
)
from service.searches.schedule import BATCH_SIZE, Schedule
from service.searches.schemas import SearchCreate
from service.searches.statistics import accuracy_gap, accuracy_interval
from service.targets.repository import get_target

_SEARCH = "search.pt"
_RANGE_IMAGES = 128
"""Training images whose activations set the ranges of an int8 file."""


def run_search_job(context: AttemptContext, search_id: str) -> None:
    """Run one attempt of a search to a terminal status, or until it is paused.

    Raises:
        SearchInterrupted: the job was handed back; the next attempt resumes from the last
            checkpoint.
        LeaseLostError: another attempt may be running.
    """
    attempt = _Attempt(context, search_id)
    try:
        attempt.run()
    except SearchInterrupted:
        if context.handed_back or not attempt.stop():
            raise
    except BudgetUnreachableError as error:  # before any training
        attempt.end("infeasible", "budget_unreachable", str(error))
    except NotMeasurableError as error:
        attempt.end("failed", error.code, str(error))
    except SearchCoreError as error:
        attempt.end("failed", "search_error", str(error))


@dataclass(frozen=True)
class _Answer:
    """A network that was decided, trained and measured.

    Attributes:
        deployed: the files that targets run, by precision and batch.
        right: (n_test,) which test images it labels rightly, as the first target runs it.
        measured: of these very files, one an aim.
    """

    architecture: Architecture
    network: Network
    deployed: dict[tuple[str, int], bytes]
    right: torch.Tensor
    measured: Sequence[Measurement]


@dataclass(frozen=True)
class _Miss:
    """The network that came nearest to a goal that none meets; as it was probed, untrained."""

    architecture: Architecture
    measured: Sequence[Measurement]


class _Attempt:
    """The state one attempt carries from step to step."""

    def __init__(self, context: AttemptContext, search_id: str) -> None:
        self._context = context
        self._id = search_id
        settings = context.settings
        with context.transaction() as (session, _):
            search = get_search(session, search_id, lock=True)
            self.spec = SearchCreate.model_validate(search.spec)
            self.kind, self._parent_id = search.kind, search.parent_id
            self.space: SearchSpace = get_space(self.spec.search_space)
            self._dataset = find_dataset(session, search.owner, self.spec.dataset)
            cancel_tasks(session, search_id)  # what an earlier attempt still waited for
            start(session, search)
            self.goals = self._goals(session, search)
            self.latency_models = {
                row.target_id: row.latency_model_id for row in targets_of(session, search_id)
            }
            self._signer = ensure_signer(session)
        self._device = torch.device(
            "cuda" if settings.attempt_device == "cuda" and torch.cuda.is_available() else "cpu"
        )
        self._checkpoints = CheckpointFolder(settings.resolved_checkpoints_url, search_id)
        self._limit = RunLimit(context, self.spec.limits)
        self._should_stop = self._limit.stop_check(context, search_id)
        self._stopwatches = {
            target_id: Stopwatch(context, search_id, target_id, self._should_stop)
            for target_id in self.latency_models
        }
        self._one_stage = ESTIMATORS[self.spec.algorithm]().trains_weights
        self._decodes: list[dict[str, Any]] = []

    def _goals(self, session: Session, search: Search) -> tuple[Goal, ...]:
        """What is to be found; the latency models stay those of the first attempt."""
        models = {}
        for row in targets_of(session, search.id):
            if row.latency_model_id is None:
                active = active_model(session, row.target_id, self.space.digest)
                assert active is not None, "the job was released without a latency model"
                row.latency_model_id = active.id
            models[row.target_id] = get_model(session, row.latency_model_id)
        search.latency_model_id = models[search.target_id].id
        self._model_reports = {target: row.report for target, row in models.items()}
        several, aims = len(self.spec.budgets) > 1, []
        for place, budget in enumerate(self.spec.budgets, start=1):
            profile = get_target(session, budget.target).profile
            model = parsed(models[budget.target])
            aims.append(
                Aim(
                    name=f"latency_{place}" if several else "latency",
                    target_id=budget.target,
                    budget_ms=budget.latency_budget_ms,
                    model=model,
                    latency=LatencyTerm(model, budget.latency_budget_ms),
                    precision=str(profile["precision"]),
                    batch=int(profile["batch"]),
                )
            )
        if self.spec.together == "each":
            return tuple(Goal((aim,)) for aim in aims)
        return (Goal(tuple(aims)),)

    def run(self) -> None:
        """Search, and for each goal: decide, train, verify; then compare and publish."""
        torch.set_num_threads(self._context.settings.attempt_threads or torch.get_num_threads())
        keep_freed_memory()
        self.data: Dataset = open_dataset(
            self._context.settings, self._context.artifacts, self._dataset
        ).to(self._device)
        config = self._search_config()

        self._enter("searching")
        found = self._search(config)
        if self.kind == "reproduce":
            return self._compare_with_the_first(found)

        answers: list[tuple[Goal, _Answer | _Miss]] = []
        met: list[tuple[Goal, _Answer]] = []
        for place, goal in enumerate(self.goals):
            answer = self._answer(place, goal, found, config.recipe)
            answers.append((goal, answer))
            if isinstance(answer, _Answer):
                met.append((goal, answer))
            elif self.kind != "derive" or (place + 1 == len(self.goals) and not met):
                return self._publish_infeasible(goal, answer, found)

        baselines = self._baselines(*met[0], config.recipe)
        return self._publish(answers, met, baselines, found)

    # -- the search --------------------------------------------------------------------

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
            warmup_steps=0 if self.spec.warm_start else schedule.warmup_steps,
            seed=self.spec.seed,
            estimator=self.spec.algorithm,
            # the logits must be able to travel as far in a short search as in a long one
            alpha_learning_rate=max(1e-3, 44.0 / schedule.search_steps),
        )

    def _search(self, config: SearchConfig) -> SearchResult:
        """Search from where the last attempt stood, or from where this kind of search begins."""
        if self.kind == "derive":
            with self._context.database.reading() as session:
                origin = origin_of(session, get_search(session, self._id), "derive")
            return finished_search(self.space, config, self._supernet_of(origin.id))
        constraints = [aim.constraint for goal in self.goals for aim in goal.aims]
        if self.spec.together == "each":  # one search serves all; it aims at the middle
            constraints = sorted(constraints, key=lambda c: c.budget)
            constraints = [constraints[len(constraints) // 2]]
        stood_at, warm_start = self._beginning()
        resume = self._resume(_SEARCH)
        if resume is None and stood_at is not None:
            self._checkpoints.save(_SEARCH, stood_at)
            resume = stood_at
        return run_search(
            self.space,
            config,
            self.data,
            constraints,
            device=self._device,
            report=self._reporter(_SEARCH),
            should_stop=self._should_stop,
            resume=resume,
            warm_start=warm_start,
        )

    def _beginning(self) -> tuple[Checkpoint | None, WarmStart | None]:
        """Where the parent stood, if only its time was extended; and what it all began from."""
        stopped_id = None
        with self._context.database.reading() as session:
            search = get_search(session, self._id)
            if search.kind == "reproduce" and search.parent_id is not None:
                search = get_search(session, search.parent_id)
            while search.kind == "extend" and search.parent_id is not None:
                parent = get_search(session, search.parent_id)
                if search.spec["epochs"] != parent.spec["epochs"]:
                    break
                if self.kind == "extend":
                    stopped_id = stopped_id or parent.id
                search = parent
            is_whole = search.kind == "extend"
            begun_from = search.parent_id if is_whole else search.spec.get("warm_start")
        stood_at = self._supernet_of(stopped_id) if stopped_id else None
        if begun_from is None:
            return stood_at, None
        return stood_at, WarmStart(self._supernet_of(begun_from), is_whole)

    def _supernet_of(self, search_id: str) -> Checkpoint:
        with self._context.database.reading() as session:
            sha256 = get_artifact(session, search_id, SUPERNET).sha256
        return read_checkpoint(self._context.artifacts.get(sha256))

    # -- a network for a goal ----------------------------------------------------------

    def _answer(
        self, place: int, goal: Goal, found: SearchResult, recipe: WeightRecipe
    ) -> _Answer | _Miss:
        """The network that meets a goal on its devices, or the one that comes nearest."""

        def probe(child: Architecture) -> Sequence[Measurement]:
            network = found.supernet.derive(child).to(self._device)
            recalibrate_batch_norm(network, self.data)
            files = {form: self._deployed(network, form) for form in _forms(goal)}
            return self._measure(goal, child, files, "table")

        def log(line: dict[str, Any]) -> None:
            self._decodes.append({"goal": place, **line} if len(self.goals) > 1 else line)

        decider = Decider(goal, found, probe, log)
        limits = decider.first_limits
        while True:
            self._enter("deriving")
            try:
                child, limits = decider.decide(limits)
            except BudgetUnreachableError:
                return self._miss(decider)
            self._enter("training")
            network = self._train(child, found, recipe)
            deployed = {form: self._deployed(network, form) for form in _forms(goal)}
            self._enter("verifying")
            measured = self._measure(goal, child, deployed, "certificate")
            within = zip(measured, goal.aims, strict=True)
            if all(m.latency_ms <= aim.budget_ms for m, aim in within):
                right = self._right(network, goal.aims[0], deployed)
                return _Answer(child, network, deployed, right, measured)
            limits = decider.failed(child, measured, limits)

    def _miss(self, decider: Decider) -> _Miss:
        """What comes nearest to a goal; a device that was busy has not said that none meets it."""
        nearest = decider.nearest()
        measured = decider.measured[nearest]
        for measurement in measured:
            if measurement.flagged:
                raise too_noisy(
                    "no network measured within the budget, and the nearest", measurement
                )
        return _Miss(nearest, measured)

    def _measure(
        self,
        goal: Goal,
        architecture: Architecture,
        files: dict[tuple[str, int], bytes],
        effort: Effort,
    ) -> list[Measurement]:
        subject = network_subject(self.space, architecture)
        return [
            self._stopwatches[aim.target_id].measure(files[aim.file_form], subject, effort)
            for aim in goal.aims
        ]

    def _train(self, child: Architecture, found: SearchResult, recipe: WeightRecipe) -> Network:
        """One-stage methods go on from the supernet's weights; the others train from scratch."""
        name = f"child-{'.'.join(map(str, child.choices))}.pt"
        start_step = found.steps if self._one_stage or self.kind == "derive" else 0
        if self.spec.train_epochs is not None:
            more = self.spec.train_epochs * self.data.steps_per_epoch(BATCH_SIZE)
            recipe = replace(recipe, total_steps=start_step + more)
        if start_step:
            return self._trained(found.supernet.derive(child), recipe, start_step, name)
        network = Network.initialised(self.space.graph(child), stream(self.spec.seed, "child"))
        return self._trained(network, recipe, 0, name)

    def _trained(
        self, network: Network, recipe: WeightRecipe, start_step: int, name: str
    ) -> Network:
        network = network.to(self._device)
        if recipe.total_steps <= start_step:
            recalibrate_batch_norm(network, self.data)
            return network
        train_network(
            network,
            self.data,
            recipe,
            seed=self.spec.seed,
            start_step=start_step,
            report=self._reporter(name),
            should_stop=self._should_stop,
            resume=self._resume(name),
        )
        return network

    def _deployed(self, network: Network, form: tuple[str, int]) -> bytes:
        """The file that a target runs: in its batch, quantised where it computes in int8."""
        precision, batch = form
        plain = onnx_bytes(deepcopy(network).cpu(), batch=batch)
        if precision == "float32":
            return plain
        n_images = max(_RANGE_IMAGES, batch) // batch * batch
        images = self.data.plain_batch(self.spec.seed, 0, n_images).images.cpu()
        return quantize(plain, [group.numpy() for group in torch.split(images, batch)])

    def _right(
        self, network: Network, aim: Aim, deployed: dict[tuple[str, int], bytes]
    ) -> torch.Tensor:
        """Which test images the network labels rightly, as its first target runs it."""
        if aim.precision == "float32":
            return right_labels(network, self.data)
        return onnx_right_labels(deployed[aim.file_form], self.data)

    # -- comparing ---------------------------------------------------------------------

    def _baselines(self, goal: Goal, answer: _Answer, recipe: WeightRecipe) -> list[dict[str, Any]]:
        """Networks that nobody searched for, trained from scratch with as many steps."""
        seed = self.spec.seed
        asked = {}
        if self.spec.random_baseline:  # where no draw fits, only what was found does
            drawn = random_architecture(self.space, goal.spent, seed)
            asked["random"] = drawn or answer.architecture
        if self.spec.hand_made_baseline:
            drawn = hand_made_architecture(self.space, goal.spent)
            asked["hand_made"] = drawn or answer.architecture
        if not asked:
            return []
        self._enter("comparing")
        compared = []
        for kind, architecture in asked.items():
            graph = self.space.graph(architecture)
            network = Network.initialised(graph, stream(seed, "baseline"))
            network = self._trained(network, recipe, 0, f"{kind}.pt")
            deployed = {form: self._deployed(network, form) for form in _forms(goal)}
            measured = self._measure(goal, architecture, deployed, "table")
            right = self._right(network, goal.aims[0], deployed)
            trained = _Answer(architecture, network, deployed, right, measured)
            only_found = int((answer.right & ~right).sum())
            only_it = int((right & ~answer.right).sum())
            gap, interval = accuracy_gap(only_found, only_it, len(right))
            compared.append(
                {
                    "kind": kind,
                    **self._told(goal, trained),
                    "gap": {
                        "accuracy": gap,
                        "interval95": list(interval),
                        "n_images": len(right),
                    },
                }
            )
        return compared

    def _compare_with_the_first(self, found: SearchResult) -> None:
        """Hold a search that was run once more against the manifest of the one it repeats."""
        assert self._parent_id is not None
        with self._context.database.reading() as session:
            sha256 = get_artifact(session, self._parent_id, "manifest.json").sha256
        manifest = json.loads(self._context.artifacts.get(sha256))
        told, first = manifest["result"], manifest["search_core"]
        again = search_section(found)
        before = torch.tensor(_numbers_of(first["log_probabilities"]), dtype=torch.float64)
        after = torch.tensor(_numbers_of(again["log_probabilities"]), dtype=torch.float64)
        largest, differs = float((after - before).abs().max()), []
        if largest:
            differs.append(f"logits: by up to {largest:.3g}")
        differs += [
            f"{name}: {again[name]}, and {first[name]} before"
            for name in ("steps", "frozen")
            if again[name] != first[name]
        ]
        n_decisions = len(differs)
        for number, line in enumerate(told["decodes"], start=1):
            architecture = self.space.format(self._decode_again(found, line))
            if architecture != line["architecture"]:
                differs.append(
                    f"network {number}: {architecture}, and {line['architecture']} before"
                )
        same_networks = len(differs) == n_decisions
        if differs:
            now = software()
            differs += [
                f"{name}: {now[name]} now, and {value} then"
                for name, value in manifest["software"].items()
                if now.get(name) != value
            ]
        result = {
            **told,
            "reproduction": {
                "of": self._parent_id,
                "same": not differs,
                "logits_equal": largest == 0.0,
                "largest_logit_difference": largest,
                "architecture_equal": same_networks,
                "architecture": told["network"]["architecture"],
                "differs": differs,
            },
        }
        text = "; ".join(differs) or "Logits and every decided network are equal to the last bit."
        status, code = ("failed", "differs") if differs else ("succeeded", "reproduced")
        self.end(status, code, text, result)

    def _decode_again(self, found: SearchResult, line: dict[str, Any]) -> Architecture:
        goal = self.goals[line.get("goal", 0)]
        limits = tuple(row["limit_ms"] for row in line.get("targets", [line]))
        return decode(found, goal, limits)

    # -- what the outside sees ---------------------------------------------------------

    def _enter(self, phase: str) -> None:
        with self._context.transaction() as (session, _):
            enter_phase(session, get_search(session, self._id, lock=True), phase)

    def _reporter(self, checkpoint_name: str) -> Report:
        def report(event: SearchEvent) -> None:
            match event:
                case CheckpointReady(checkpoint):
                    self._checkpoints.save(checkpoint_name, checkpoint)
                case Progress() as progress:
                    self._report_progress(progress)
                case Notice() as notice:
                    self._warn(notice.code, notice.text)
                    self._limit.heed(notice)

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
                for target_id, report in self._model_reports.items():
                    worth = block_priorities(self.space, report, progress.probabilities)
                    prioritise(session, target_id, worth)

    def _resume(self, checkpoint_name: str) -> Checkpoint | None:
        try:
            checkpoint = self._checkpoints.load(checkpoint_name)
        except CheckpointError as error:
            self._warn("checkpoint_unreadable", str(error))
            return None
        if checkpoint is not None:
            self._warn("resumed", f"from step {checkpoint.step} of {checkpoint_name}")
        return checkpoint

    def _warn(self, code: str, text: str) -> None:
        with self._context.transaction() as (session, _):
            get_search(session, self._id, lock=True)  # event numbers are given one at a time
            append_event(session, self._id, "warning", {"code": code, "text": text})

    # -- results -----------------------------------------------------------------------

    def _told(self, goal: Goal, answer: _Answer) -> dict[str, Any]:
        right, n = int(answer.right.sum()), len(answer.right)
        return {
            **self._numbers(goal, answer.architecture, answer.measured),
            "test_accuracy": right / n,
            "accuracy_interval95": list(accuracy_interval(right, n)),
        }

    def _numbers(
        self, goal: Goal, architecture: Architecture, measured: Sequence[Measurement]
    ) -> dict[str, Any]:
        rows = [
            {
                "target": aim.target_id,
                "latency_budget_ms": aim.budget_ms,
                "predicted_ms": aim.latency.exact(architecture),
                "measured": _measured(one),
                "within_budget": one.latency_ms <= aim.budget_ms,
            }
            for aim, one in zip(goal.aims, measured, strict=True)
        ]
        return {
            "architecture": self.space.format(architecture),
            "predicted_ms": rows[0]["predicted_ms"],
            "measured": rows[0]["measured"],
            "test_accuracy": None,
            "parameters": self.space.parameters(architecture),
            "macs": self.space.macs(architecture),
            "targets": rows if len(rows) > 1 else [],
        }

    def _publish(
        self,
        answers: Sequence[tuple[Goal, _Answer | _Miss]],
        met: Sequence[tuple[Goal, _Answer]],
        baselines: list[dict[str, Any]],
        found: SearchResult,
    ) -> None:
        """Write `succeeded` with every file; the one place where networks are given out."""
        files, points = Files(), []
        for place, (goal, answer) in enumerate(answers, start=1):
            aim = goal.aims[0]
            asked = {"latency_budget_ms": aim.budget_ms, "target": aim.target_id}
            if isinstance(answer, _Miss):
                numbers = self._numbers(goal, answer.architecture, answer.measured)
                points.append({**numbers, **asked, "verified": False})
                continue
            prefix = f"point-{place}." if len(answers) > 1 else ""
            facts = self._facts(answer)
            network = answer.network.cpu()
            names = add_network(files, prefix, network, self.data, answer.deployed, facts)
            told = self._told(goal, answer)
            points.append({**told, **asked, "verified": True, "files": names})
        stored = self._store(files)
        for goal, answer in met:
            for aim, measured in zip(goal.aims, answer.measured, strict=True):
                assert measured.latency_ms <= aim.budget_ms
                assert measured.model_sha256 in stored.values(), "what was measured is kept"
        for point in points:
            if point["verified"]:
                point["onnx_sha256"] = stored[point["files"]["onnx"]]
        first = next(point for point in points if point["verified"])
        result = {
            "network": self._told(*met[0]),
            "random_baseline": next((b for b in baselines if b["kind"] == "random"), None),
            "baselines": baselines,
            "points": points if len(points) > 1 else [],
            "decodes": self._decodes,
            "frozen_slots": len(found.frozen),
            "health": dict(found.summary),
            "onnx_sha256": first["onnx_sha256"],
        }
        told = {
            "search": self._id,
            "kind": self.kind,
            "parent": self._parent_id,
            "spec": self.spec.model_dump(),
            "space": {
                "name": self.space.name,
                "version": self.space.version,
                "digest": self.space.digest,
            },
            "latency_models": self.latency_models,
            "latency_model": self.latency_models[first["target"]],
            "measurement": first["measured"]["measurement"],
            "result": result,
            "preprocessing": {"mean": self.data.mean, "std": self.data.std},
        }
        add_manifest(files, stored, found, told, self._signer)
        stored |= self._store(files)
        rows = {
            name: (stored[name], len(content), media_type)
            for name, (content, media_type) in files.content.items()
        }
        text = f"{len(met)} of {len(answers)} budgets are met."
        if len(answers) == 1:
            text = f"The median of its file is {first['measured']['median_ms']:.4g} ms."
        self.end("succeeded", "within_budget", text, result, rows)

    def _publish_infeasible(self, goal: Goal, miss: _Miss, found: SearchResult) -> None:
        """A budget cannot be met on its device: say how near it comes, and with what."""
        result = {
            "network": self._numbers(goal, miss.architecture, miss.measured),
            "random_baseline": None,
            "decodes": self._decodes,
            "frozen_slots": len(found.frozen),
            "health": dict(found.summary),
            "onnx_sha256": miss.measured[0].model_sha256,
        }
        pairs = zip(goal.aims, miss.measured, strict=True)
        aim, measured = max(pairs, key=lambda pair: pair[1].latency_ms / pair[0].budget_ms)
        text = (
            f"No network of {self.space.name} measured at or under {aim.budget_ms:g} ms; "
            f"the nearest takes {measured.latency_ms:.4g} ms."
        )
        self.end("infeasible", "budget_unreachable", text, result)

    def _facts(self, answer: _Answer) -> dict[str, object]:
        """What the head of a network's own module says of it."""
        first = answer.measured[0]
        return {
            "architecture": self.space.format(answer.architecture),
            "space": f"{self.space.name}@{self.space.version}",
            "trained on": f"{self.spec.dataset}, mean {self.data.mean}, std {self.data.std}",
            "test accuracy": int(answer.right.sum()) / len(answer.right),
            "latency": f"{first.latency_ms:.4g} ms, the median of {first.n} runs",
        }

    def _store(self, files: Files) -> dict[str, str]:
        put = self._context.artifacts.put
        return {name: put(content) for name, (content, _) in files.content.items()}

    # -- endings -----------------------------------------------------------------------

    def stop(self) -> bool:
        """Do what was asked of the search while it ran; False when nothing was."""
        with self._context.transaction() as (session, job):
            search = get_search(session, self._id, lock=True)
            if search.status == "pausing":
                paused(session, search)
                jobs.finish(session, job, "paused")
                return True
            cancelled = search.status == "cancelling"
        if cancelled:
            self.end("cancelled", "user_cancelled", "Cancelled.")
        elif (reason := self._limit.reason) is not None:
            self.end("failed", *reason)
        else:
            return False
        return True

    def end(
        self,
        status: str,
        code: str,
        text: str,
        result: dict[str, Any] | None = None,
        files: dict[str, tuple[str, int, str]] | None = None,
    ) -> None:
        """End search and job in one transaction, with every file.

        The supernet is kept, so that other searches can go on from it.
        """
        files = dict(files or {})
        supernet = None
        if self.kind in ("search", "extend") and status != "cancelled":
            supernet = self._checkpoints.content(_SEARCH)
        if supernet is not None:
            sha256 = self._context.artifacts.put(supernet)
            files[SUPERNET] = (sha256, len(supernet), "application/octet-stream")
        with self._context.transaction() as (session, job):
            for name, (sha256, size_bytes, media_type) in files.items():
                session.add(
                    SearchArtifact(
                        search_id=self._id,
                        name=name,
                        sha256=sha256,
                        size_bytes=size_bytes,
                        media_type=media_type,
                    )
                )
            search = get_search(session, self._id, lock=True)
            end(session, search, status, code=code, text=text, result=result)
            jobs.finish(session, job, {"infeasible": "succeeded"}.get(status, status), text)
        self._checkpoints.remove()


def _forms(goal: Goal) -> list[tuple[str, int]]:
    return list(dict.fromkeys(aim.file_form for aim in goal.aims))


def _numbers_of(rows: list[list[float | None]]) -> list[float]:
    """What a manifest has of the logits, without the places that slots do not have."""
    return [value for row in rows for value in row if value is not None]


def _measured(measurement: Measurement) -> dict[str, Any]:
    return {
        "median_ms": measurement.latency_ms,
        "p10_ms": measurement.p10_ms,
        "p90_ms": measurement.p90_ms,
        "n": measurement.n,
        "measurement": measurement.id,
    }
