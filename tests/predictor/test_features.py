import numpy as np
import pytest

from predictor.errors import BadTableError
from predictor.features import (
    KEYS,
    WORK,
    Convolutions,
    KernelKind,
    Workload,
    comparable,
    element_bytes,
    fused_kernels,
    key_features,
    work,
)
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space

SPACES = ("proxyless_cifar_mb", "spos_imagenet", "nasbench201")


def block(text):
    return BlockSpec.parse(text)


def column(rows, name):
    return rows[:, WORK.index(name)]


def convolutions(**changed):
    one = {
        "precision": np.array(["fp32"]),
        "depthwise": np.array([False]),
        "batch": np.array([1]),
        "in_channels": np.array([24]),
        "resolution_px": np.array([15]),
        "out_channels": np.array([40]),
        "kernel": np.array([3]),
        "stride": np.array([2]),
        "fused": np.array([0]),
    }
    return Convolutions(**(one | {name: np.array([value]) for name, value in changed.items()}))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("mbconv_k5_e3_s1_i24_o24_r8", ["dense", "depthwise", "dense"]),
        ("mbconv_k3_e1_s1_i24_o24_r8", ["depthwise", "dense"]),
        ("conv_k3_e1_s2_i3_o32_r32", ["dense"]),
        ("reluconv_k3_e1_s1_i16_o16_r32", ["memory", "dense"]),  # nothing to fold the ReLU into
        ("sepconv_k3_e1_s1_i16_o16_r8", ["memory", "depthwise", "dense"]),
        ("classifier_k1_e1_s1_i320_o10_r4", ["memory", "dense"]),
        ("skip_k1_e1_s1_i16_o16_r8", []),
    ],
)
def test_a_block_becomes_the_kernels_that_a_runtime_launches(text, kinds):
    assert [kernel.kind for kernel in fused_kernels(block(text))] == kinds


@pytest.mark.parametrize("name", SPACES)
def test_no_multiply_accumulate_is_lost_in_the_kernels(name):
    for spec in get_space(name).distinct_blocks:
        assert sum(kernel.macs for kernel in fused_kernels(spec)) == spec.macs


def test_work_scales_with_batch_and_precision_where_it_should():
    spec = block("mbconv_k5_e3_s2_i24_o40_r8")
    rows = work([spec, Workload(spec, batch=4), Workload(spec, precision="fp16")])
    for name in ("dense_macs", "depthwise_macs", "activation_bytes"):
        assert column(rows, name)[1] == 4 * column(rows, name)[0]
    assert column(rows, "weight_bytes")[1] == column(rows, "weight_bytes")[0]
    for name in ("activation_bytes", "weight_bytes"):
        assert column(rows, name)[2] == column(rows, name)[0] / 2
    for name in ("calls", "kernels"):
        assert np.ptp(column(rows, name)) == 0.0


def test_squeeze_and_excitation_is_work():
    spec = block("mbconv_k5_e4_s1_i24_o24_r8")
    plain, squeezed = work([spec, Workload(spec, squeeze_excite=True)])
    hidden = 96
    assert (squeezed - plain)[WORK.index("dense_macs")] == 2 * hidden * hidden // 4
    assert (squeezed - plain)[WORK.index("kernels")] == 4
    kinds = [kernel.kind for kernel in Workload(spec, squeeze_excite=True).kernels]
    assert kinds.count(KernelKind.MEMORY) == 2


@pytest.mark.parametrize("name", SPACES)
def test_keys_tell_all_blocks_of_a_space_apart(name):
    blocks = get_space(name).distinct_blocks
    keys = key_features(list(blocks))
    assert keys.shape == (len(blocks), len(KEYS))
    assert len(np.unique(keys, axis=0)) == len(blocks)


@pytest.mark.parametrize(
    "workload",
    [
        Workload(block("mbconv_k3_e3_s1_i24_o24_r8"), batch=2),
        Workload(block("mbconv_k3_e3_s1_i24_o24_r8"), precision="int8"),
        Workload(block("mbconv_k3_e3_s1_i24_o24_r8"), squeeze_excite=True),
        Workload(block("mbconv_k3_e3_s1_i24_o24_r8"), hard_swish=True),
    ],
)
def test_keys_tell_ways_of_running_a_block_apart(workload):
    plain, other = key_features([workload.block, workload])
    assert (plain != other).any()


def test_blocks_compare_only_within_a_sort():
    smaller, larger = block("mbconv_k3_e3_s1_i24_o40_r8"), block("mbconv_k5_e6_s1_i24_o40_r16")
    strided = block("mbconv_k5_e6_s2_i24_o40_r16")
    sorts, sizes = comparable([smaller, larger, strided, Workload(larger, hard_swish=True)])
    assert sorts[0] == sorts[1]
    assert len(set(sorts)) == 3
    assert (sizes[0] <= sizes[1]).all()


def test_a_measuring_campaign_does_not_change_a_precision():
    assert element_bytes("fp16_again") == element_bytes("fp16") == 2
    with pytest.raises(BadTableError, match="'fp12' is no precision"):
        element_bytes("fp12")


def test_a_convolution_asks_the_same_work_in_either_form():
    in_table = convolutions().work()
    assert in_table == pytest.approx(work([block("conv_k3_e1_s2_i24_o40_r15")]))


def test_a_depthwise_convolution_has_one_filter_a_channel():
    dense, depthwise = (
        convolutions(out_channels=24, depthwise=kind).work()[0] for kind in (False, True)
    )
    assert depthwise[WORK.index("depthwise_macs")] * 24 == dense[WORK.index("dense_macs")]
    assert depthwise[WORK.index("dense_macs")] == 0


def test_every_property_of_a_convolution_is_a_feature():
    plain = convolutions().features()
    changes = {
        "batch": 2,
        "in_channels": 32,
        "resolution_px": 16,
        "out_channels": 48,
        "kernel": 5,
        "stride": 1,
        "fused": 1,
    }
    for name, value in changes.items():
        assert (convolutions(**{name: value}).features() != plain).any(), name
    assert (convolutions(precision="int8").features() != plain).any()


def test_features_of_a_convolution_do_not_depend_on_what_else_is_there():
    first, second = convolutions(precision="int8"), convolutions(precision="fp16")
    together = first.followed_by(second)
    assert together.precision.tolist() == ["int8", "fp16"]
    assert (together.features()[1] == second.features()[0]).all()
    assert (together[np.array([1])].work() == second.work()).all()
