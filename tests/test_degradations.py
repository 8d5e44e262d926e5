import collections
import io
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import run as run_script
from conftest import the_error
from PIL import Image
from scipy import ndimage, stats
from test_dataloader import epoch_of, same

import choices
import degradations
import prepare_data
from dataloader import TrainDatasetFromFolder, ValDatasetFromFolder
from degradations import DEGRADATIONS, Degradation
from options import get_args_parser, resolve
from utils import images

PHOTO = DEGRADATIONS["photo"]
PASSES = [*PHOTO.passes["light"], *PHOTO.passes["full"]]


def drawn(count: int = 4000) -> list[list]:
    rng = np.random.default_rng(1)
    return [PHOTO.draw(rng, (16, 20)) for _ in range(count)]


def pattern(height: int, width: int) -> np.ndarray:
    y, x, channel = np.ogrid[:height, :width, :3]
    return ((x * 7 + y * 5 + x * y // 9 + channel * 40) % 256).astype(np.uint8)


# --- photo-1, which weight files were trained with


def test_the_ranges_of_photo_1_never_change():
    recorded = {name: value for name, value in PHOTO.record().items() if name != "opencv"}
    assert zlib.crc32(json.dumps(recorded).encode()) == 2528713036
    assert recorded["version"] == "photo-1"
    assert DEGRADATIONS["bicubic"].record() == {"version": "bicubic-1"}


def test_photo_1_draws_what_it_always_drew():
    """The checksum was computed before `photo` became one degradation of several."""
    rng, checksum = np.random.default_rng(1), 0
    for _ in range(500):
        plan = [
            [
                operation.func.__name__,
                *(
                    (name, value.round(6).tolist() if name == "kernel" else str(value))
                    for name, value in operation.keywords.items()
                    if name != "rng"
                ),
            ]
            for operation in PHOTO.draw(rng, (16, 20))
        ]
        checksum = zlib.crc32(repr(plan).encode(), checksum)
    assert checksum == 3902617804


def test_crops_of_photo_1_are_what_they_always_were():
    """Their means to two decimals, since machines add single-precision numbers in other orders."""
    expected = [127.01, 127.84, 127.11, 127.7, 126.98, 127.77, 127.64, 127.49, 127.51, 127.39]
    expected += [127.76, 127.65, 127.82, 127.79, 127.8, 127.77, 127.61, 127.66, 128.6, 127.7]
    for index, mean in enumerate(expected):
        rng = np.random.default_rng([7, 2, index, 3])
        crop = PHOTO.crops(pattern(256, 320), 5 + index, 3 + 2 * index, 22, 4, rng)[0]
        assert crop.mean() == pytest.approx(mean, abs=0.02)


def test_real_esrgans_values_stand_beside_those_of_photo_1():
    source = Path(degradations.__file__).read_text()
    rows = [line.strip("# ").split() for line in source.splitlines() if line.startswith("#   ")]
    for name in (
        "blur",
        "enlarge",
        "shrink",
        "noise",
        "sigma",
        "scale",
        "gaussian",
        "poisson",
        "quality",
    ):
        (row,) = [row for row in rows if row[0] == name]
        numbers = [float(word) for word in row[1:] if word != "to"]
        for number, ranges in enumerate(PHOTO.passes["full"]):
            ours = np.atleast_1d(getattr(ranges, name)).tolist()
            start = 2 * number * len(ours)
            assert numbers[start : start + len(ours)] == ours, name


# --- photo-2


PHOTO_2 = DEGRADATIONS["photo-2"]


def test_the_ranges_of_photo_2_never_change():
    recorded = {name: value for name, value in PHOTO_2.record().items() if name != "opencv"}
    assert zlib.crc32(json.dumps(recorded).encode()) == 2622433863
    assert recorded["version"] == "photo-2"


def test_photo_2_keeps_what_photo_1_has_and_adds_its_flaws():
    rng = np.random.default_rng(1)
    plans = [PHOTO_2.draw(rng, (16, 20)) for _ in range(3000)]
    kinds = {
        kind: [PHOTO_2.draw(rng, (16, 20), kind) for _ in range(1500)] for kind in PHOTO.shares
    }
    assert not any(kinds["clean"])
    empty = sum(not plan for plan in plans) / len(plans)
    assert empty == pytest.approx(PHOTO_2.shares["clean"], abs=0.02)
    files = ("jpeg", "webp")
    names = {
        kind: [[operation.func.__name__ for operation in plan] for plan in kinds[kind]]
        for kind in kinds
    }
    saved = [sum(name in files for name in plan) for plan in names["light"]]
    assert_distributed(saved, {1: 1 - PHOTO_2.again, 2: PHOTO_2.again})
    assert all(sum(name in files for name in plan) == 2 for plan in names["full"])
    first = [next(name for name in plan if name in files) for plan in names["light"]]
    assert_distributed(first, {"webp": PHOTO_2.webp, "jpeg": 1 - PHOTO_2.webp})
    assert all(plan[-1] == "jpeg" for plan, count in zip(names["light"], saved) if count == 2)
    noises = [name for plan in names["light"] for name in plan if name.startswith("add_")]
    sensor = [name == "add_sensor_noise" for name in noises]
    assert_distributed(sensor, {True: PHOTO_2.sensor, False: 1 - PHOTO_2.sensor})
    for again in (plan[-1] for plan, count in zip(kinds["light"], saved) if count == 2):
        low, high = PHOTO_2.again_quality
        assert low <= again.keywords["quality"] <= high


def test_sensor_noise_has_its_strength_and_makes_spots():
    flat = np.full((400, 400, 3), 100.0)
    rng = np.random.default_rng(2)
    noisy = degradations.add_sensor_noise(flat, rng, strength=0.5, read_noise=2)
    noise = noisy - flat
    spread = np.sqrt(0.5**2 * 100 + 2**2)
    assert noise[::2, ::2, 0].std() == pytest.approx(spread, rel=0.03)  # measured, not interpolated
    assert noise[1::2, 1::2, 2].std() == pytest.approx(spread, rel=0.03)
    assert noise[::2, 1::2, 1].std() == pytest.approx(spread, rel=0.03)
    # Between two measured pixels is their mean
    between = (noise[::2, 0:-2:2, 0] + noise[::2, 2::2, 0]) / 2
    assert np.abs(noise[::2, 1:-1:2, 0] - between).max() < 1e-9
    neighbours = np.corrcoef(noise[:, :-1, 0].ravel(), noise[:, 1:, 0].ravel())[0, 1]
    assert neighbours > 0.5
    channels = np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1]
    assert abs(channels) < 0.05
    assert degradations.add_sensor_noise(flat * 0, rng, 1.0, 0.0).max() == 0  # no light, no noise


def test_webp_is_pillows(astronaut):
    image = astronaut[:200, :240].astype(np.float64)
    file = io.BytesIO()
    Image.fromarray(astronaut[:200, :240]).save(file, "WEBP", quality=60)
    expected = np.asarray(Image.open(file).convert("RGB")).astype(float)
    found = degradations.webp(image, 60)
    assert found.dtype == np.float64
    assert np.abs(found - expected).mean() < 0.5
    assert 1 < np.abs(found - image).mean() < np.abs(degradations.webp(image, 20) - image).mean()
    with pytest.raises(ValueError, match="16400x8 pixels are too large for WEBP"):
        degradations.webp(np.zeros((8, 16_400, 3)), 60)


@pytest.mark.parametrize("radius", [4, 7.3, 14])
def test_a_point_out_of_focus_is_an_even_disc(radius):
    kernel = degradations.disc_kernel(radius)
    assert kernel.sum() == pytest.approx(1)
    assert kernel.max() == pytest.approx(1 / (np.pi * radius**2), rel=0.03)
    y, x = np.indices(kernel.shape) - len(kernel) // 2
    distance = np.hypot(x, y)
    assert np.ptp(kernel[distance < radius - 0.5]) < 1e-12
    assert kernel[distance > radius + 0.5].sum() == 0


def test_hr_is_out_of_focus_as_often_as_it_should_and_lr_shows_the_same(astronaut):
    clean = replace(PHOTO_2, shares={"clean": 1})
    sharp, differs = [], []
    for seed in range(400):
        lr, hr = clean.crops(astronaut, 40, 50, 16, 4, np.random.default_rng(seed))
        assert lr.shape == (16, 16, 3) and hr.shape == (64, 64, 3)
        sharp.append(np.array_equal(hr, astronaut[160:224, 200:264]))
        expected = images.downscale(np.ascontiguousarray(hr), 4).astype(int)
        differs.append(np.abs(lr.astype(int) - expected)[2:-2, 2:-2].max())
    assert max(differs) <= 1  # but for the border, LR is the bicubic of HR's crop
    # In part of the crops, all that is out of focus lies in the margin
    assert 0.75 <= np.mean(sharp) < 0.85


def test_a_crop_partly_in_focus_is_sharp_on_one_side(astronaut):
    halves = replace(PHOTO_2, defocus=1, in_part=1, transition=(2, 2))
    rng = np.random.default_rng(5)
    seen = [halves.scene(astronaut[:176, :176], rng) for _ in range(30)]
    same_pixels = [np.mean((scene == astronaut[:176, :176]).all(-1)) for scene in seen]
    assert min(same_pixels) < 0.3 < 0.7 < max(same_pixels)


def test_hr_is_what_it_was_with_a_degradation_that_has_no_scene(astronaut):
    for seed in range(20):
        _, hr = PHOTO.crops(astronaut, 40, 50, 16, 4, np.random.default_rng(seed))
        assert np.array_equal(hr, astronaut[160:224, 200:264])


def test_files_of_photo_2_are_sharp_where_hr_is():
    """Whole images are for validation: their HR stays as it is."""
    gray = np.full((64, 64, 3), 90, np.uint8)
    gray[:, 32:] = 160
    lr = replace(PHOTO_2, shares={"clean": 1}, defocus=1).degrade_image(gray, 4, "a.png")
    assert np.array_equal(lr, images.downscale(gray, 4))


# --- another degradation


def fade(image: np.ndarray, contrast: float) -> np.ndarray:
    return 255 - (255 - image) * contrast


@dataclass(frozen=True)
class Fade(Degradation):
    """Bicubic, and then less contrast."""

    contrast: tuple[float, float] = (0.2, 0.5)

    def degrade(self, hr, upscale, rng, precision=np.float32):
        lr = images.downscale(np.ascontiguousarray(hr), upscale).astype(precision)
        return degradations.to_levels(fade(lr, rng.uniform(*self.contrast)))


@dataclass(frozen=True)
class FixedFade(Fade):
    random_per_crop: ClassVar[bool] = False


@pytest.mark.parametrize("kind", [Fade, FixedFade])
def test_a_new_degradation_needs_an_entry_and_a_name(photos, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(DEGRADATIONS, "fade", kind("fade-1"))
    monkeypatch.setattr(choices, "DEGRADATIONS", (*choices.DEGRADATIONS, "fade"))
    options = ["--train-dir", str(photos[0]), "--val-dir", str(photos[1]), "--device", "cpu"]
    args = get_args_parser().parse_args([*options, "--degradation", "fade"])
    resolve(args)
    assert args.workers == int(kind is Fade)
    prepare = prepare_data.get_args_parser().parse_args(
        ["degraded", str(photos[1]), "--out", str(tmp_path / "lr"), "--degradation", "fade"]
    )
    prepare_data.main(prepare)
    fading = {"degradation": DEGRADATIONS["fade"], "cache_folder": tmp_path / "cache"}
    made = ValDatasetFromFolder(photos[1], 4, **fading)
    read = ValDatasetFromFolder(photos[1], 4, lr_folder=tmp_path / "lr")
    assert all(torch.equal(one[1], two[1]) for one, two in zip(made, read))
    trained = TrainDatasetFromFolder(photos[0], 32, 4, seed=4, **fading)
    assert trained.degradation_record == {"version": "fade-1", "contrast": (0.2, 0.5)}
    assert same(epoch_of(trained, 5, workers=1), epoch_of(trained, 5))
    assert all(lr.min() >= 127 for lr, _ in epoch_of(trained, 5))
    stored = DEGRADATIONS["fade"] if kind is FixedFade else DEGRADATIONS["bicubic"]
    hr, lr = trained.store[0]
    assert np.array_equal(lr, stored.degrade_image(hr, 4, "image_0.png"))


def test_two_sets_of_ranges_do_not_meet(photos, tmp_path):
    harsh = replace(PHOTO, version="harsh-1", shares={"full": 1}, final_sinc=1)
    options = {"cache_folder": tmp_path / "cache"}
    before = epoch_of(TrainDatasetFromFolder(photos[0], 32, 4, degradation=PHOTO, **options), 1)
    other = epoch_of(TrainDatasetFromFolder(photos[0], 32, 4, degradation=harsh, **options), 1)
    after = epoch_of(TrainDatasetFromFolder(photos[0], 32, 4, degradation=PHOTO, **options), 1)
    assert same(before, after) and not same(before, other)
    for degradation in (PHOTO, harsh):
        ValDatasetFromFolder(photos[1], 4, degradation=degradation, **options)
    assert len(list((tmp_path / "cache").glob("x4-validation-*"))) == 2
    assert harsh.record()["shares"] == {"full": 1} and PHOTO.record()["final_sinc"] == 0.5


# --- filters


def test_a_round_gaussian_is_scipys():
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    expected = ndimage.gaussian_filter(impulse, 1.7, radius=6)
    assert np.allclose(
        degradations.blur_kernel("gaussian", 6, 1.7, 1.7, 0), expected[4:17, 4:17], atol=2e-4
    )


@pytest.mark.parametrize(
    ("along", "across", "angle"), [(2.4, 0.9, 0.5), (0.8, 2.0, -2.0), (1.5, 1.5, 1.0)]
)
def test_a_blur_has_the_covariance_that_it_was_drawn_with(along, across, angle):
    kernel = degradations.blur_kernel("gaussian", 10, along, across, angle)
    y, x = np.mgrid[-10:11, -10:11]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = turn @ np.diag([along**2, across**2]) @ turn.T
    found = [[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)]
    assert np.allclose(found, expected, atol=0.02) and kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("family", "shape"),
    [("generalised", lambda q: np.exp(-0.5 * q**1.4)), ("plateau", lambda q: 1 / (1 + q**1.4))],
)
def test_the_other_families_have_the_papers_shapes(family, shape):
    kernel = degradations.blur_kernel(family, 6, 2.0, 1.0, np.pi / 2, 1.4)  # turned: wide in y
    q = np.array([[(y / 2) ** 2 + x**2 for x in range(-6, 7)] for y in range(-6, 7)])
    assert np.allclose(kernel / kernel[6, 6], shape(q), atol=1e-12)


def test_a_sinc_filter_is_the_fourier_transform_of_a_disc():
    cutoff, steps = 1.5, np.linspace(-1.5, 1.5, 601)
    u, v = np.meshgrid(steps, steps)
    disc = u**2 + v**2 <= cutoff**2
    kernel = degradations.sinc_kernel(5, cutoff)
    expected = np.array(
        [[np.cos(u * x + v * y)[disc].sum() for x in range(-5, 6)] for y in range(-5, 6)]
    )
    assert np.allclose(kernel, expected / expected.sum(), atol=2e-4)
    assert kernel.min() < -0.005  # it rings


def test_filtering_is_scipys_correlation(astronaut):
    image, kernel = (
        astronaut[:40, :50].astype(np.float64),
        np.random.default_rng(0).random((15, 15)),
    )
    expected = ndimage.correlate(image, kernel[..., None], mode="mirror")
    assert np.allclose(degradations.filtered(image, kernel), expected)
    assert np.allclose(degradations.filtered(image.astype(np.float32), kernel), expected, rtol=1e-4)
    both = degradations.filtered(image, kernel[0])  # along both axes
    assert np.allclose(
        both, ndimage.correlate(image, np.outer(kernel[0], kernel[0])[..., None], mode="mirror")
    )


# --- resizing, noise, JPEG


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [0.4, 1.3])
def test_resizing_is_pytorchs(astronaut, method, scale):
    image = astronaut[:60, :80].astype(np.float64)
    size = round(60 * scale), round(80 * scale)
    expected = torch.nn.functional.interpolate(images.to_tensor(image), size=size, mode=method)
    found = degradations.resize(image, method, scale)
    assert np.allclose(found, expected[0].permute(1, 2, 0), atol=1e-3)


def test_resizing_by_area_averages_and_antialiased_is_the_bicubic_of_lr(astronaut):
    image = astronaut[:64, :80].astype(np.float64)
    means = image.reshape(16, 4, 20, 4, 3).mean((1, 3))
    assert np.allclose(degradations.resize(image, "area", size=(16, 20)), means)
    assert np.array_equal(
        degradations.resize(image, "antialiased", size=(16, 20)),
        images.downscale(astronaut[:64, :80], 4),
    )


@pytest.mark.parametrize("method", degradations.METHODS)
@pytest.mark.parametrize("size", [(16, 20), (37, 50), (90, 111)])
def test_resizing_moves_nothing(method, size):
    y, x = np.mgrid[:64, :80]
    ramp = np.stack([y, x, y + x], -1).astype(np.float64) + 40
    centres = [(np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(size, ramp.shape)]
    rows, columns = np.meshgrid(*centres, indexing="ij")
    found = degradations.resize(ramp, method, size=size) - 40
    error = (found - np.stack([rows, columns, rows + columns], -1))[3:-3, 3:-3]
    assert (
        np.abs(error.mean((0, 1))).max() < 0.1 and np.abs(error).max() < 1.1
    )  # "area" repeats pixels where it enlarges


@pytest.mark.parametrize("gray", [True, False])
def test_noise_has_the_strength_that_was_asked_for(gray):
    rng = np.random.default_rng(0)
    flat = np.full((200, 200, 3), 100, np.float32)
    gaussian = degradations.add_gaussian(flat, rng, 7.0, gray) - 100
    assert gaussian.std() == pytest.approx(7, rel=0.03) and abs(gaussian.mean()) < 0.1
    counted = rng.poisson(100, flat.shape)  # photons, 255 for white
    poisson = degradations.add_poisson(flat, rng, 0.5, gray)
    assert poisson.std() == pytest.approx(
        0.5 * counted.std(), rel=0.03
    ) and poisson.mean() == pytest.approx(100, abs=0.1)
    assert degradations.add_poisson(flat * 0, rng, 1.0, gray).max() == 0  # no photons, no noise
    for noisy in (gaussian, poisson):
        assert np.array_equal(noisy[..., 0], noisy[..., 1]) == gray
    assert degradations.add_gaussian(flat + 150, rng, 30.0, gray).max() == 255


@pytest.mark.parametrize("full_chroma", [True, False])
@pytest.mark.parametrize("quality", [1, 40, 95])
def test_jpeg_is_pillows(astronaut, quality, full_chroma):
    image = astronaut[100:150, 100:170]
    data = io.BytesIO()
    Image.fromarray(image).save(
        data, "JPEG", quality=quality, subsampling="4:4:4" if full_chroma else "4:2:0"
    )
    difference = degradations.jpeg(image.astype(np.float32), quality, full_chroma) - np.asarray(
        Image.open(data)
    )
    assert np.abs(difference).max() <= 2


# --- what is drawn


def test_choices_have_their_probabilities():
    rng = np.random.default_rng(1)
    kinds = {kind: [PHOTO.draw(rng, (16, 20), kind) for _ in range(1500)] for kind in PHOTO.shares}
    assert not any(kinds["clean"])
    names = [[operation.func.__name__ for operation in plan] for plan in drawn(3000)]
    assert_distributed(
        ["clean" if not plan else "full" if plan.count("jpeg") == 2 else "light" for plan in names],
        PHOTO.shares,
    )
    # The last resizing is followed by a filter, by JPEG, by both, or by nothing
    ends = [
        "".join(operation.func.__name__[0] for operation in plan[-3:]) for plan in kinds["full"]
    ]
    found = ["rfj" in end or end.endswith("rf") for end in ends]
    assert_distributed(found, {True: PHOTO.final_sinc, False: 1 - PHOTO.final_sinc})
    assert_distributed([end[-1] == "j" for end in ends], {True: 0.5, False: 0.5})
    for ranges in PASSES:
        plans = [PHOTO._draw_pass(rng, ranges, (100, 100)) for _ in range(3000)]
        operations = [
            {operation.func.__name__: operation.keywords for operation in plan} for plan in plans
        ]
        assert_distributed(
            ["filtered" in plan for plan in operations], {True: ranges.blur, False: 1 - ranges.blur}
        )
        noises = [plan.get("add_gaussian") or plan.get("add_poisson") for plan in operations]
        assert_distributed(
            [noise is not None for noise in noises], {True: ranges.noise, False: 1 - ranges.noise}
        )
        grays = [noise["gray"] for noise in noises if noise]
        assert_distributed(grays, {True: PHOTO.gray_noise, False: 1 - PHOTO.gray_noise})
        gaussian = ["add_gaussian" in plan for plan, noise in zip(operations, noises) if noise]
        assert_distributed(gaussian, {True: 0.5, False: 0.5})
        chroma = [plan["jpeg"]["full_chroma"] for plan in operations]
        assert_distributed(chroma, {True: PHOTO.full_chroma, False: 1 - PHOTO.full_chroma})
        scales = [scale_of(plan.get("resize", {"scale": 1})) for plan in operations]
        directions = ["up" if scale > 1 else "down" if scale < 1 else "keep" for scale in scales]
        expected = {
            "up": ranges.enlarge,
            "down": ranges.shrink,
            "keep": 1 - ranges.enlarge - ranges.shrink,
        }
        assert_distributed(
            directions, expected, 0.02
        )  # a scale within half a percent of 1 is rounded to it
        methods = [plan["resize"]["method"] for plan in operations if "resize" in plan]
        assert_distributed(methods, dict.fromkeys(ranges.methods, 1 / len(ranges.methods)))


def test_the_shapes_of_blur_have_their_probabilities(monkeypatch):
    rng = np.random.default_rng(1)
    drawn_shapes = []

    def record(family, radius, along, across, angle, beta=1):
        drawn_shapes.append((family, bool(angle), beta))
        assert PHOTO.radius[0] <= radius <= PHOTO.radius[1] or family == "gaussian"
        return np.ones((3, 3)) / 9

    monkeypatch.setattr(degradations, "blur_kernel", record)
    for _ in range(4000):
        PHOTO.draw_blur(rng, (0.5, 2))
    assert_distributed(
        [True] * len(drawn_shapes) + [False] * (4000 - len(drawn_shapes)), {True: 0.9, False: 0.1}
    )
    assert_distributed([family for family, *_ in drawn_shapes], PHOTO.blurs)
    for family, share in PHOTO.anisotropic.items():
        turned = [turned for name, turned, _ in drawn_shapes if name == family]
        assert_distributed(turned, {True: share, False: 1 - share})
    for family, (low, high) in PHOTO.beta.items():
        betas = [beta for name, _, beta in drawn_shapes if name == family]
        assert low <= min(betas) < low + 0.1 and high - 0.1 < max(betas) <= high
        assert np.mean([beta <= 1 for beta in betas]) == pytest.approx(0.5, abs=0.06)


def scale_of(resizing: dict) -> float:
    return resizing["scale"] if "scale" in resizing else resizing["size"][0] / 100


def assert_distributed(found: list, probabilities: dict, slack: float = 0) -> None:
    counts = collections.Counter(found)
    expected = {
        key: probability * len(found) for key, probability in probabilities.items() if probability
    }
    assert counts.keys() <= expected.keys(), counts
    if slack:
        assert all(
            abs(counts[key] - number) < (0.03 + slack) * len(found)
            for key, number in expected.items()
        ), counts
    elif len(expected) > 1:
        assert (
            stats.chisquare([counts[key] for key in expected], list(expected.values())).pvalue
            > 1e-4
        ), (counts, expected)


@pytest.mark.parametrize("ranges", PASSES)
def test_parameters_fill_their_ranges_and_no_more(ranges):
    rng, found = np.random.default_rng(3), collections.defaultdict(list)
    for _ in range(3000):
        for operation in PHOTO._draw_pass(rng, ranges, (100, 100)):
            for name, value in operation.keywords.items():
                found[operation.func.__name__, name].append(value)
    limits = {
        ("add_gaussian", "strength"): ranges.gaussian,
        ("add_poisson", "strength"): ranges.poisson,
    }
    for key, (low, high) in {**limits, ("jpeg", "quality"): ranges.quality}.items():
        room = (high - low) * 0.05
        assert low <= min(found[key]) < low + room and high - room < max(found[key]) <= high, key
    scales = [*found["resize", "scale"], *(size[0] / 100 for size in found["resize", "size"])]
    assert (
        ranges.scale[0] <= min(scales) < ranges.scale[0] + 0.03
        and ranges.scale[1] - 0.03 < max(scales) <= ranges.scale[1]
    )
    kernels = found["filtered", "kernel"]
    assert max(len(kernel) for kernel in kernels) == 2 * PHOTO.radius[1] + 1
    assert all(kernel.sum() == pytest.approx(1) for kernel in kernels)


def test_noise_and_blocks_reach_lr():
    """Artefacts of the last pass keep their size; those of the first shrink with the image."""
    gray = np.full((256, 256, 3), 128, np.uint8)
    noise = {
        kind: np.array(
            [
                PHOTO.degrade(gray, 4, np.random.default_rng(seed), kind=kind).std()
                for seed in range(60)
            ]
        )
        for kind in ("light", "full")
    }
    assert noise["light"].max() < 6 < noise["full"].max()
    assert np.mean(noise["full"] > 2) > 0.3 and np.mean(noise["light"] < 1) > 0.4
    for plan in filter(None, drawn(500)):
        assert [operation for operation in plan if operation.func is degradations.resize][
            -1
        ].keywords["size"] == (16, 20)


# --- whole images and crops


def test_a_file_is_degraded_in_the_same_way_on_every_machine():
    checksum = 0
    for index in range(40):
        checksum = zlib.crc32(
            PHOTO.degrade_image(pattern(60, 80), 4, f"{index}.png").tobytes(), checksum
        )
    assert checksum == 2878269148
    one = PHOTO.degrade_image(pattern(120, 160), 4, "a/b.png")
    assert np.array_equal(one, PHOTO.degrade_image(pattern(120, 160), 4, "a/b.jpg"))
    assert not np.array_equal(one, PHOTO.degrade_image(pattern(120, 160), 4, "a/b.png", seed=1))


def test_single_precision_gives_the_same_to_within_a_level(astronaut, monkeypatch):
    monkeypatch.setattr(
        degradations, "_normal", lambda image, _rng, _gray: np.zeros_like(image)
    )  # or other numbers are drawn
    worst = []
    for seed in range(20):
        made = [
            PHOTO.degrade(astronaut[:128, :160], 4, np.random.default_rng(seed), p)
            for p in (np.float32, np.float64)
        ]
        worst.append(np.abs(made[0].astype(int) - made[1]).max())
    assert sorted(worst)[17] <= 1  # JPEG may round a coefficient differently


def test_a_clean_sample_is_the_bicubic_lr(astronaut):
    clean = replace(PHOTO, shares={"clean": 1})
    lr = clean.degrade(astronaut[:64, :64], 4, np.random.default_rng(0))
    assert np.array_equal(lr, images.downscale(astronaut[:64, :64], 4))
    whole = images.downscale(astronaut, 4)
    for top, left in ((0, 0), (40, 50), (106, 106)):
        crop = clean.crops(astronaut, top, left, 22, 4, np.random.default_rng(0))[0]
        assert np.array_equal(crop[2:-2, 2:-2], whole[top : top + 22, left : left + 22][2:-2, 2:-2])


@pytest.mark.parametrize(("top", "left"), [(0, 0), (40, 50), (106, 106)])
def test_a_degraded_crop_lies_where_its_hr_lies(astronaut, top, left):
    hr = astronaut[4 * top : 4 * top + 88, 4 * left : 4 * left + 88]
    mean = np.zeros((22, 22, 3))
    for seed in range(40):
        mean += PHOTO.crops(astronaut, top, left, 22, 4, np.random.default_rng(seed))[0] / 40
    expected = images.downscale(hr, 4).astype(float)
    errors = {
        (y, x): np.abs(np.roll(mean, (y, x), (0, 1)) - expected)[2:-2, 2:-2].mean()
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    }
    assert min(errors, key=errors.get) == (0, 0)


@pytest.mark.parametrize(("upscale", "less"), [(1, 7), (4, 8)])
def test_what_lies_beyond_the_margin_is_hardly_seen_in_the_crop(
    astronaut, monkeypatch, upscale, less
):
    def difference(margin):
        monkeypatch.setattr(degradations, "MARGIN", margin)
        made = []
        for border in (degradations.cv2.BORDER_REFLECT_101, degradations.cv2.BORDER_REPLICATE):
            with monkeypatch.context() as patch:
                patch.setattr(degradations.cv2, "BORDER_REFLECT_101", border)
                rngs = map(np.random.default_rng, range(60))
                crops = [PHOTO.crops(astronaut, 40, 50, 22, upscale, rng)[0] for rng in rngs]
                made.append(np.array(crops, int))
        return np.abs(made[0] - made[1]).mean()

    assert difference(degradations.MARGIN) < 0.15 < 0.3 < difference(less)  # levels of 255


@pytest.mark.parametrize("upscale", [2, 3, 8])
def test_crops_at_other_scales_lie_where_their_hr_lies(astronaut, upscale):
    light = replace(PHOTO, shares={"light": 1})
    image = images.crop_to_multiple(astronaut, upscale)
    mean = sum(
        light.crops(image, 15, 20, 12, upscale, np.random.default_rng(seed))[0] / 40.0
        for seed in range(40)
    )
    expected = images.downscale(image, upscale)[15:27, 20:32]
    assert np.abs(mean - expected).mean() < np.abs(mean - np.roll(expected, 1, 0)).mean() / 2


def test_bad_input_is_refused(photos):
    with pytest.raises(ValueError, match="70000x8 pixels are too large for JPEG"):
        degradations.jpeg(np.zeros((8, 70_000, 3), np.float32), 50, True)
    with pytest.raises(ValueError, match="the degradation photo-1: LR is read or made, not both"):
        TrainDatasetFromFolder(photos[0], 32, 4, lr_folder=photos[0], degradation=PHOTO)


def test_gray_and_16_bit_pictures_are_degraded(tmp_path):
    ramp = np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / "gray.png")
    for lr, hr in TrainDatasetFromFolder(tmp_path, 32, 4, degradation=PHOTO):
        assert lr.shape == (3, 8, 8) and abs(lr.float().mean() - hr.float().mean()) < 12


@pytest.mark.parametrize("shape", [(4, 4), (4, 40), (8, 12), (88, 88)])
def test_pictures_smaller_than_the_margin_are_degraded(shape):
    picture = pattern(*shape)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        lr = PHOTO.degrade(picture, 4, rng)
        assert lr.shape == (shape[0] // 4, shape[1] // 4, 3) and lr.dtype == np.uint8
        assert PHOTO.crops(picture, 0, 0, 1, 4, rng)[0].shape == (1, 1, 3)


# --- in training


@pytest.fixture
def dataset(photos, tmp_path) -> TrainDatasetFromFolder:
    options = {
        "crops_per_image": 2,
        "seed": 4,
        "cache_folder": tmp_path / "cache",
        "degradation": PHOTO,
    }
    return TrainDatasetFromFolder(photos[0], 32, 4, **options)


def test_samples_do_not_depend_on_workers_cache_or_where_the_epoch_is_resumed(dataset, photos):
    expected = epoch_of(dataset, 5)
    assert all(
        lr.dtype == hr.dtype == torch.uint8 and lr.shape[2:] == (8, 8) for lr, hr in expected
    )
    assert same(epoch_of(dataset, 5, workers=2), expected)
    assert same(epoch_of(dataset, 5, first_batch=1), expected[1:])
    plain = TrainDatasetFromFolder(photos[0], 32, 4, crops_per_image=2, seed=4, degradation=PHOTO)
    assert same(epoch_of(plain, 5), expected)
    assert not same(epoch_of(dataset, 6), expected)
    bicubic = TrainDatasetFromFolder(photos[0], 32, 4, crops_per_image=2, seed=4)
    assert same(
        [[hr] for _, hr in epoch_of(bicubic, 5)], [[hr] for _, hr in expected]
    )  # HR is that of the other run
    torch.manual_seed(1)
    one, two = dataset[3], dataset[3]
    torch.manual_seed(1)
    assert same([dataset[3]], [one]) and not same([one], [two])


@pytest.mark.parametrize(
    ("more", "workers"), [([], 0), (["--degradation", "photo"], 1), (["--no-cache"], 0)]
)
def test_a_worker_degrades_while_the_step_computes(photos, more, workers):
    args = get_args_parser().parse_args(
        ["--train-dir", str(photos[0]), "--val-dir", str(photos[1]), "--device", "cpu", *more]
    )
    resolve(args)
    assert args.workers == workers


@pytest.mark.parametrize(
    ("more", "cores", "processes", "workers"),
    [
        (["--degradation", "photo"], 64, 8, 8),
        (["--degradation", "photo"], 32, 8, 4),
        (["--no-cache"], 6, 1, 6),
        (["--no-cache"], 4, 8, 1),
        (["--no-cache", "--workers", "3"], 64, 8, 3),
        ([], 64, 1, 0),
    ],
)
def test_workers_of_a_gpu_are_its_processs_share_of_the_cores(
    photos, monkeypatch, more, cores, processes, workers
):
    """As under torchrun, where PyTorch has one thread per process."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    folders = ["--train-dir", str(photos[0]), "--val-dir", str(photos[1])]
    words = [*folders, "--device", "cuda", "--precision", "fp32", *more]
    args = get_args_parser().parse_args(words)
    resolve(args)
    assert args.workers == workers


def test_validation_and_the_files_of_prepare_data_are_the_same(photos, tmp_path):
    (photos[1] / "sub").mkdir()
    Image.open(photos[1] / "image_1.png").save(photos[1] / "sub" / "image_1.jpg")
    run_script("prepare_data.py", "degraded", photos[1], "--out", tmp_path / "lr")
    made = ValDatasetFromFolder(photos[1], 4, degradation=PHOTO, cache_folder=tmp_path / "cache")
    read = ValDatasetFromFolder(photos[1], 4, lr_folder=tmp_path / "lr")
    assert len(made) == 3 and all(
        torch.equal(a[1], b[1]) and torch.equal(a[3], b[3]) for a, b in zip(made, read)
    )
    clean = ValDatasetFromFolder(photos[1], 4, cache_folder=tmp_path / "cache")
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(made, clean))
    assert len(list((tmp_path / "cache").glob("x4-*"))) == 2  # side by side


def test_the_sheet_shows_every_kind_and_leaves_out_small_images(astronaut, photos, tmp_path):
    sheet = [
        "prepare_data.py",
        "degraded",
        photos[1],
        "--out",
        tmp_path / "lr",
        "--sheet",
        tmp_path / "sheet.png",
    ]
    assert "no image is as large as 192x192, which --sheet needs" in the_error(
        run_script(*sheet, status=2)
    )
    Image.fromarray(astronaut[:200, :260]).save(photos[1] / "large.png")
    Image.new("RGB", (3, 3)).save(photos[1] / "tiny.png")
    done = run_script(*sheet)
    assert "3 images, 1 left out (too small)" in done.stdout
    rgb = images.read_picture(tmp_path / "sheet.png").rgb
    assert rgb.shape == (144, 7 * 144, 3)
    assert np.array_equal(rgb[::3, :144:3], images.downscale(astronaut[4:196, 34:226], 4))


def test_bad_input_of_prepare_data_degraded(photos, tmp_path):
    assert "lies inside" in the_error(
        run_script("prepare_data.py", "degraded", photos[1], "--out", photos[1] / "x", status=2)
    )
    Image.open(photos[1] / "image_1.png").save(photos[1] / "image_1.jpg")
    error = the_error(
        run_script("prepare_data.py", "degraded", photos[1], "--out", tmp_path / "lr", status=2)
    )
    assert "several images are named image_1" in error and not (tmp_path / "lr").exists()


def test_only_as_many_images_are_degraded_at_once_as_memory_holds(photos, monkeypatch):
    names = images.list_image_names(photos[1])
    height, width = images.read_size(photos[1] / names[0])
    monkeypatch.setattr(prepare_data.machine, "cores", lambda: 64)
    for free, processes in ((3.5 * 200 * height * width, 3), (1, 1), (1e15, 64), (None, None)):
        monkeypatch.setattr(prepare_data.machine, "free_system_memory", lambda free=free: free)
        assert prepare_data._processes_for_memory(photos[1], names) == processes
