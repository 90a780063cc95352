"""Views of pictures: the right pixels, drawn fairly, the same whatever the batch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch import Tensor

from crelu_data import augment
from crelu_data.augment import (
    _OPERATION,
    OPERATIONS,
    _base,
    _bits,
    _boxes,
    _changed,
    _constants,
    _integers,
    _resized,
    _scramble,
    apply_operation,
    centre_view,
    mixed,
    mixing_shares,
    ten_views,
    training_view,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
VALUES, VECTORS = (0.04, 0.01, 0.0025), ((0.6, 0.8, 0.0), (0.8, -0.6, 0.0), (0.0, 0.0, 1.0))


def pictures(n: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    stored = torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)
    return stored.permute(0, 3, 1, 2)


def view(images: Tensor, ids: Tensor, epoch: int = 0, seed: int = 0, crop: int = 8, flip: bool = True, shift: int = 0,
         lighting: float = 0.0, **more: float) -> Tensor:  # fmt: skip
    return training_view(
        images, ids, seed=seed, epoch=epoch, crop=crop, flip=flip, shift=shift, lighting=lighting,
        mean=MEAN, std=STD, eigenvalues=VALUES, eigenvectors=VECTORS, **more,
    )  # type: ignore[arg-type] # fmt: skip


def plain(image: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (image.float() / 255 - mean) / std


def places(images: Tensor, seen: Tensor, crop: int) -> list[tuple[int, int, bool]]:
    """Return where in its picture each view was cut, and whether mirrored, by looking for it."""
    windows = plain(images).unfold(2, crop, 1).unfold(3, crop, 1).movedim(1, 3)  # (n, y, x, 3, crop, crop)
    either = torch.stack([windows, windows.flip(5)], 3)
    hits = (either - seen[:, None, None, None]).abs().amax((4, 5, 6)) < 3e-5
    assert (hits.flatten(1).sum(1) == 1).all()
    return [(y, x, bool(mirror)) for _, y, x, mirror in hits.nonzero().tolist()]


def test_scrambler_is_splitmix64() -> None:
    # The first outputs of the published generator from state 0 and from 1234567.
    assert _scramble(0) == 0xE220A8397B1DCDAF
    assert _scramble(1234567) == 6457827717110365317


def test_torch_hash_is_the_python_hash() -> None:
    ids = torch.tensor([0, 1, 2, 77, 1_281_166])
    key = _scramble(5 ^ 3)
    for value, number in zip(_bits(5, ids, 2).tolist(), ids.tolist(), strict=True):
        state = (number * 0x9E3779B97F4A7C15 + key) & (2**64 - 1)
        assert value % 2**64 == _scramble((state - 0x9E3779B97F4A7C15) & (2**64 - 1))


def test_every_place_and_both_mirrors_come_equally_often() -> None:
    images, ids = pictures(1, 10).expand(3600, -1, -1, -1), torch.arange(3600)
    crops = places(images, view(images, ids), 8)
    counts = {place: crops.count(place) for place in set(crops)}
    assert len(counts) == 18
    expected = 3600 / 18
    chi = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi < 45  # 17 degrees of freedom: exceeded once in 4,000 fair draws


def test_view_depends_on_the_sample_and_not_on_the_batch() -> None:
    images, ids = pictures(12, 12), torch.arange(40, 52)
    batch = view(images, ids, shift=2, lighting=0.1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(view(images[order], ids[order], shift=2, lighting=0.1), batch[order])
    assert torch.equal(view(images[3:4], ids[3:4], shift=2, lighting=0.1), batch[3:4])


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0), (1, 1)])
def test_other_epochs_and_seeds_draw_independently(seed: int, epoch: int) -> None:
    ids = torch.arange(20_000)
    from crelu_data.augment import _base, _uniform

    for stream in range(3):
        ours, theirs = _uniform(_base(0, 0), ids, stream), _uniform(_base(seed, epoch), ids, stream)
        assert abs(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) < 4 / math.sqrt(20_000)
    streams = torch.stack([_uniform(_base(seed, epoch), ids, stream) for stream in range(3)])
    correlations = torch.corrcoef(torch.cat([streams, streams[:, torch.roll(torch.arange(20_000), 1)]]))
    assert (correlations - torch.eye(6)).abs().max() < 4.5 / math.sqrt(20_000)


def test_seed_and_epoch_are_not_added() -> None:
    images, ids = pictures(20, 16), torch.arange(20)
    assert not torch.equal(view(images, ids, seed=5, epoch=1), view(images, ids, seed=6, epoch=0))


def test_shift_pads_with_the_mean() -> None:
    images, ids = pictures(1, 8).expand(500, -1, -1, -1), torch.arange(500)
    seen = view(images, ids, crop=8, flip=False, shift=2)
    padded = torch.nn.functional.pad(plain(images[0]), (2, 2, 2, 2))
    windows = padded.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).reshape(25, 3, 8, 8)
    distance = (seen[:, None] - windows[None]).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 1e-5
    assert set(distance.argmin(1).tolist()) == set(range(25))


def test_lighting_adds_one_colour_to_a_picture_with_the_covariance_asked_for() -> None:
    images, ids = pictures(1, 8).expand(20_000, -1, -1, -1)[:, :, :1, :1], torch.arange(20_000)
    added = (view(images, ids, crop=1, flip=False, lighting=0.1) - view(images, ids, crop=1, flip=False))[:, :, 0, 0]
    added = added.double() * torch.tensor(STD)
    vectors = torch.tensor(VECTORS, dtype=torch.float64)
    expected = 0.01 * vectors @ torch.diag(torch.tensor(VALUES, dtype=torch.float64)) @ vectors.T
    assert torch.allclose(torch.cov(added.T), expected, atol=2.5e-5)
    assert added.mean(0).abs().max() < 6e-4


def test_centre_view_is_the_middle() -> None:
    images = pictures(3, 256 // 8)
    seen = centre_view(images, crop=28, mean=MEAN, std=STD)
    assert torch.allclose(seen, torch.stack([plain(image)[:, 2:30, 2:30] for image in images]), atol=1e-5)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_ten_views_are_corners_and_centre_with_mirrors() -> None:
    images = pictures(2, 12)
    seen = list(ten_views(images, crop=8, mean=MEAN, std=STD))
    assert len(seen) == 10
    normal = torch.stack([plain(image) for image in images])
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for index, (y, x) in enumerate(corners):
        cut = normal[:, :, y : y + 8, x : x + 8]
        assert torch.allclose(seen[2 * index], cut, atol=1e-5)
        assert torch.allclose(seen[2 * index + 1], cut.flip(3), atol=1e-5)
    assert all(crops.is_contiguous(memory_format=torch.channels_last) for crops in seen)


def test_views_are_channels_last_and_of_the_type_asked_for() -> None:
    images, ids = pictures(4, 12), torch.arange(4)
    for shift in (0, 2):
        seen = view(images, ids, crop=12, shift=shift)
        assert seen.is_contiguous(memory_format=torch.channels_last)
        assert seen.dtype == torch.float32
    assert centre_view(images, crop=8, mean=MEAN, std=STD, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_numbers_of_a_view_are_copied_to_its_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each copy a host waits for all that it has given to a GPU, as for the step before."""
    images, ids = pictures(6, 12), torch.arange(6)
    kinds = {"lighting": 0.1}, {"shift": 2}

    def made() -> list[Tensor]:
        return [*(view(images, ids, **kind) for kind in kinds), centre_view(images, crop=8, mean=MEAN, std=STD)]

    with torch.inference_mode():  # as of a predictor, before a training takes them
        first = made()
    monkeypatch.setattr(torch, "tensor", None)
    assert all(torch.equal(a, b) for a, b in zip(first, made(), strict=True))
    assert not _constants(tuple(STD), images.device, torch.float64).is_inference()


def test_stored_pictures_are_not_changed() -> None:
    images = pictures(4, 12)
    before = images.clone()
    view(images, torch.arange(4), shift=2, lighting=0.1)
    list(ten_views(images, crop=8, mean=MEAN, std=STD))
    assert torch.equal(images, before)


@pytest.mark.parametrize(("crop", "shift"), [(13, 0), (0, 0), (17, 2)])
def test_crop_that_does_not_fit_is_refused(crop: int, shift: int) -> None:
    with pytest.raises(ValueError, match=f"{crop}-pixel crop"):
        view(pictures(2, 12), torch.arange(2), crop=crop, shift=shift)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_a_gpu_are_those_on_the_cpu() -> None:
    images, ids = pictures(16, 40), torch.arange(16)
    for shift in (0, 3):
        on_gpu = view(images.cuda(), ids.cuda(), crop=32, shift=shift)
        assert torch.allclose(on_gpu.cpu(), view(images, ids, crop=32, shift=shift), atol=1e-5)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("n", "side", "crop", "shift"), [(9, 12, 12, 0), (9, 12, 7, 0), (9, 12, 12, 3), (1, 5, 1, 0)])
def test_views_are_slices_of_single_pictures_bit_for_bit(n: int, side: int, crop: int, shift: int, flip: bool) -> None:
    from crelu_data.augment import _COLUMN, _FLIP, _ROW, _base, _integers, _uniform

    images, ids = pictures(n, side), torch.arange(3, 3 + n)
    base = _base(5, 2)
    scale = torch.tensor([1 / (255 * s) for s in STD])[:, None, None]
    offset = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])[:, None, None]
    top, left = (_integers(base, ids, stream, side + 2 * shift - crop + 1).tolist() for stream in (_ROW, _COLUMN))
    mirrored = (_uniform(base, ids, _FLIP) < 0.5).tolist()
    expected = []
    for image, y, x, mirror in zip(images, top, left, mirrored, strict=True):
        padded = torch.nn.functional.pad(image.float().mul(scale).add(offset), (shift,) * 4)
        cut = padded[:, y : y + crop, x : x + crop]
        expected.append(cut.flip(2) if mirror and flip else cut)
    for stored in (images, images.contiguous(), torch.cat([images] * 2, 3)[..., side:]):
        seen = view(stored, ids, epoch=2, seed=5, crop=crop, flip=flip, shift=shift)
        assert torch.equal(seen.contiguous().view(torch.int32), torch.stack(expected).view(torch.int32))
    assert n == 1 or {True, False} == set(mirrored)


def test_no_pictures_have_no_views() -> None:
    assert view(pictures(0, 12), torch.arange(0), shift=2).shape == (0, 3, 8, 8)


def test_a_resized_crop_is_that_of_torchvision() -> None:
    from torchvision.transforms import functional  # seconds to load: not by each process that collects tests

    images = pictures(6, 40)
    boxes = torch.tensor([[0, 3, 20, 1, 0, 39], [0, 5, 2, 1, 0, 39], [40, 8, 20, 30, 13, 1], [40, 33, 7, 9, 40, 1]])
    mirrored = torch.tensor([False, True, False, True, False, False])
    seen = _resized(images, boxes, 16, mirrored)
    for image, box, flipped, each in zip(images, boxes.T.tolist(), mirrored.tolist(), seen, strict=True):
        expected = functional.resized_crop(image, *box, [16, 16], antialias=True)
        expected = expected.flip(2) if flipped else expected
        assert (each.int() - expected.int()).abs().max() <= 1
        assert (each != expected).float().mean() < 0.1  # torchvision's weights have few bits too


def test_a_resized_crop_depends_on_no_order_of_sums() -> None:
    images = pictures(12, 64)
    boxes = _boxes(_base(0, 0), torch.arange(12), 64, 0.08)
    mirrored = torch.arange(12) % 2 == 0
    resized = _resized(images, boxes, 48, mirrored)
    for row in range(12):
        part = slice(row, row + 1)
        assert torch.equal(_resized(images[part], boxes[:, part], 48, mirrored[part]), resized[part])
    assert torch.equal(_resized(images.flip(2), _mirrored(boxes), 48, mirrored), resized.flip(2))


def _mirrored(boxes: Tensor) -> Tensor:
    """Return the boxes in pictures of 64 pixels that are turned upside down."""
    top, left, height, width = boxes
    return torch.stack([64 - top - height, left, height, width])


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    from torchvision.transforms import RandomResizedCrop

    ids = torch.arange(4000)
    ours = _boxes(_base(1, 2), ids, 64, 0.08).double()
    torch.manual_seed(0)
    drawn = [RandomResizedCrop.get_params(torch.zeros(3, 64, 64), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor(drawn, dtype=torch.double).T
    assert (ours[:2] >= 0).all()
    assert (ours[:2] + ours[2:] <= 64).all()
    for name, of in (("area", lambda box: box[2] * box[3]), ("ratio", lambda box: box[3] / box[2]),
                     ("top", lambda box: box[0]), ("left", lambda box: box[1])):  # fmt: skip
        assert ks_2samp(of(ours).numpy(), of(theirs).numpy()).pvalue > 1e-3, name
    assert torch.equal(_boxes(_base(1, 2), ids[:3], 64, 1.0)[2:], torch.full((2, 3), 64))


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_torchvision(name: str, magnitude: int) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import RandAugment

    theirs = RandAugment()
    assert list(theirs._AUGMENTATION_SPACE) == list(OPERATIONS)
    magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    assert signed == OPERATIONS[name].is_signed
    images = pictures(5, 20)
    strengths = magnitudes(31, 20, 20)
    value = 0.0 if strengths is None else float(strengths[magnitude])
    for sign in (1, -1) if signed else (1,):
        seen = apply_operation(name, images, sign * magnitude)
        for image, each in zip(images, seen, strict=True):
            expected = theirs._apply_image_or_video_transform(
                image, name, sign * value, InterpolationMode.NEAREST, {torch.Tensor: None}
            )
            differences = (each.int() - expected.int()).abs()  # torchvision's magnitudes are of 32 bits
            assert differences.max() <= 1
            assert (differences > 0).float().mean() < 0.05


def test_operations_are_drawn_by_sample_and_end_in_a_normalised_view() -> None:
    images, ids = pictures(24, 20).expand(24, -1, -1, -1), torch.arange(24)
    changes = {"crop": 20, "flip": False, "rand_augment": 1, "rand_magnitude": 20}
    seen = view(images, ids, **changes)  # type: ignore[arg-type]
    operations = set()
    for image, each in zip(images, seen, strict=True):
        hits = [
            (name, sign)
            for name in OPERATIONS
            for sign in ((1, -1) if OPERATIONS[name].is_signed else (1,))
            if torch.allclose(each, plain(apply_operation(name, image[None], 20 * sign)[0]), atol=1e-5)
        ]
        assert hits
        operations.add(hits[0])
    assert len(operations) > 8
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert torch.equal(view(images[order], ids[order], **changes), seen[order])  # type: ignore[arg-type]
    twice = view(images, ids, **(changes | {"rand_augment": 2}))  # type: ignore[arg-type]
    assert not torch.allclose(twice, seen, atol=1e-3)


def test_a_second_operation_is_drawn_anew() -> None:
    ids = torch.arange(4000)
    base = _base(0, 0)
    pairs = torch.stack([_integers(base, ids, _OPERATION + 2 * number, 14) for number in (0, 1)])
    assert 0.05 < (pairs[0] == pairs[1]).double().mean() < 0.1  # one in fourteen
    images = pictures(1, 16).expand(64, -1, -1, -1)
    kinds = [_changed(images, base, ids[:64], number, 25).flatten(1) for number in (0, 1)]
    first, second = (len(each.unique(dim=0)) for each in kinds)
    assert min(first, second) > 8
    same = [torch.equal(a, b) for a, b in zip(*kinds, strict=True)]
    assert sum(same) < 30  # one in fourteen has the same operation, and some change little
    once = _changed(images, base, ids[:64], 0, 9)
    assert not torch.equal(_changed(images, base, ids[:64], 1, 9), once)
    assert torch.equal(_changed(images, base, ids[:64], 0, 9), once)


@pytest.mark.parametrize("is_allowed", [False, True])
def test_products_of_a_view_are_not_rounded_whatever_the_net_before_had(
    is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = torch.backends.cuda.matmul
    seen: list[bool] = []

    def noted(name: str) -> Callable[..., Any]:
        function = getattr(augment, name)
        return lambda *values, **words: seen.append(matmul.allow_tf32) or function(*values, **words)

    for name in ("_filters", "apply_operation"):
        monkeypatch.setattr(augment, name, noted(name))
    matmul.allow_tf32 = is_allowed
    try:
        view(pictures(12, 20), torch.arange(12), crop=16, resized_crop=0.5, rand_augment=1)
        assert matmul.allow_tf32 is is_allowed
    finally:
        matmul.allow_tf32 = False
    assert len(seen) > 2
    assert not any(seen)


@pytest.mark.parametrize("changes", [{"resized_crop": 0.1}, {"rand_augment": 2, "shift": 2}, {"resized_crop": 0.5,
                                     "rand_augment": 1, "lighting": 0.1}], ids=str)  # fmt: skip
def test_a_changed_view_depends_on_the_sample_the_epoch_and_the_seed_alone(changes: dict[str, float]) -> None:
    images, ids = pictures(12, 20), torch.arange(40, 52)
    batch = view(images, ids, crop=16, **changes)  # type: ignore[arg-type]
    assert (batch.shape, batch.is_contiguous(memory_format=torch.channels_last)) == ((12, 3, 16, 16), True)
    for rows in (slice(0, 5), slice(11, 12)):
        assert torch.allclose(view(images[rows], ids[rows], crop=16, **changes), batch[rows], atol=1e-5)  # type: ignore[arg-type]
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not torch.allclose(view(images, ids, crop=16, **changes, **other), batch, atol=1e-2)  # type: ignore[arg-type]


def test_a_border_under_operations_has_the_mean_colour() -> None:
    images, ids = pictures(1, 8).expand(300, -1, -1, -1), torch.arange(300)
    seen = view(images, ids, crop=8, shift=3, rand_augment=1, rand_magnitude=0)
    shifted = view(images, ids, crop=8, shift=3)
    same = (seen - shifted).abs().flatten(1).amax(1) < 0.01
    assert same.float().mean() > 0.5  # of magnitude 0 most operations change nothing


def test_shares_of_mixtures_have_the_distribution_of_beta() -> None:
    ids = torch.arange(5000)
    for alpha in (0.2, 1.0, 4.0):
        shares = mixing_shares(ids, seed=1, epoch=3, alpha=alpha)
        assert kstest(shares.numpy(), "beta", (alpha, alpha)).pvalue > 1e-3
        assert torch.equal(mixing_shares(ids[7:9], seed=1, epoch=3, alpha=alpha), shares[7:9])
    assert not torch.equal(
        mixing_shares(ids, seed=1, epoch=4, alpha=1.0), mixing_shares(ids, seed=1, epoch=3, alpha=1.0)
    )


def test_pictures_are_mixed_in_pairs_and_the_odd_one_stays() -> None:
    values = torch.tensor([[1.0], [5.0], [10.0]])
    assert mixed(values, torch.tensor([0.75, 0.5, 0.1])).tolist() == [[2.0], [3.0], [10.0]]
