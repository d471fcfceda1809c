"""Random streams addressed by counters."""

import torch

from search_core.randomness import stream


def draw(*address):
    return torch.rand(4, generator=stream(*address)).tolist()


def test_a_stream_is_a_function_of_its_address_alone():
    first = draw(0, "path", 7)
    torch.rand(3)
    torch.manual_seed(99)
    assert draw(0, "path", 7) == first


def test_streams_differ_in_seed_purpose_and_counters():
    addresses = [
        (0, "path", 7),
        (1, "path", 7),
        (0, "order", 7),
        (0, "path", 8),
        (0, "path"),
        (0, "path", 7, 0),
        (0, "path", 1, 2),
        (0, "path", 12),
    ]
    assert len({tuple(draw(*address)) for address in addresses}) == len(addresses)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(0, "path", 7)
    assert torch.equal(torch.get_rng_state(), before)
