"""What has to be measured, and whether it has been."""

from sqlalchemy.orm import Session

from predictor.kits import anchor_item, plan_kit
from search_core.space.space import SearchSpace
from service.artifacts import ArtifactStore
from service.db.base import new_id, utc_now
from service.db.database import take_turns
from service.measurements.models import Kit
from service.measurements.repository import add_task, find_kit, retry_failed


def ensure_kit(
    session: Session, artifacts: ArtifactStore, target_id: str, space: SearchSpace
) -> Kit:
    """The kit of `space` on a target; created with all its tasks if it is new.

    What could not be measured before is asked for again.
    """
    take_turns(session, f"kit:{target_id}:{space.digest}")
    kit = find_kit(session, target_id, space.digest)
    if kit is not None:
        retry_failed(session, kit.id)
        return kit
    kit = Kit(
        id=new_id("kit"),
        target_id=target_id,
        space=space.name,
        space_digest=space.digest,
        created_at=utc_now(),
    )
    session.add(kit)
    session.flush()
    anchor_sha256 = artifacts.put(anchor_item(space).build())
    for item in plan_kit(space):
        add_task(
            session,
            target_id=target_id,
            kit_id=kit.id,
            subject=item.subject,
            effort="table",
            model_sha256=artifacts.put(item.build()),
            anchor_sha256=anchor_sha256,
        )
    return kit
