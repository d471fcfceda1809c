"""How long a search trains what: decided in one place, for attempts and for whoever asks."""

from dataclasses import dataclass

from search_core.effort import SearchPlan, trains_weights
from search_core.space.space import SearchSpace
from service.datasets.known import DatasetFacts
from service.searches.schemas import SearchCreate

BATCH_SIZE = 32


@dataclass(frozen=True)
class Schedule:
    """Steps of a search and of what follows it.

    Attributes:
        total_steps: of the one schedule that search and child share.
        rising_steps: in which the learning rate rises.
        search_steps: after which the architecture is decided: a third, as DSNAS's 80 of 240.
        warmup_steps: the first of them, which train weights only.
    """

    total_steps: int
    rising_steps: int
    search_steps: int
    warmup_steps: int

    @classmethod
    def of(cls, epochs: int, epoch_steps: int) -> "Schedule":
        """The schedule of so many epochs."""
        return cls(
            total_steps=epochs * epoch_steps,
            rising_steps=2 * epoch_steps,
            search_steps=max(2, epochs // 3) * epoch_steps,
            warmup_steps=max(1, epochs // 10) * epoch_steps,
        )


def search_plan(spec: SearchCreate, space: SearchSpace, data: DatasetFacts) -> SearchPlan:
    """What the attempt of `spec` will do, as far as it is decided beforehand."""
    schedule = Schedule.of(spec.epochs, data.n_train // BATCH_SIZE)
    inherited = schedule.search_steps if trains_weights(spec.algorithm) else 0
    return SearchPlan(
        space=space,
        n_train=data.n_train,
        n_test=data.n_test,
        batch_size=BATCH_SIZE,
        search_steps=schedule.search_steps,
        warmup_steps=schedule.warmup_steps,
        training_steps=(
            schedule.total_steps - inherited
            if spec.train_epochs is None
            else spec.train_epochs * (data.n_train // BATCH_SIZE)
        ),
        baseline_steps=schedule.total_steps * (spec.random_baseline + spec.hand_made_baseline),
        estimator=spec.algorithm,
    )
