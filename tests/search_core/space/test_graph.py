"""Which blocks of a decided network have any effect."""

import pytest

from search_core.space.graph import Graph
from search_core.space.nasbench201 import nasbench201

C3 = "nor_conv_3x3"
CELL = nasbench201(channels=4, cells_per_stage=1)


def idle_edges(text):
    """The edges of the first cell that nothing runs through; the stem is block 0."""
    graph = CELL.graph(CELL.parse(text))
    return {index - 1 for index in graph.idle if index <= 6}


@pytest.mark.parametrize(
    ("text", "idle", "wastes"),
    [
        (
            f"|{C3}~0|+|{C3}~0|{C3}~1|+|skip_connect~0|{C3}~1|{C3}~2|",
            set(),
            False,
        ),
        # node 2 feeds nothing, so that its convolutions are paid for in vain
        (
            f"|{C3}~0|+|{C3}~0|nor_conv_1x1~1|+|skip_connect~0|{C3}~1|none~2|",
            {1, 2, 5},
            True,
        ),
        # nothing reaches node 1, so that nothing comes of what it feeds
        (
            "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|",
            {0, 1, 2, 4, 5},
            True,
        ),
        # a pool has no weights, but takes its time
        (
            "|skip_connect~0|+|avg_pool_3x3~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
            {0, 1, 2, 4, 5},
            True,
        ),
        # what is in vain here takes none
        (
            "|skip_connect~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
            {0, 1, 2, 4, 5},
            False,
        ),
    ],
)
def test_blocks_that_no_path_runs_through_are_idle(text, idle, wastes):
    assert idle_edges(text) == idle
    assert CELL.graph(CELL.parse(text)).wastes is wastes


def test_a_cell_of_nothing_leaves_the_whole_network_idle_but_for_its_end():
    text = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    graph = CELL.graph(CELL.parse(text))
    assert graph.wastes
    assert 0 in graph.idle


def test_no_block_of_a_chain_is_idle(micro):
    graph = micro.graph(micro.architecture([0] * 6))
    assert not graph.idle
    assert graph.is_chain
    assert Graph.chain(graph.blocks) == graph == Graph.of(graph.blocks)
