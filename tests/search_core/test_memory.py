"""Running out of memory, for real: in a process of its own that may not grow."""

import os
import subprocess
import sys

import pytest
import torch

from search_core.errors import OutOfMemoryError
from search_core.memory import explain_out_of_memory

SCRIPT = """
import resource

import torch

from search_core.data.dataset import ImageDataset
from search_core.errors import OutOfMemoryError
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.search import SearchConfig, run_search
from search_core.space.nasbench201 import nasbench201
from search_core.train import WeightRecipe, train_network

torch.set_num_threads(1)
N, TOO_MANY, GROWTH = 512, 256, 150 * 2**20
images = torch.zeros(N, 3, 32, 32, dtype=torch.uint8)
side = (images, torch.arange(N) % 10)
data = ImageDataset("black", *side, *side, (127.5,) * 3, (73.9,) * 3, 10)
space = nasbench201(channels=8, cells_per_stage=1)


def search(batch_size, **options):
    recipe = WeightRecipe(total_steps=2, warmup_steps=0, batch_size=batch_size)
    run_search(space, SearchConfig(recipe, search_steps=2, warmup_steps=1, **options), data)


def all_operations_at_once(batch_size):
    search(batch_size, operation_warmup=True)


def two_level(batch_size):
    search(batch_size, estimator="proxyless", held_out_images=N // 2)


def training(batch_size):
    graph = space.graph(space.architecture([3] * 6))
    recipe = WeightRecipe(total_steps=1, warmup_steps=0, batch_size=batch_size)
    train_network(Network.initialised(graph, stream(0, "weights")), data, recipe, seed=0)


runs = (all_operations_at_once, two_level, training)
for run in runs:
    run(8)  # everything is loaded by now
with open("/proc/self/statm") as sizes:
    limit = int(sizes.read().split()[0]) * resource.getpagesize() + GROWTH
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for run in runs:
    try:
        run(TOO_MANY)
    except OutOfMemoryError as error:
        assert error.batch_size == TOO_MANY
        assert f"a batch of {error.fitting} fits; use that" in str(error), error
        fitting = error.fitting
    else:
        raise AssertionError(f"{run.__name__} did not run out of memory")
    run(fitting)
    print(fitting)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process")
def test_the_batch_size_that_is_named_fits():
    # what is freed goes back at once, so that the heap's holes do not decide what fits
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    # a second heap would reserve 64 MiB of the address space, whenever two threads met
    environment["MALLOC_ARENA_MAX"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fitting = [int(line) for line in done.stdout.split()]
    assert len(fitting) == 3
    assert all(8 <= batch_size < 256 for batch_size in fitting)


def test_an_error_of_another_kind_passes_through():
    def never(batch_size):
        raise AssertionError(batch_size)

    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(8, never):
        raise RuntimeError("the shapes do not fit")


def too_much():
    return torch.empty(2**62, dtype=torch.uint8)


def test_nothing_fits_where_not_even_one_image_does():
    tried = []

    def rehearse(batch_size):
        tried.append(batch_size)
        too_much()

    with (
        pytest.raises(OutOfMemoryError, match="not even one image fits") as raised,
        explain_out_of_memory(12, rehearse),
    ):
        too_much()
    assert tried == [6, 3, 1]
    assert raised.value.fitting is None


def test_the_failed_step_holds_nothing_while_others_are_tried():
    """What its frames hold would be missing for a batch that fits."""
    freed, seen = [], []

    class Activations:
        def __del__(self):
            freed.append(True)

    def step():
        activations = Activations()
        too_much()
        return activations

    def rehearse(batch_size):
        seen.append((batch_size, list(freed)))

    with pytest.raises(OutOfMemoryError), explain_out_of_memory(2, rehearse):
        step()
    assert seen == [(1, [True])]


KEEPING = """
import mmap
import sys

import torch

from search_core.memory import keep_freed_memory

MIB = 2**20


def resident():
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[1]) * mmap.PAGESIZE


if sys.argv[1] == "kept":
    assert keep_freed_memory()
block = torch.ones(64 * MIB, dtype=torch.uint8)
before = resident()
del block
print((before - resident()) // MIB)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the policy is of glibc")
@pytest.mark.parametrize(("policy", "given_back"), [("as it comes", 64), ("kept", 0)])
def test_freed_memory_stays_where_it_is_asked_to(policy, given_back):
    done = subprocess.run(
        [sys.executable, "-c", KEEPING, policy], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == pytest.approx(given_back, abs=2)
