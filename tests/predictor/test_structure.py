"""What runs of a network, counted in cells small enough to count by hand."""

import itertools
import random

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from predictor.structure import (
    canonical_digest,
    feature_names,
    is_degenerate,
    structural_features,
)
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph
from search_core.space.nasbench201 import OPERATIONS, nasbench201
from search_core.space.presets import get_space
from search_core.space.primitives import Primitive

SPACE = nasbench201(cells_per_stage=1)
NONE, SKIP, CONV1, CONV3, POOL = range(len(OPERATIONS))
CELLS = 3


def cell(*choices):
    """Edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3, in this order."""
    return SPACE.graph(SPACE.architecture(choices))


def counted(*choices):
    return dict(zip(feature_names(SPACE), structural_features(SPACE, cell(*choices)), strict=True))


def relu_conv(kernel=3):
    return BlockSpec(BlockKind.RELU_CONV, kernel, 1, 1, 8, 8, 4)


def block(kind):
    return BlockSpec(kind, 3 if kind is BlockKind.AVG_POOL else 1, 1, 1, 8, 8, 4)


def test_swapping_two_nodes_that_do_not_read_each_other_changes_no_digest():
    pairs = 0
    for a, b, d, e, f in itertools.product(range(5), repeat=5):
        if (a, e) < (b, f):
            one, other = cell(a, b, NONE, d, e, f), cell(b, a, NONE, d, f, e)
            assert canonical_digest(one) == canonical_digest(other)
            pairs += 1
    assert pairs > 1000


def test_a_dead_branch_changes_no_digest():
    live = canonical_digest(cell(CONV3, NONE, NONE, SKIP, CONV1, NONE))
    assert canonical_digest(cell(CONV3, POOL, CONV3, SKIP, CONV1, NONE)) == live
    assert canonical_digest(cell(CONV3, NONE, CONV3, SKIP, CONV1, NONE)) == live
    assert canonical_digest(cell(CONV3, NONE, CONV3, SKIP, CONV1, SKIP)) != live


def test_a_lone_skip_only_renames_a_value():
    through_node_1 = cell(SKIP, NONE, NONE, NONE, CONV3, NONE)
    assert canonical_digest(through_node_1) == canonical_digest(
        cell(NONE, NONE, NONE, CONV3, NONE, NONE)
    )


def test_a_value_used_twice_is_not_one_computed_twice():
    shared = cell(CONV3, NONE, SKIP, NONE, CONV1, CONV3)
    twice = cell(CONV3, CONV3, NONE, NONE, CONV1, CONV3)
    assert canonical_digest(shared) != canonical_digest(twice)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((CONV3, NONE, NONE, NONE, CONV1, NONE), (CONV1, NONE, NONE, NONE, CONV3, NONE)),
        ((CONV3, NONE, NONE, SKIP, CONV3, NONE), (CONV3, NONE, NONE, NONE, CONV3, NONE)),
        ((NONE, NONE, NONE, POOL, NONE, NONE), (NONE, NONE, NONE, SKIP, NONE, NONE)),
    ],
)
def test_networks_that_differ_have_digests_that_differ(one, other):
    assert canonical_digest(cell(*one)) != canonical_digest(cell(*other))


def test_a_digest_does_not_depend_on_the_numbers_of_nodes_or_the_order_of_blocks():
    conv, pool, last = relu_conv(), block(BlockKind.AVG_POOL), relu_conv(1)
    one = Graph((conv, pool, last), ((0, 1), (0, 2), (1, 2)))
    other = Graph((conv, last, pool), ((0, 7), (7, 3), (0, 3)))
    assert canonical_digest(one) == canonical_digest(other)


def test_a_network_is_degenerate_where_no_path_reaches_the_output():
    assert is_degenerate(cell(CONV3, CONV3, CONV3, NONE, NONE, NONE))
    assert is_degenerate(cell(NONE, NONE, CONV3, NONE, CONV3, CONV3))
    assert not is_degenerate(cell(NONE, NONE, NONE, SKIP, NONE, NONE))


def test_a_dead_branch_is_written_but_not_wanted():
    counts = counted(CONV3, NONE, NONE, SKIP, NONE, NONE)
    assert counts["written:reluconv_k3_e1"] == CELLS
    assert counts["wanted:reluconv_k3_e1"] == 0
    saved = counts["written:macs"] - counts["wanted:macs"]
    widths = ((16, 32), (32, 16), (64, 8))
    assert saved == sum(9 * channels**2 * pixels**2 for channels, pixels in widths)


def test_what_reads_zeros_is_wanted_as_long_as_it_is_used():
    counts = counted(NONE, NONE, NONE, SKIP, CONV3, NONE)
    assert counts["wanted:reluconv_k3_e1"] == CELLS


def test_equal_poolings_are_one_and_poolings_of_other_values_are_not():
    counts = counted(NONE, POOL, NONE, POOL, NONE, POOL)
    assert counts["wanted:avgpool_k3_e1"] == 3 * CELLS
    assert counts["wanted:distinct_poolings"] == 2 * CELLS  # of the input, and of that


def test_a_skip_beside_nothing_keeps_poolings_equal_and_a_product_with_zero_does_not():
    counts = counted(NONE, SKIP, NONE, POOL, NONE, POOL)
    assert counts["wanted:distinct_poolings"] == CELLS
    assert counts["written:distinct_poolings"] == 2 * CELLS  # node 2 is a sum with zeros there


def test_convolutions_are_never_equal():
    counts = counted(CONV3, CONV3, NONE, NONE, SKIP, SKIP)
    assert counts["wanted:reluconv_k3_e1"] == 2 * CELLS
    assert counts["wanted:distinct_additions"] == counts["wanted:additions"] == CELLS


def test_an_addition_runs_inside_of_a_convolution_that_it_follows():
    plain, inside = (
        counted(POOL, NONE, NONE, SKIP, SKIP, NONE),
        counted(POOL, NONE, NONE, SKIP, CONV1, NONE),
    )
    assert plain["wanted:additions"] == inside["wanted:additions"] == CELLS
    assert (plain["wanted:plain_additions"], inside["wanted:plain_additions"]) == (CELLS, 0)


def test_an_activation_is_shared_by_its_readers_and_runs_inside_of_a_lone_convolution():
    shared = counted(CONV3, CONV3, NONE, CONV3, NONE, NONE)
    alone = counted(NONE, NONE, NONE, CONV3, NONE, NONE)
    assert shared["written:distinct_relus"] == alone["written:distinct_relus"]
    chain = counted(CONV3, NONE, NONE, NONE, CONV3, NONE)
    assert (
        chain["wanted:conv_relus"]
        > counted(POOL, NONE, NONE, NONE, CONV3, NONE)["wanted:conv_relus"]
    )


def test_a_value_that_is_read_unactivated_as_well_keeps_its_activation_a_kernel():
    counts = counted(CONV3, NONE, NONE, NONE, CONV3, NONE)
    as_well = counted(CONV3, NONE, POOL, NONE, CONV3, SKIP)
    assert as_well["wanted:plain_relus"] == counts["wanted:plain_relus"] + CELLS


def test_counts_do_not_depend_on_the_order_in_which_blocks_are_added():
    """Node 3 is added to before node 1 is made."""
    space = get_space("nasbench201_n1")
    graph = space.graph(space.architecture((CONV3, NONE, NONE, POOL, CONV1, NONE)))
    late = [i for i, edge in enumerate(graph.edges) if edge == (1, 4)]
    order = [0, *late, *(i for i in range(1, len(graph.blocks)) if i not in late)]
    moved = Graph(tuple(graph.blocks[i] for i in order), tuple(graph.edges[i] for i in order))
    assert structural_features(space, moved) == structural_features(space, graph)
    assert canonical_digest(moved) == canonical_digest(graph)


@pytest.mark.parametrize("name", ["micro", "proxyless_cifar_mb", "spos_cifar"])
def test_a_chain_without_dead_branches_reads_the_same_both_ways(
    name,
):
    space = get_space(name)
    architecture = space.architecture([0] * len(space.slots))
    counts = structural_features(space, space.graph(architecture))
    assert counts[: len(counts) // 2] == counts[len(counts) // 2 :]
    named = dict(zip(feature_names(space), counts, strict=True))
    assert named["written:macs"] == space.macs(architecture)
    assert named["written:weights"] == space.parameters(architecture)


def as_written(graph):
    """The network in ONNX with nothing removed: zeros are products, sums are chains."""
    nodes, weights, names = [], [], itertools.count()

    def emit(kind, inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"v{next(names)}"], **attributes))
        return nodes[-1].output[0]

    def constant(values):
        weights.append(numpy_helper.from_array(np.asarray(values, np.float32), f"w{next(names)}"))
        return weights[-1].name

    def run(step, inputs):
        window = {"kernel_shape": [step.kernel] * 2, "strides": [step.stride] * 2}
        window["pads"] = [step.padding] * 4
        match step.primitive:
            case Primitive.CONV:
                shape = (step.out_channels, step.in_channels, step.kernel, step.kernel)
                return emit("Conv", [*inputs, constant(rng.normal(size=shape))], **window)
            case Primitive.AVG_POOL:
                return emit("AveragePool", inputs, **window)
            case Primitive.BATCH_NORM:
                return inputs[0]  # folded into the convolution before it
            case Primitive.LINEAR:
                flat = emit("Flatten", inputs)
                matrix = constant(rng.normal(size=(step.in_channels, step.out_channels)))
                return emit("Gemm", [flat, matrix])
        return emit(
            {"relu": "Relu", "add": "Add", "global_pool": "GlobalAveragePool"}[step.primitive],
            inputs,
        )

    rng, value = np.random.default_rng(0), {0: "x"}
    for block, (source, target) in zip(graph.blocks, graph.edges, strict=True):
        values = [value[source]]
        for step in block.steps:
            values.append(run(step, [values[i] for i in step.inputs]))
        if block.kind is BlockKind.NONE:
            values.append(emit("Mul", [values[0], constant(0.0)]))
        made = values[-1]
        value[target] = emit("Add", [value[target], made]) if target in value else made
    floats = onnx.TensorProto.FLOAT
    one_in = helper.make_tensor_value_info("x", floats, [1, 3, 32, 32])
    one_out = helper.make_tensor_value_info(value[graph.edges[-1][1]], floats, [1, 10])
    drawn = helper.make_graph(nodes, "network", [one_in], [one_out], weights)
    return helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_onnx_runtime_computes_as_many_zeros_and_poolings_as_are_distinct(tmp_path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    rng, n_reductions, merged = random.Random(0), 2, 0
    for _ in range(12):
        choices = [rng.choice((NONE, SKIP, CONV1, POOL, POOL)) for _ in range(6)]
        model = as_written(cell(*choices)).SerializeToString()
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        kernels = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        counts = counted(*choices)
        assert kernels.count("Mul") == counts["written:distinct_zeros"]
        assert kernels.count("AveragePool") == counts["written:distinct_poolings"] + n_reductions
        merged += counts["written:avgpool_k3_e1"] > counts["written:distinct_poolings"]
    assert merged > 2
