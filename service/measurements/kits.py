"""What has to be measured, and whether it has been."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from predictor.kits import (
    BUILDER_VERSION,
    KitItem,
    anchor_item,
    canary_items,
    plan_kit,
    subject_weights,
)
from search_core.space.space import SearchSpace
from service.artifacts import ArtifactStore
from service.db.base import new_id, utc_now
from service.db.database import Database, take_turns
from service.measurements import models
from service.measurements.repository import (
    add_task,
    find_files,
    find_kit,
    kit_items,
    kit_progress,
    n_flagged,
    retry_failed,
    reusable_tasks,
)
from service.targets.models import Target

_FIRST = 1e6
"""Priority of calibration networks: they bound what a space can do on a target."""


class KitProgress(NamedTuple):
    """How far the measuring of a kit is."""

    status: Literal["measuring", "measured", "incomplete"]
    completed: int
    failed: int
    flagged: int
    total: int


def build_files(
    database: Database, artifacts: ArtifactStore, space: SearchSpace, precision: str, batch: int
) -> None:
    """Build the files of a kit that nobody has built yet; call it before a transaction begins.

    Quantising takes seconds, and no other writer should wait for it.
    """
    items = {item.subject: item for item in (*plan_kit(space), *canary_items(), anchor_item())}
    with database.reading() as session:
        known = find_files(session, list(items), precision, batch)
    rows = []
    for subject, item in items.items():
        if subject in known:
            continue
        content = _build(item, precision, batch)
        rows.append(
            models.KitFile(
                subject=subject,
                precision=precision,
                batch=batch,
                builder_version=BUILDER_VERSION,
                sha256=artifacts.put(content),
                n_bytes=len(content),
            )
        )
    if rows:
        with database.transaction() as session:
            take_turns(session, "kit files")
            meanwhile = find_files(session, list(items), precision, batch)
            session.add_all(row for row in rows if row.subject not in meanwhile)


def _build(item: KitItem, precision: str, batch: int) -> bytes:
    content = item.build(batch)
    if precision == "int8":
        from predictor.quantize import quantize

        content = quantize(content)
    return content


def ensure_kit(
    session: Session,
    target: Target,
    space: SearchSpace,
    until_half_width: float | None = None,
) -> models.Kit:
    """The kit of `space` on a target, with a task for all that was never measured there.

    Kits share tasks: a block that another space has brought is measured once. What could
    not be measured before is asked for again. `build_files` has built the files.

    Args:
        until_half_width: when to stop, see `models.Kit`; the latest wish counts.
    """
    take_turns(session, f"kits:{target.id}")
    kit = find_kit(session, target.id, space.digest)
    if kit is None:
        kit = models.Kit(
            id=new_id("kit"),
            target_id=target.id,
            space=space.name,
            space_digest=space.digest,
            until_half_width=until_half_width,
            created_at=utc_now(),
        )
        session.add(kit)
        session.flush()
    kit.until_half_width = until_half_width
    retry_failed(session, kit.id)
    there = {item.subject for item in kit_items(session, kit.id)}
    missing = [item for item in plan_kit(space) if item.subject not in there]
    if not missing:
        return kit
    precision, batch = target.profile["precision"], target.profile["batch"]
    subjects = [item.subject for item in (*missing, anchor_item())]
    sha256 = {s: row.sha256 for s, row in find_files(session, subjects, precision, batch).items()}
    tasks = reusable_tasks(session, target.id, sha256)
    priorities = _priorities(space, missing, networks_first=until_half_width is not None)
    for item in missing:
        task = tasks.get(item.subject) or add_task(
            session,
            target_id=target.id,
            purpose="kit",
            subject=item.subject,
            effort="table",
            model_sha256=sha256[item.subject],
            anchor_sha256=sha256[anchor_item().subject],
            priority=priorities[item.subject],
        )
        session.flush()
        session.add(
            models.KitItem(kit_id=kit.id, subject=item.subject, task_id=task.id, role=item.role)
        )
    session.flush()
    retry_failed(session, kit.id)  # tasks that another kit has brought
    return kit


def _priorities(
    space: SearchSpace, items: Sequence[KitItem], *, networks_first: bool
) -> dict[str, float]:
    """Calibration networks, then blocks by their weight in an average network, then the test.

    Where blocks are measured only as far as they are needed, the test tells how far that is and
    goes before them.
    """
    weights = subject_weights(space)
    by_role = {"calibration": _FIRST, "held_out": 0.5 * _FIRST if networks_first else -1.0}
    return {item.subject: by_role.get(item.role, weights.get(item.subject, 0.0)) for item in items}


def read_progress(session: Session, kit_id: str) -> KitProgress:
    """How far the measuring of a kit is."""
    counts = kit_progress(session, kit_id)
    total, done, failed = sum(counts.values()), counts.get("done", 0), counts.get("failed", 0)
    is_open = total - done - failed
    return KitProgress(
        status="measuring" if is_open else "incomplete" if failed else "measured",
        completed=done,
        failed=failed,
        flagged=n_flagged(session, kit_id),
        total=total,
    )
