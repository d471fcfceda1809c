"""Everything that decides a search besides its space, its data and its constraints."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from search_core.train import WeightRecipe


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides a search besides space, data and constraints.

    Attributes:
        recipe: how weights are trained, over the search and the child's phase together.
        search_steps: after how many of them the architecture is decided (DSNAS searches 80
            of 240 epochs).
        warmup_steps: first steps that train weights only, on paths drawn from the start.
        largest_share: where the probabilities start: this much on the candidate of each slot
            with the most weights, the rest on the others alike. Young weights flatter whatever
            disturbs them least, so a search of a cell that starts from equal parts falls to
            few operations; one that starts from the largest network asks what can be changed
            in it. None starts from equal parts, as in the papers.
        operation_warmup: during the warm-up a slot runs all of its operations, averaged, with
            a probability that falls linearly from 1 to 0 (TuNAS).
        estimator, estimator_options: of the gradient in the logits, by name.
        held_out_images: training images that only the logits see, class-balanced; asked for
            by the estimators that do not train weights and logits on one batch.
        alpha_every: weight steps for each step of the logits (ProxylessNAS: 5).
        alpha_learning_rate: of Adam on the logits. The published 1e-3 suits 100,000 steps; a
            search of hundreds needs more.
        alpha_betas: of the same; None takes those published with the estimator.
        temperature: (first, last) price of certainty in units of the loss: the divergence
            ``tau sum_k p_k ln(p_k / start_k)`` of every slot is added, with tau falling
            geometrically, so that p stays near ``start exp(-f / tau)`` and nothing is decided
            while weights are young. None adds nothing, as in the papers.
        freeze_threshold: 0.3, from the DSNAS code.
        max_rollbacks: how often a loss that is not finite sends the search back to its last
            checkpoint, at half the rate, before it is given up.
    """

    recipe: WeightRecipe
    search_steps: int
    warmup_steps: int
    seed: int = 0
    largest_share: float | None = None
    operation_warmup: bool = False
    estimator: str = "dsnas"
    estimator_options: Mapping[str, float] = field(default_factory=dict)
    held_out_images: int = 0
    alpha_every: int = 1
    alpha_learning_rate: float = 0.02
    alpha_betas: tuple[float, float] | None = None
    temperature: tuple[float, float] | None = None
    freeze_threshold: float = 0.3
    max_rollbacks: int = 3
