"""Prices of kernels from sums of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from predictor.errors import BadTableError, ModelDocumentError, UnusableMeasurementsError
from predictor.models.kernel_prices import OUTSIDE_FACTOR, UNKNOWN_FACTOR, KernelPrices
from predictor.onnx_kernels import Kernel, KernelGraph, read_kernels
from search_core.onnx_graph import build_model, random_weights
from search_core.space.blocks import BlockSpec

DOCUMENTS = Path(__file__).parents[1] / "documents"
CALL_MS = 0.004
CHANNELS = (16, 32, 64, 128)
SIDES = (8, 16, 32)


def convolution(kind, channels, side, window=1):
    elements = channels * side * side
    inner = 1 if kind == "depthwise" else channels
    weights = channels * inner * window
    return Kernel(
        name=f"{kind} {channels} {side} {window}",
        operator="Conv",
        kind=kind,
        inputs=((1, channels, side, side),),
        outputs=((1, channels, side, side),),
        macs=elements * inner * window,
        bytes_read=4 * elements,
        bytes_written=4 * elements,
        weight_bytes=4 * weights,
        window=window,
    )


def other(operator, side=16):
    (shape,) = convolution("pointwise", 32, side).inputs
    return Kernel(operator, operator, "elementwise", (shape,), (shape,), 0, 2**15, 2**15, 0)


def true_ms(kernel):
    """Rates by kind; and kernels of 32 channels take longer than that."""
    macs, moved = kernel.macs / 1e6, (kernel.bytes_read + kernel.bytes_written) / 1e6
    rate = {"pointwise": 0.008, "depthwise": 0.02}.get(kernel.kind, 0.01)
    return (0.001 + rate * macs + 0.01 * moved) * (1.15 if kernel.inputs[0][1] == 32 else 1.0)


def file_of(*kernels):
    return KernelGraph(tuple(kernels), "", "onnxruntime 1")


def latency_ms(graph):
    return CALL_MS + sum(map(true_ms, graph.kernels))


KERNELS = [
    *(convolution("pointwise", c, s) for c in CHANNELS for s in SIDES),
    *(convolution("depthwise", c, s, w) for c in CHANNELS for s in SIDES for w in (9, 25)),
]


def networks(n, seed):
    rng = np.random.default_rng(seed)
    return [file_of(*(KERNELS[i] for i in rng.integers(len(KERNELS), size=20))) for _ in range(n)]


def noisy(graphs, noise=0.01, seed=0):
    factors = 1.0 + noise * np.random.default_rng(seed).standard_normal(len(graphs))
    return np.array([latency_ms(graph) for graph in graphs]) * factors


BLOCKS = [file_of(k) for k in KERNELS]
NETWORKS = networks(40, seed=1)
UNSEEN = networks(60, seed=2)


@pytest.fixture(scope="module")
def prices():
    files = BLOCKS + NETWORKS
    flags = [False] * len(BLOCKS) + [True] * len(NETWORKS)
    return KernelPrices().fit(files, noisy(files), flags)


def errors(prices, graphs):
    predicted = np.array([prices.predict(graph).latency_ms for graph in graphs])
    return np.abs(predicted / np.array([latency_ms(graph) for graph in graphs]) - 1.0)


def test_unseen_networks_are_predicted_within_the_noise(prices):
    assert errors(prices, UNSEEN).mean() < 0.01


def test_files_without_any_noise_are_no_trouble():
    graphs = networks(40, seed=8)
    exact = np.array([latency_ms(graph) for graph in graphs])
    fitted = KernelPrices().fit(graphs, exact, [True] * 40)
    assert max(abs(errors(fitted, networks(10, seed=9)))) < 0.1


def test_single_kernels_are_priced_though_only_files_were_timed(prices):
    predicted = prices.predict(NETWORKS[0])
    found = [kernel.latency_ms for kernel in predicted.kernels]
    expected = [true_ms(kernel) for kernel in NETWORKS[0].kernels]
    assert found == pytest.approx(expected, rel=0.25)
    assert np.corrcoef(found, expected)[0, 1] > 0.999


@pytest.mark.parametrize("part", ["kinds", "kernels"])
def test_each_part_helps_with_chains_of_blocks(part):
    files = BLOCKS[::2] + NETWORKS[:10]
    flags = [len(graph.kernels) > 1 for graph in files]
    models = [
        KernelPrices({"kinds", "kernels", "files"} - without).fit(files, noisy(files), flags)
        for without in (set(), {part})
    ]
    chains = [file_of(*graph.kernels * 4) for graph in BLOCKS]
    whole, lesser = (errors(model, chains).mean() for model in models)
    assert whole < 0.9 * lesser


def test_networks_that_run_slower_than_their_blocks_are_corrected_as_files():
    files = BLOCKS + NETWORKS
    flags = [False] * len(BLOCKS) + [True] * len(NETWORKS)
    measured = noisy(files) * np.where(flags, 1.1, 1.0)
    whole = KernelPrices().fit(files, measured, flags)
    parts = KernelPrices(["kinds", "kernels"]).fit(files, measured, flags)
    worst = [
        np.mean([abs(p.predict(g).latency_ms / (1.1 * latency_ms(g)) - 1.0) for g in UNSEEN])
        for p in (whole, parts)
    ]
    assert worst[0] < worst[1]


def test_a_waterfall_adds_up(prices):
    found = prices.predict(UNSEEN[0])
    assert len(found.kernels) == len(UNSEEN[0].kernels)
    assert found.latency_ms == pytest.approx(
        found.call_ms + sum(kernel.latency_ms for kernel in found.kernels), rel=1e-12
    )
    assert found.coverage == pytest.approx(1.0)
    assert found.unknown == ()


def test_intervals_hold_the_noise_they_were_fitted_to_and_no_more(prices):
    def share_inside(noise):
        measured = noisy(UNSEEN, noise)
        return np.mean([f.low_ms <= ms <= f.high_ms for f, ms in zip(found, measured, strict=True)])

    found = [prices.predict(graph) for graph in UNSEEN]
    assert share_inside(0.01) > 0.8
    assert share_inside(0.05) < 0.7


def test_an_unknown_operator_is_listed_and_costs_something(prices):
    known, unknown = KERNELS[0], other("Softmax")
    found = prices.predict(file_of(known, unknown))
    bar = found.kernels[1]
    assert found.unknown == ("Softmax",)
    assert bar.standing == "unknown"
    assert bar.latency_ms > 0.0
    assert found.coverage == pytest.approx(1.0 - bar.latency_ms / found.latency_ms)
    assert found.high_ms - found.latency_ms > (UNKNOWN_FACTOR - 1.0) * bar.latency_ms


def test_work_that_cannot_be_counted_is_unknown_whatever_its_operator(prices):
    kernel = replace(KERNELS[0], counted=False)
    assert prices.predict(file_of(kernel)).unknown == ("Conv",)


@pytest.mark.parametrize(
    "kernel",
    [
        convolution("pointwise", 2048, 8),
        convolution("depthwise", 32, 16, window=49),
        convolution("conv", 32, 16, window=9),
    ],
)
def test_a_kernel_far_from_every_fitted_one_is_outside(prices, kernel):
    found = prices.predict(file_of(kernel))
    assert found.kernels[0].standing == "outside"
    assert found.unknown == ()
    assert found.high_ms - found.latency_ms > (OUTSIDE_FACTOR - 1.0) * found.kernels[0].latency_ms


def test_a_kernel_between_the_fitted_ones_is_fitted(prices):
    kernel = convolution("pointwise", 48, 16)
    found = prices.predict(file_of(kernel))
    assert found.coverage == pytest.approx(1.0)
    assert found.kernels[0].latency_ms == pytest.approx(true_ms(kernel), rel=0.15)


def test_a_file_that_was_folded_away_costs_the_call(prices):
    found = prices.predict(file_of())
    assert found.latency_ms == found.call_ms > 0.0
    assert found.coverage == 1.0


def test_a_stored_document_predicts_the_same(prices):
    read = KernelPrices.from_document(json.loads(json.dumps(prices.to_document())))
    assert read.predict(UNSEEN[0]) == prices.predict(UNSEEN[0])


def test_prices_of_every_released_version_still_predict():
    prices = KernelPrices.from_document(
        json.loads((DOCUMENTS / "kernel_prices_1.json").read_text("utf-8"))
    )
    found = prices.predict(file_of(KERNELS[0], KERNELS[20], other("Softmax")))
    assert found.latency_ms == pytest.approx(0.0123125495)
    assert found.unknown == ("Softmax",)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "tailor-kernel-prices/0"},
        {"features": 99},
        {"unit": "us"},
        {"rates_ms": [[1.0]]},
        {"call_ms": float("nan")},
        {"weights": [1.0]},
        {"operators": None},
        {"intervals": {}},
    ],
)
def test_a_damaged_document_is_refused(prices, damage):
    with pytest.raises(ModelDocumentError):
        KernelPrices.from_document({**prices.to_document(), **damage})


def test_files_of_another_runtime_are_not_priced(prices):
    graph = KernelGraph(NETWORKS[0].kernels, "", "onnxruntime 2")
    with pytest.raises(ModelDocumentError, match="onnxruntime 2"):
        prices.predict(graph)


def test_files_of_several_runtimes_are_not_fitted_together():
    files = [*NETWORKS, KernelGraph(KERNELS[:1], "", "onnxruntime 2")]
    with pytest.raises(UnusableMeasurementsError, match="several runtimes"):
        KernelPrices().fit(files, noisy(files), [True] * len(files))


def test_too_few_networks_are_refused():
    with pytest.raises(UnusableMeasurementsError, match="0 whole networks"):
        KernelPrices().fit(BLOCKS, noisy(BLOCKS), [False] * len(BLOCKS))


@pytest.mark.parametrize(
    ("row", "value"), [(3, float("nan")), (7, 0.0), (0, -1.0), (5, float("inf"))]
)
def test_a_bad_latency_is_refused_and_its_row_named(row, value):
    measured = noisy(NETWORKS)
    measured[row] = value
    with pytest.raises(BadTableError) as caught:
        KernelPrices().fit(NETWORKS, measured, [True] * len(NETWORKS))
    assert caught.value.row == row


def test_constant_latencies_are_refused():
    with pytest.raises(BadTableError, match="nothing can be learnt"):
        KernelPrices().fit(NETWORKS, np.ones(len(NETWORKS)), [True] * len(NETWORKS))


def test_few_files_are_refused():
    with pytest.raises(BadTableError, match="12 samples"):
        KernelPrices().fit(NETWORKS[:12], noisy(NETWORKS[:12]), [True] * 12)


def test_a_real_file_is_priced_kernel_by_kernel():
    def read(text, copies):
        blocks = (BlockSpec.parse(text),) * copies
        return read_kernels(build_model(blocks, random_weights(blocks)))

    names = [f"mbconv_k{k}_e{e}_s1_i16_o16_r{r}" for k in (3, 5) for e in (1, 3) for r in (4, 8)]
    files = [read(name, copies) for name in names for copies in (1, 2, 3)]
    measured = np.array([CALL_MS + sum(map(true_ms, graph.kernels)) for graph in files])
    prices = KernelPrices().fit(files, measured, [True] * len(files))
    graph = read("mbconv_k5_e3_s1_i16_o16_r8", 4)
    found = prices.predict(graph)
    assert found.latency_ms == pytest.approx(latency_ms(graph), rel=0.1)
    assert [bar.name for bar in found.kernels] == [kernel.name for kernel in graph.kernels]
