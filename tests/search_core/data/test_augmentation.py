"""Augmentation: what each part does to a batch, and that it does nothing else."""

import colorsys
import itertools

import pytest
import torch

from search_core.data.augmentation import Augmentation, _turned
from search_core.randomness import stream

RANDOM = torch.randint(
    0, 256, (16, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
GREY = RANDOM[:, :1]

EVERYTHING = Augmentation(
    shift_px=2,
    flip=True,
    crop_scale=(0.3, 1.0),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
)


def pixels(images, step=0, **settings):
    return Augmentation(**settings).pixels(images, stream(0, "augment", step))


def luminance(images):
    red, green, blue = images.float().unbind(dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_nothing_is_done_by_default():
    nothing = Augmentation()
    assert nothing.pixels(RANDOM, stream(0, "x")) is RANDOM
    assert nothing.cut(RANDOM.float(), stream(0, "x")).equal(RANDOM.float())
    assert nothing.mix(RANDOM.float(), stream(0, "x")) is None


@pytest.mark.parametrize("images", [RANDOM, GREY], ids=["colour", "grey"])
def test_shape_and_range_are_kept(images):
    for step in range(20):
        out = EVERYTHING.pixels(images, stream(0, "augment", step))
        assert out.shape == images.shape
        assert out.min() >= 0.0
        assert out.max() <= 255.0


def test_the_layout_of_the_images_in_memory_has_no_say():
    channels_last = RANDOM.contiguous(memory_format=torch.channels_last)
    outs = [EVERYTHING.pixels(i, stream(0, "augment", 3)) for i in (RANDOM, channels_last)]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-3)


def test_the_images_given_are_not_changed():
    before = RANDOM.clone()
    EVERYTHING.pixels(RANDOM, stream(0, "augment", 0))
    assert torch.equal(RANDOM, before)


def test_each_image_is_the_given_one_or_its_mirror_image():
    seen = set()
    for step in range(10):
        for out, image in zip(pixels(RANDOM, step, flip=True), RANDOM, strict=True):
            assert out.equal(image) or out.equal(image.flip(2))
            seen.add(out.equal(image))
    assert seen == {True, False}


def test_a_shifted_image_is_a_window_of_the_padded_one():
    padded = torch.nn.functional.pad(RANDOM, (2, 2, 2, 2))
    places = set()
    for step in range(30):
        out = pixels(RANDOM, step, shift_px=2)
        for row in range(len(RANDOM)):
            windows = {
                (y, x)
                for y, x in itertools.product(range(5), range(5))
                if padded[row, :, y : y + 12, x : x + 12].equal(out[row])
            }
            assert windows
            places |= windows
    assert places == set(itertools.product(range(5), range(5)))


# random resized crop


def ramps(n):
    """Images (n, 2, 32, 32): the first channel is the column, the second the row."""
    columns = torch.arange(32.0).expand(n, 1, 32, 32)
    return torch.cat([columns, columns.transpose(2, 3)], dim=1)


def spans(images):
    """Share of the width and of the height that a crop of `ramps` kept, (n,) each."""
    across = (images[:, 0, :, 20] - images[:, 0, :, 12]).mean(dim=1) / 8
    down = (images[:, 1, 20, :] - images[:, 1, 12, :]).mean(dim=1) / 8
    return across, down


def test_the_whole_image_as_the_crop_changes_nothing():
    out = pixels(RANDOM, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    torch.testing.assert_close(out, RANDOM.float(), rtol=0, atol=1e-3)


def test_a_crop_keeps_the_share_of_the_area_and_the_ratio_asked_for():
    out = pixels(ramps(64), crop_scale=(0.25, 0.25), crop_ratio=(0.5, 2.0))
    across, down = spans(out)
    torch.testing.assert_close(across * down, torch.full((64,), 0.25), rtol=0.02, atol=0)
    ratio = across / down
    assert 0.49 < ratio.min() < 0.7
    assert 1.4 < ratio.max() < 2.04


def test_crops_lie_anywhere_in_the_image():
    out = pixels(ramps(256), crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    middle = out[:, :, 15:17, 15:17].mean(dim=(2, 3))  # half of the crop is 8 pixels
    assert middle.min() < 8.5
    assert middle.max() > 22.5
    assert (middle.mean(dim=0) - 15.5).abs().max() < 1.0


def test_where_no_crop_of_the_ratio_fits_the_whole_image_is_taken():
    out = pixels(RANDOM, crop_scale=(1.0, 1.0), crop_ratio=(1.2, 1.3))
    torch.testing.assert_close(out, RANDOM.float(), rtol=0, atol=1e-3)


# colour


def test_brightness_scales_all_pixels_of_an_image_alike():
    images = RANDOM // 2 + 1  # nothing is clipped
    factors = pixels(images, brightness=0.5) / images
    per_image = factors.flatten(1)
    torch.testing.assert_close(per_image, per_image[:, :1].expand_as(per_image))
    assert per_image[:, 0].min() > 0.5
    assert per_image[:, 0].max() < 1.5
    assert per_image[:, 0].std() > 0.1


def test_contrast_keeps_the_mean_luminance_and_scales_the_distance_from_it():
    images = RANDOM // 4 + 96
    out = pixels(images, contrast=0.4)
    mean = luminance(images).mean(dim=(1, 2))
    torch.testing.assert_close(luminance(out).mean(dim=(1, 2)), mean, rtol=1e-4, atol=0)
    factors = (out - mean.view(-1, 1, 1, 1)).flatten(1).std(1) / images.float().flatten(1).std(1)
    assert 0.6 < factors.min() < 0.9
    assert 1.1 < factors.max() < 1.4


def test_saturation_keeps_each_pixels_luminance():
    images = RANDOM // 4 + 96
    out = pixels(images, saturation=0.5)
    torch.testing.assert_close(luminance(out), luminance(images), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(out, images.float())


def test_grey_images_have_no_saturation_and_no_hue():
    assert pixels(GREY, saturation=0.5, hue=0.5).equal(GREY.float())
    thrice = GREY.expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        pixels(thrice, saturation=0.5, hue=0.5), thrice.float(), rtol=1e-5, atol=1e-3
    )


def test_the_hue_turns_as_in_the_hsv_cylinder():
    turns = torch.linspace(-0.5, 0.5, len(RANDOM))
    out = _turned(RANDOM.float(), turns) / 255
    for row in range(len(RANDOM)):
        for y, x in itertools.product((0, 5, 11), (1, 7)):
            hue, saturation, value = colorsys.rgb_to_hsv(*(RANDOM[row, :, y, x] / 255).tolist())
            expected = colorsys.hsv_to_rgb((hue + turns[row].item()) % 1.0, saturation, value)
            assert out[row, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


# cutout


def test_cutout_clears_one_square_clipped_at_the_border():
    ones, areas, covered = torch.ones(32, 2, 12, 12), [], torch.zeros(12, 12, dtype=torch.bool)
    for step in range(20):
        out = Augmentation(cutout_px=4).cut(ones, stream(0, "augment", step))
        for image in out:
            gone = image[0] == 0
            assert image[1].equal(image[0])  # through all channels
            rows, columns = gone.any(dim=1).nonzero(), gone.any(dim=0).nonzero()
            height = int(rows.max() - rows.min()) + 1
            width = int(columns.max() - columns.min()) + 1
            assert gone.sum() == height * width  # one box
            inside = rows.min() > 0 and rows.max() < 11 and columns.min() > 0 and columns.max() < 11
            assert (height, width) == (4, 4) if inside else max(height, width) <= 4
            areas.append(height * width)
            covered |= gone
    assert min(areas) == 4  # a corner: the centre may be any pixel
    assert max(areas) == 16
    assert covered.all()


# mixup and CutMix


def test_mixup_blends_each_image_with_its_partner():
    images = RANDOM.float()
    weights = []
    for step in range(30):
        mix = Augmentation(mixup_alpha=0.5).mix(images, stream(0, "augment", step))
        expected = mix.weight * images + (1 - mix.weight) * images[mix.partners]
        torch.testing.assert_close(mix.images, expected)
        assert sorted(mix.partners.tolist()) == list(range(16))
        weights.append(mix.weight)
    assert all(0.0 <= weight <= 1.0 for weight in weights)
    assert min(weights) < 0.2
    assert max(weights) > 0.8


def test_cutmix_pastes_one_box_whose_area_is_the_partners_weight():
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 2, 12, 12)
    weights = []
    for step in range(30):
        mix = Augmentation(cutmix_alpha=1.0).mix(images, stream(0, "augment", step))
        own = mix.images == images
        pasted = mix.images == images[mix.partners]
        assert (own | pasted).all()
        others = mix.partners != torch.arange(16)
        shares = own[others].float().mean(dim=(1, 2, 3))
        torch.testing.assert_close(shares, torch.full_like(shares, mix.weight))
        weights.append(mix.weight)
    assert all(0.0 <= weight <= 1.0 for weight in weights)
    assert min(weights) < 0.4
    assert max(weights) > 0.7


def test_a_fair_coin_decides_between_mixup_and_cutmix():
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 1, 12, 12)
    both = Augmentation(mixup_alpha=1.0, cutmix_alpha=1.0)
    mixes = [both.mix(images, stream(0, "augment", step)) for step in range(60)]
    pasted = [bool((mix.images == mix.images.round()).all()) for mix in mixes]
    assert 15 < sum(pasted) < 45


# what cannot be asked for


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift_px": -1}, "shift_px is -1"),
        ({"cutmix_alpha": -0.5}, "cutmix_alpha is -0.5"),
        ({"hue": 0.6}, "hue is 0.6"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.2)}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
