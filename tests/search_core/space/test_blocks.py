"""The block grammar, and published counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_core.errors import BlockSyntaxError
from search_core.space.blocks import BlockKind, BlockSpec

numbers = st.integers(1, 10**6)
specs = st.builds(
    BlockSpec, st.sampled_from(BlockKind), numbers, numbers, numbers, numbers, numbers, numbers
)


@given(specs)
def test_parse_inverts_str(spec):
    assert BlockSpec.parse(str(spec)) == spec


def test_str_inverts_parse():
    text = "mbconv_k5_e3_s2_i24_o40_r8"
    assert str(BlockSpec.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mbconv",
        "MBCONV_k5_e3_s2_i24_o40_r8",
        "dense_k5_e3_s2_i24_o40_r8",
        "mbconv_k0_e3_s2_i24_o40_r8",
        "mbconv_k05_e3_s2_i24_o40_r8",
        "mbconv_k-5_e3_s2_i24_o40_r8",
        "mbconv_k5_e3_s2_i24_o40",
        "mbconv_e3_k5_s2_i24_o40_r8",
        "mbconv_k5_e3_s2_i24_o40_r8_x4",
        "mbconv_k5_e3_s2_i24_o40_r8\n",
        " mbconv_k5_e3_s2_i24_o40_r8",
    ],
)
def test_a_string_outside_the_grammar_is_refused(text):
    with pytest.raises(BlockSyntaxError):
        BlockSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "parameters", "macs"),
    [
        ("conv_k3_e1_s2_i3_o32_r224", 928, 10838016),
        ("mbconv_k3_e1_s1_i32_o16_r112", 896, 10035200),
        ("mbconv_k5_e3_s2_i16_o32_r112", 3760, 18213888),
        ("mbconv_k3_e3_s1_i32_o32_r56", 7456, 21977088),
        ("mbconv_k7_e3_s2_i32_o40_r56", 12080, 16332288),
        ("mbconv_k7_e6_s2_i40_o80_r28", 41680, 13594560),
        ("mbconv_k5_e6_s1_i80_o96_r14", 98592, 18910080),
        ("mbconv_k7_e6_s1_i192_o320_r7", 651520, 31667328),
        ("conv_k1_e1_s1_i320_o1280_r7", 412160, 20070400),
        ("classifier_k1_e1_s1_i1280_o1000_r7", 1281000, 1280000),
    ],
)
def test_counts_are_those_published_for_proxyless_mobile(text, parameters, macs):
    spec = BlockSpec.parse(text)
    assert (spec.parameters, spec.macs) == (parameters, macs)


def test_zero_costs_nothing():
    spec = BlockSpec.parse("zero_k1_e1_s1_i24_o24_r8")
    assert (spec.parameters, spec.macs) == (0, 0)


@pytest.mark.parametrize(
    ("text", "has_shortcut"),
    [
        ("mbconv_k3_e3_s1_i24_o24_r8", True),
        ("zero_k1_e1_s1_i24_o24_r8", True),
        ("mbconv_k3_e3_s2_i24_o24_r8", False),
        ("mbconv_k3_e3_s1_i24_o40_r8", False),
        ("conv_k3_e1_s1_i24_o24_r8", False),
        ("classifier_k1_e1_s1_i10_o10_r1", False),
    ],
)
def test_only_a_searchable_block_that_keeps_its_shape_has_a_shortcut(text, has_shortcut):
    assert BlockSpec.parse(text).has_shortcut is has_shortcut


def test_digits_of_other_scripts_are_no_numbers():
    with pytest.raises(BlockSyntaxError):
        BlockSpec.parse("conv_k1\u0663_e1_s1_i1_o1_r1")
