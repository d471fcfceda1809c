"""The example heads, trained for some steps on drawn rectangles, and the loss of detection."""

import pytest
import torch
from torch.nn import functional

from search_core.nn.features import FeatureBackbone
from search_core.nn.heads import DetectionHead, Detections, SegmentationHead, detection_loss
from search_core.nn.network import Network
from search_core.randomness import stream
from search_core.space.blocks import BlockKind, BlockSpec

SIDE_PX = 48
N_CLASSES = 2  # of rectangles: bright in the first channel, bright in the second


def small_network():
    """Stem and four MBConvs: strides 2 to 16."""
    blocks = [BlockSpec(BlockKind.CONV, 3, 1, 2, 3, 8, SIDE_PX)]
    for channels, stride in ((16, 2), (24, 2), (24, 1), (32, 2)):
        last = blocks[-1]
        shape = (last.out_channels, channels, last.out_resolution_px)
        blocks.append(BlockSpec(BlockKind.MBCONV, 3, 3, stride, *shape))
    last = blocks[-1]
    blocks.append(BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, 32, 10, last.out_resolution_px))
    return Network.initialised(blocks, stream(1, "weights"))


def drawn(generator, n_images):
    """Noisy images (B, 3, H, W) with one rectangle each, its box (B, 4) and class (B,)."""
    images = 0.3 * torch.randn(n_images, 3, SIDE_PX, SIDE_PX, generator=generator)
    sides = torch.randint(10, 23, (n_images, 2), generator=generator)
    corners = (torch.rand(n_images, 2, generator=generator) * (SIDE_PX - sides)).long()
    boxes = torch.cat([corners, corners + sides], dim=1)
    classes = torch.randint(N_CLASSES, (n_images,), generator=generator)
    for image, (left, top, right, bottom), kind in zip(images, boxes, classes, strict=True):
        image[kind, top:bottom, left:right] += 1.0
    return images, boxes.float(), classes


def masks_of(boxes, classes):
    """(B, H, W): the class of each pixel, N_CLASSES for the background."""
    masks = torch.full((len(boxes), SIDE_PX, SIDE_PX), N_CLASSES)
    for mask, (left, top, right, bottom), kind in zip(masks, boxes.int(), classes, strict=True):
        mask[top:bottom, left:right] = kind
    return masks


def trained(backbone, head, loss_of, steps):
    """The loss of every step; backbone and head learn together and end in evaluation mode."""
    parameters = [*backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    generator, losses = stream(3, "images"), []
    for _ in range(steps):
        images, boxes, classes = drawn(generator, 16)
        loss = loss_of(head, backbone(images), boxes, classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    backbone.eval()
    head.eval()
    return losses


def fallen(losses):
    """The mean of the first five over that of the last five."""
    return sum(losses[:5]) / sum(losses[-5:])


def test_a_segmentation_head_learns_the_pixels_of_rectangles():
    backbone = FeatureBackbone(small_network(), (4, 8, 16))
    torch.manual_seed(1)
    head = SegmentationHead(backbone.channels, N_CLASSES + 1, width=16)

    def loss_of(head, features, boxes, classes):
        scores = head(features, (SIDE_PX, SIDE_PX))
        return functional.cross_entropy(scores, masks_of(boxes, classes))

    losses = trained(backbone, head, loss_of, steps=60)
    assert fallen(losses) > 3.0

    images, boxes, classes = drawn(stream(4, "images"), 32)
    with torch.no_grad():
        guessed = head(backbone(images), images.shape[-2:]).argmax(1)
    true = masks_of(boxes, classes)
    overlaps = [
        ((guessed == k) & (true == k)).sum() / ((guessed == k) | (true == k)).sum()
        for k in range(N_CLASSES + 1)
    ]
    assert sum(overlaps) / len(overlaps) > 0.6  # background everywhere has 0.3


def test_a_detection_head_learns_to_find_rectangles():
    backbone = FeatureBackbone(small_network(), (4, 8, 16))
    torch.manual_seed(1)
    head = DetectionHead(backbone.channels, backbone.strides, N_CLASSES, width=16)

    def loss_of(head, features, boxes, classes):
        return detection_loss(head(features), boxes[:, None], classes[:, None])

    losses = trained(backbone, head, loss_of, steps=80)
    assert fallen(losses) > 2.0

    images, boxes, classes = drawn(stream(4, "images"), 32)
    with torch.no_grad():
        found = head(backbone(images))
    confidences, guessed = found.confidences.max(-1)  # (B, P)
    best = confidences.argmax(1)
    rows = torch.arange(len(images))
    best_boxes = found.boxes[rows, best]
    centres = (best_boxes[:, :2] + best_boxes[:, 2:]) / 2
    inside = ((centres > boxes[:, :2]) & (centres < boxes[:, 2:])).all(1)
    assert inside.float().mean() > 0.8  # a random point is inside one time in nine
    assert (guessed[rows, best] == classes).float().mean() > 0.8
    assert overlap(best_boxes, boxes).mean() > 0.4


def overlap(a, b):
    """Intersection over union of boxes, pair by pair."""
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (a, b)]
    shared = sides.prod(1)
    return shared / (sum(areas) - shared)


def test_heads_take_maps_of_sizes_that_do_not_divide():
    backbone = FeatureBackbone(small_network(), (4, 8, 16)).eval()
    images = torch.randn(2, 3, 37, 51, generator=stream(1, "images"))
    with torch.no_grad():
        features = backbone(images)
        scores = SegmentationHead(backbone.channels, 5, width=8)(features, (37, 51))
        found = DetectionHead(backbone.channels, backbone.strides, 5, width=8)(features)
    assert scores.shape == (2, 5, 37, 51)
    n_points = 10 * 13 + 5 * 7 + 3 * 4
    assert found.points.shape == (n_points, 2)
    assert found.scores.shape == (2, n_points, 5)
    assert found.boxes.shape == (2, n_points, 4)
    assert (found.distances > 0).all()


# the loss of detection, on points laid out by hand: a 4 x 4 level of stride 8, a 2 x 2 of 16


def detections(distances=None, logit=0.0):
    points = [(8 * x + 4.0, 8 * y + 4.0) for y in range(4) for x in range(4)]
    points += [(16 * x + 8.0, 16 * y + 8.0) for y in range(2) for x in range(2)]
    n_points = len(points)
    return Detections(
        points=torch.tensor(points),
        strides=torch.tensor([8.0] * 16 + [16.0] * 4),
        scores=torch.full((1, n_points, 2), logit, requires_grad=True),
        distances=torch.ones(1, n_points, 4) if distances is None else distances,
        centreness=torch.zeros(1, n_points),
    )


def test_a_perfect_answer_loses_next_to_nothing():
    box, kind = torch.tensor([[2.0, 2.0, 14.0, 14.0]]), torch.tensor([1])
    found = detections()
    distances = torch.cat([found.points - box[:, :2], box[:, 2:] - found.points], 1).clamp(min=0.1)
    inside = (distances > 0.1).all(1)
    at_fine = inside & (found.strides == 8.0)  # it reaches 10 px: an affair of the fine level
    assert at_fine.sum() == 4
    scores = torch.full((1, 20, 2), -12.0)
    scores[0, at_fine, 1] = 12.0
    near, far = (
        distances[:, :2].minimum(distances[:, 2:]),
        distances[:, :2].maximum(distances[:, 2:]),
    )
    centreness = (near.prod(1) / far.prod(1)).sqrt().clamp(max=1 - 1e-6).logit()[None]
    perfect = Detections(found.points, found.strides, scores, distances[None], centreness)
    entropy = functional.binary_cross_entropy_with_logits(
        centreness[0, at_fine], centreness[0, at_fine].sigmoid()
    )  # what is left when soft targets are met
    assert detection_loss(perfect, [box], [kind]) == pytest.approx(float(entropy), abs=1e-3)
    swapped = Detections(found.points, found.strides, scores.flip(-1), distances[None], centreness)
    assert detection_loss(swapped, [box], [kind]) > 1.0


def test_a_large_object_is_an_affair_of_the_coarse_level():
    found = detections()
    detection_loss(
        found, [torch.tensor([[0.0, 0.0, 100.0, 100.0]])], [torch.tensor([0])]
    ).backward()
    gradient = found.scores.grad[0, :, 0]  # negative where class 0 is wanted
    assert (gradient[:16] > 0).all()
    assert (gradient[16:] < 0).all()


def test_of_two_objects_a_point_finds_the_smaller():
    found = detections()
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 16.0, 16.0]])
    detection_loss(found, [boxes], [torch.tensor([0, 1])]).backward()
    wanted = found.scores.grad[0, :16] < 0  # (P, 2)
    assert wanted[5].tolist() == [False, True]  # the point (12, 12)
    assert wanted[:, 1].sum() == 1
    assert wanted[:, 0].sum() == 15


def test_an_image_without_objects_asks_for_silence():
    quiet, loud = detections(logit=-6.0), detections(logit=2.0)
    nothing = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)]
    loss = detection_loss(loud, *nothing)
    assert torch.isfinite(loss)
    assert detection_loss(quiet, *nothing) < 1e-3 * loss
    loss.backward()
    assert (loud.scores.grad > 0).all()
