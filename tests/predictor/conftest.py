"""Shared parts: one thread, the space, and a kit measured on a device that is exactly additive."""

import pytest
import torch

from predictor.kits import (
    block_subject,
    calibration_architectures,
    chains,
    network_subject,
)
from search_core.space.presets import get_space

torch.set_num_threads(1)

CALL_MS = 0.013
"""What each call costs on the synthetic device before any block runs."""


@pytest.fixture(scope="session")
def micro():
    return get_space("micro")


@pytest.fixture(scope="session")
def block_ms():
    """What a block takes on the synthetic device."""
    return lambda block: 0.002 + 2e-7 * block.macs + 1e-8 * block.parameters


@pytest.fixture(scope="session")
def synthetic_kit(block_ms):
    """Measures a whole kit there; `network_ms` turns a block sum into a network's latency."""

    def measure(space, network_ms=lambda block_sum: 0.02 + 1.1 * block_sum):
        measured = {
            block_subject(block, copies): CALL_MS + copies * block_ms(block)
            for block in space.distinct_blocks
            for copies in chains(block)
        }
        for a in calibration_architectures(space):
            measured[network_subject(space, a)] = network_ms(sum(map(block_ms, space.blocks(a))))
        return measured

    return measure
