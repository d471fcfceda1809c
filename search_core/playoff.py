"""A playoff: the last decision between a search's best architectures, by training them a little.

One set of shared weights ranks good architectures poorly: it serves all of them and suits none.
So the best few go on from the shared weights, each on its own, on the same batches; after each
round the better half by held-out loss goes on. The winner keeps the weights it has by then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search_core.data.dataset import Dataset
from search_core.errors import NonFiniteLossError, SearchInterrupted
from search_core.events import Notice, Progress, Report, ShouldStop, ignore, never
from search_core.nn.batch_norm import batch_statistics_only
from search_core.nn.network import Network
from search_core.nn.supernet import Supernet
from search_core.space.space import Architecture
from search_core.train import WeightRecipe, set_rate


@dataclass(frozen=True)
class Standing:
    """What a contender had reached when it last played.

    Attributes:
        rounds: how many it played.
        loss, accuracy: on the held-out images, after the last of them; the loss is infinite
            where the network diverged.
    """

    architecture: Architecture
    rounds: int
    loss: float
    accuracy: float


def playoff(
    supernet: Supernet,
    contenders: Sequence[Architecture],
    data: Dataset,
    held_out: Dataset,
    recipe: WeightRecipe,
    *,
    seed: int,
    report: Report = ignore,
    should_stop: ShouldStop = never,
) -> tuple[list[Standing], Network]:
    """Standings, best first, and the winner's network.

    Successive halving (Jamieson and Talwalkar 2016): every contender trains for
    ``recipe.total_steps`` from the shared weights, the better half for as many more, and so
    on, each round on a schedule of its own and on batches of its own.

    Args:
        contenders: at least one; see `SearchResult.decide_best`.
        data, held_out: the two parts of `Dataset.split`; the first trains, the second judges.
        seed: decides batch order and augmentation, the same for all.

    Raises:
        SearchInterrupted: `should_stop` said so.
        NonFiniteLossError: not even the winner's loss is a number.
        ValueError: there is no contender.
    """
    if not contenders:
        raise ValueError("a playoff needs at least one contender")
    networks = {contender: supernet.derive(contender) for contender in contenders}
    standings: dict[Architecture, Standing] = {}
    playing, n_round = list(networks), 0
    total = _games(len(playing))
    while True:
        for contender in playing:
            _train(networks[contender], data, recipe, seed, n_round)
            loss, accuracy = held_out_loss(networks[contender], held_out)
            standings[contender] = Standing(contender, n_round + 1, loss, accuracy)
            played = sum(standing.rounds for standing in standings.values())
            report(Progress("playoff", played, total, {"held_out_loss": loss}))
            if should_stop():
                raise SearchInterrupted(f"stopped in round {n_round + 1} of the playoff")
        n_round += 1
        playing.sort(key=lambda contender: standings[contender].loss)
        for contender in playing[(len(playing) + 1) // 2 :]:
            del networks[contender]
        playing = playing[: (len(playing) + 1) // 2]
        if len(playing) == 1:
            break
    order = sorted(standings.values(), key=lambda s: (-s.rounds, s.loss))
    if math.isinf(order[0].loss):
        raise NonFiniteLossError(
            "every contender of the playoff diverged; lower the learning rate of "
            f"{recipe.learning_rate:g}"
        )
    report(Notice("playoff", supernet.space.format(order[0].architecture)))
    return order, networks[order[0].architecture]


@torch.no_grad()
def qualify(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    held_out: Dataset,
    places: int,
    *,
    seed: int,
    n_images: int = 1000,
) -> list[Architecture]:
    """The `places` best of `architectures` by held-out loss under the shared weights, best first.

    Where a cell may leave operations out, utilities that add up over slots credit operations
    that nothing reaches; one forward pass of each network tells. Networks that waste a block
    are passed over, unless there is no other, and so are those that only differ in idle blocks
    from one before them.

    Args:
        n_images: of `held_out`, drawn once, whose statistics BatchNorm uses.
    """
    graph = supernet.space.graph
    sound = [a for a in architectures if not graph(a).wastes] or list(architectures)
    sound = list({graph(a).live: a for a in reversed(sound)}.values())[::-1]
    batch = held_out.plain_batch(seed, 0, min(n_images, held_out.n_train))
    supernet.train()
    with batch_statistics_only(supernet):
        losses = {a: batch.loss(supernet(batch.images, a.choices)).item() for a in sound}
    return sorted(sound, key=lambda a: (math.isnan(losses[a]), losses[a]))[:places]


def _games(n_contenders: int) -> int:
    """How many times a contender plays in all."""
    games, playing = n_contenders, (n_contenders + 1) // 2
    while playing > 1:
        games, playing = games + playing, (playing + 1) // 2
    return games


def _train(network: Network, data: Dataset, recipe: WeightRecipe, seed: int, n_round: int) -> None:
    optimizer = recipe.optimizer(network)
    network.train()
    first = n_round * recipe.total_steps
    for step in range(recipe.total_steps):
        batch = data.training_batch(seed, first + step, recipe.batch_size)
        set_rate(optimizer, recipe.rate_at(step))
        optimizer.zero_grad()
        loss = batch.loss(network(batch.images), recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def held_out_loss(network: Network, data: Dataset, batch_size: int = 512) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of `network` on all training images of `data`.

    A loss that is not a number is given as infinite, so that it can be compared.
    """
    network.eval()
    loss, right = 0.0, 0
    for batch in data.train_batches(batch_size):
        scores = network(batch.images)  # (B, n_classes)
        loss += batch.loss(scores).item() * len(batch.labels)
        right += int((scores.argmax(dim=1) == batch.labels).sum())
    mean = loss / data.n_train
    return mean if math.isfinite(mean) else math.inf, right / data.n_train
