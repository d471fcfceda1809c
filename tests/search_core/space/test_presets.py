"""What holds of every space that is known by name."""

import json
import random
import subprocess
import sys
from math import prod

import pytest

from search_core.errors import ArchitectureSyntaxError, UnknownSpaceError
from search_core.space.blocks import BlockSpec
from search_core.space.presets import fitted_space, get_space, is_listed, space_names
from search_core.space.published import find_network, published_names, published_network

DIGESTS = {
    "micro": "171b8628af6548d906a90577ba4d847a5627514b08a57541a345beea87804988",
    "nasbench201": "91dc77d3af480349f446b794759b979af02443cf9e6e3188544fdb90d2b652cf",
    "proxyless_cifar_mb": "a1f03f45e9eca0bcf8bcf4735f428b06a27122de86c77a57c07b4bc70f7b56b4",
    "proxyless_cifar_tree": "63f3cc0ff0fc5202624840a819d0685a47b3a8bce830b0f328831a431d580787",
    "proxyless_imagenet": "2885b9dc37facbf2659e7aaba37126e3ee2380e73c0bdf7a880010238f7a5c7b",
    "spos_cifar": "e811b59da64f1655cbbf59e161c888d43c97663740d4715725af3afcd810d7df",
    "spos_imagenet": "b7be0b14cfc33c499357e85e1a8a854e59fa3f26a083676dac09526446e6c0d8",
}
every_space = pytest.mark.parametrize(
    "space", [get_space(name) for name in space_names()], ids=space_names()
)


@pytest.mark.parametrize("name", DIGESTS)
def test_released_digests_do_not_change(name):
    """Measurements and latency models are stored under them."""
    assert get_space(name).version == 1
    assert get_space(name).digest == DIGESTS[name]


@every_space
def test_a_space_is_called_what_it_is_asked_for(space):
    assert get_space(space.name) is space
    assert space.size == prod(len(slot.candidates) for slot in space.slots)
    assert space.n_candidates == max(len(slot.candidates) for slot in space.slots)
    names = [slot.name for slot in space.slots]
    assert len(set(names)) == len(names)


@every_space
def test_strings_are_read_and_written_both_ways(space):
    rng = random.Random(0)
    for architecture in (space.sample(rng) for _ in range(5)):
        text = space.format(architecture)
        assert space.parse(text) == architecture
        assert find_network(space, text) == (text, space.graph(architecture))


@every_space
def test_iteration_begins_at_the_first_candidates_and_changes_the_last_slot_first(space):
    every = iter(space)
    first, second = next(every), next(every)
    assert first == space.architecture([0] * len(space.slots))
    assert second == space.architecture([0] * (len(space.slots) - 1) + [1])


@every_space
def test_neighbours_differ_in_exactly_one_slot(space):
    architecture = space.sample(random.Random(0))
    neighbours = list(space.neighbours(architecture))
    assert len(set(neighbours)) == sum(len(slot.candidates) - 1 for slot in space.slots)
    for neighbour in neighbours[:: max(1, len(neighbours) // 50)]:
        pairs = zip(neighbour.choices, architecture.choices, strict=True)
        assert sum(a != b for a, b in pairs) == 1


@every_space
@pytest.mark.parametrize("count", ["macs", "parameters"])
def test_counts_per_slot_sum_to_those_of_the_network(space, count):
    fixed, rows = space.slot_costs(lambda block: getattr(block, count))
    rng = random.Random(0)
    for architecture in (space.sample(rng) for _ in range(5)):
        table = fixed + sum(row[k] for row, k in zip(rows, architecture.choices, strict=True))
        assert table == getattr(space, count)(architecture)


@every_space
def test_every_block_can_be_written_and_read(space):
    for block in space.distinct_blocks:
        assert BlockSpec.parse(str(block)) == block


def test_every_architecture_of_a_small_space_comes_once(micro):
    cells = get_space("nasbench201_n1")
    assert len(set(cells)) == cells.size == 15_625
    assert sum(1 for _ in micro) == micro.size


@pytest.mark.parametrize(
    ("name", "channels", "classes"),
    [
        ("proxyless_imagenet_w0.75", 24, 1000),
        ("proxyless_imagenet_w1.4", 48, 1000),
        ("nasbench201_c8_n1_s2", 8, 10),
        ("nasbench201_r16", 16, 10),
        ("proxyless_cifar_tree_b1_f20", 16, 10),
    ],
)
def test_variants_are_known_by_name(name, channels, classes):
    space = get_space(name)
    assert space.name == name
    assert space.layers[0].blocks[0].out_channels == channels
    assert space.n_classes == classes
    assert (
        space.digest != get_space(name.split("_w")[0].split("_c8")[0]).digest
        if "_w" in name
        else True
    )


@pytest.mark.parametrize(
    "name",
    [
        "micro_w2",
        "micro_r8",
        "micro_k7_r32",
        "nasbench201_",
        "nasbench201_n",
        "nasbench201_n0",
        "nasbench201_n-1",
        "nasbench201_n1_n1",
        "nasbench201_n1_c8",
        "nasbench201_n5",
        "nasbench201_n\u0661",
        "proxyless_imagenet_w0.750",
        "proxyless_imagenet_w99999",
    ],
)
def test_other_spellings_of_variants_are_refused(name):
    with pytest.raises(UnknownSpaceError):
        get_space(name)


@pytest.mark.parametrize(
    ("name", "fitted"),
    [
        ("micro", "micro_i3_r32_k7"),
        ("nasbench201", "nasbench201_k7"),
        ("nasbench201_n1_s2", "nasbench201_n1_s2_k7"),
        ("proxyless_cifar_mb", "proxyless_cifar_mb_k7"),
        ("spos_cifar", "spos_cifar_k7"),
    ],
)
def test_a_space_can_be_fitted_to_other_images(name, fitted):
    space = fitted_space(name, 3, 32, 7)
    assert (space.in_channels, space.resolution_px, space.n_classes) == (3, 32, 7)
    assert space.name == fitted
    assert get_space(fitted) == space
    assert space.digest != get_space(name).digest
    assert space.slots == get_space(name).slots
    assert is_listed(fitted)


def test_a_space_that_fits_is_itself():
    assert fitted_space("micro", 1, 8, 10) is get_space("micro")
    assert fitted_space("micro_i3", 1, 8, 10) == get_space("micro")


def test_a_published_space_is_of_its_own_images_only():
    with pytest.raises(UnknownSpaceError, match="3 x 224 x 224 images of 1000 classes"):
        fitted_space("proxyless_imagenet", 3, 32, 10)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("micro", True),
        ("micro_k2", True),
        ("nasbench201_n1", True),
        ("nasbench201_n1_r16", True),
        ("nasbench201_n9999", False),
        ("nasbench201_c8_n1_s2", False),
        ("proxyless_imagenet_w0.75", False),
        ("micro_w2", False),
        ("marco", False),
    ],
)
def test_variants_of_any_size_are_not_listed_but_those_for_other_images_are(name, listed):
    assert is_listed(name) is listed


def test_every_published_network_belongs_to_a_space():
    found = {name: space for space in space_names() for name in published_names(space)}
    assert sorted(found) == [
        "dsnas",
        "mobilenet_v2",
        "proxyless_cifar",
        "proxyless_cpu",
        "proxyless_gpu",
        "proxyless_mobile",
        "proxyless_mobile_14",
        "spos",
    ]
    for name, space in found.items():
        text, graph = find_network(get_space(space), name)
        assert graph == published_network(name)
        assert find_network(get_space(space), text) == (text, graph)


def test_a_published_network_of_another_space_is_not_found(micro):
    with pytest.raises(ArchitectureSyntaxError):
        find_network(micro, "dsnas")


def test_naming_the_spaces_builds_none_of_them():
    script = (
        "import json; from search_core.space import presets; presets.space_names(); "
        "print(json.dumps(presets.get_space.cache_info().currsize))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == 0
