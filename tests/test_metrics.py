import numpy as np
import pytest
import torch
from conftest import photograph
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.utils.flop_counter import FlopCounterMode

import metrics
from dataloader import TestDatasetFromFolder
from utils import images, pretrained


def test_psnr_of_a_known_error():
    hr = torch.zeros(2, 3, 16, 16)
    sr = hr + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert metrics.psnr(sr, hr).tolist() == pytest.approx([20, 40], abs=1e-4)
    assert metrics.psnr(hr, hr).tolist() == [100, 100]


def test_rgb_metrics_agree_with_scikit_image(astronaut):
    noise = np.random.default_rng(0).integers(-20, 20, astronaut.shape)
    noisy = (astronaut + noise).clip(0, 255).astype(np.uint8)
    psnr, ssim = metrics.psnr_ssim_rgb(images.to_tensor(noisy), images.to_tensor(astronaut))
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 255,
    }
    assert psnr == pytest.approx(
        peak_signal_noise_ratio(astronaut, noisy, data_range=255), abs=1e-3
    )
    assert ssim == pytest.approx(
        structural_similarity(astronaut, noisy, channel_axis=2, **options), abs=1e-4
    )


def test_y_is_studio_swing():
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]]).view(3, 3, 1, 1)
    assert (metrics.rgb_to_y(corners) * 255).flatten().tolist() == pytest.approx(
        [16, 235, 81.481], abs=1e-3
    )


@pytest.mark.parametrize("side", [1, 2, 5, 10, 11])
def test_ssim_of_small_images_is_defined(side):
    image = torch.rand(1, 3, side, side + 1)
    assert metrics.ssim(image, image).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "psnr", "ssim"), [(2, 33.67, 0.9303), (3, 30.40, 0.8689), (4, 28.43, 0.8111)]
)
def test_bicubic_on_set5_is_the_papers(set5, scale, psnr, ssim):
    scores = []
    for _name, lr, hr in TestDatasetFromFolder(None, set5 / f"x{scale}" / "HR", scale):
        bicubic = images.upscale_bicubic(images.to_array(lr), scale)
        scores.append(
            metrics.psnr_ssim_y(
                *(images.uint8_to_unit(image) for image in (images.to_tensor(bicubic), hr)), scale
            )
        )
    means = torch.tensor(scores).mean(0).tolist()
    assert means[0] == pytest.approx(psnr, abs=0.02)
    assert means[1] == pytest.approx(ssim, abs=1e-3)


def test_y_ssim_agrees_with_scikit_image():
    hr = images.crop_to_multiple(photograph("chelsea.png"), 4)
    sr = images.upscale_bicubic(images.downscale(hr, 4), 4)
    y = [
        np.asarray(metrics.rgb_to_y(images.uint8_to_unit(images.to_tensor(i)).double()))[
            0, 0, 4:-4, 4:-4
        ]
        * 255
        for i in (sr, hr)
    ]
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 255,
    }
    psnr, ssim = metrics.psnr_ssim_y(
        *(images.uint8_to_unit(images.to_tensor(i)) for i in (sr, hr)), 4
    )
    assert ssim.item() == pytest.approx(structural_similarity(*y, **options), abs=1e-4)
    assert psnr.item() == pytest.approx(
        peak_signal_noise_ratio(y[1], y[0], data_range=255), abs=1e-3
    )


def test_lpips_is_the_packages_distance():
    ours = metrics.LPIPS(random_backbone=True)
    import lpips  # which needs torchvision, as only our own import can have it beside a CPU-only torch

    sr, hr = torch.rand(2, 3, 40, 50), torch.rand(2, 3, 40, 50)
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    reference.load_state_dict(ours.network.state_dict())
    assert torch.equal(ours(sr, hr), reference(2 * sr - 1, 2 * hr - 1).flatten())
    assert ours(hr, hr).tolist() == [0, 0] and (ours(sr, hr) > 0).all()


def test_lpips_says_why_it_cannot_be_measured(monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline, raising=False)
    with pytest.raises(
        ValueError, match=r"could not be downloaded or read \(no route to host\).*leave out --lpips"
    ):
        metrics.LPIPS()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="pip install lpips, or leave out --lpips"):
        metrics.LPIPS()


def test_metrics_are_the_same_under_autocast():
    hr = torch.rand(1, 3, 40, 50)
    sr = (hr + 0.1 * torch.randn(hr.shape)).clamp(0, 1)
    functions = {
        "psnr": metrics.psnr,
        "ssim": metrics.ssim,
        "y": lambda sr, hr: torch.stack(metrics.psnr_ssim_y(sr, hr, 2)),
        "lpips": metrics.LPIPS(random_backbone=True),
        "distance": untrained_distance(),
        "texture": lambda sr, hr: torch.tensor(list(metrics.texture(sr, hr, 2).values())),
    }
    for function in functions.values():
        expected = function(sr, hr)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(function(sr, hr), expected)


@pytest.mark.parametrize("name", ["lpips", "distance"])
def test_networks_use_no_tf32_and_leave_the_switch_as_it_was(name):
    network = metrics.LPIPS(random_backbone=True) if name == "lpips" else untrained_distance()
    layer, seen = (
        next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d)),
        [],
    )
    layer.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    network(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    assert seen == [False, False] and torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands for every device that is no CPU
def test_ssim_and_texture_have_no_convolution_that_tf32_could_round(device):
    image = torch.zeros(2, 3, 30, 40, device=device)
    with FlopCounterMode(display=False) as counter:
        assert metrics.ssim(image, image).shape == (2,)
        assert metrics._fine_detail(image).shape == image.shape
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("shape", [(2, 3, 11, 40), (1, 3, 59, 21), (3, 1, 200, 37), (1, 3, 8, 50)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ssim_in_strips_is_pytorch_msssims(shape, layout):
    from pytorch_msssim import ssim

    hr = torch.rand(shape).contiguous(memory_format=layout)
    sr = (hr + 0.1 * torch.randn(shape)).clamp(0, 1)
    taps = 11 if min(shape[2:]) >= 11 else 7
    expected = ssim(sr, hr, data_range=1, size_average=False, win_size=taps)
    assert torch.allclose(metrics.ssim(sr, hr), expected, atol=1e-6, rtol=0)


# --- what PSNR cannot see -----------------------------------------------------------------------------------------


def reference_texture(sr: np.ndarray, hr: np.ndarray, scale: int) -> dict[str, float]:
    """Detail, Colour and Grid of pictures (H, W, 3) uint8, by their definition, in fp64."""

    def fine_detail(picture: np.ndarray) -> list[np.ndarray]:
        red, green, blue = np.moveaxis(picture.astype(float) / 255, -1, 0)
        planes = (
            65.481 * red + 128.553 * green + 24.966 * blue,
            -37.797 * red - 74.203 * green + 112 * blue,
            112 * red - 93.786 * green - 18.214 * blue,
        )
        return [plane - gaussian_filter(plane, 1.5, mode="reflect") for plane in planes]

    sr, hr = fine_detail(sr), fine_detail(hr)
    luma, chroma_b, chroma_r = (np.abs(plane).mean() for plane in sr)
    hr_luma, hr_chroma_b, hr_chroma_r = (np.abs(plane).mean() for plane in hr)
    busy = uniform_filter(np.abs(hr[0]), 9, mode="reflect")
    flat = busy <= np.quantile(busy, 0.3)
    detail, squares = sr[0] - sr[0][flat].mean(), 0.0
    for row in range(scale):
        for column in range(scale):
            of_phase = detail[row::scale, column::scale][flat[row::scale, column::scale]]
            squares += len(of_phase) * of_phase.mean() ** 2 if len(of_phase) else 0
    return {
        "Detail": luma / hr_luma,
        "Colour": (chroma_b + chroma_r) / (hr_chroma_b + hr_chroma_r + 0.1 * hr_luma),
        "Grid": (squares / flat.sum()) ** 0.5,
    }


def texture_of(sr: np.ndarray, hr: np.ndarray, scale: int) -> dict[str, float]:
    return metrics.texture(
        *(images.uint8_to_unit(images.to_tensor(picture)) for picture in (sr, hr)), scale
    )


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_texture_is_that_of_its_definition(astronaut, scale):
    hr = images.crop_to_multiple(astronaut[150:, 100:350], scale)
    bicubic = images.upscale_bicubic(images.downscale(hr, scale), scale)
    noise = np.random.default_rng(0).integers(-9, 10, hr.shape) + 3 * (
        np.indices(hr.shape)[0] % scale == 0
    )
    for sr in (bicubic, (bicubic + noise).clip(0, 255).astype(np.uint8)):
        assert texture_of(sr, hr, scale) == pytest.approx(
            reference_texture(sr, hr, scale), rel=1e-3
        )


@pytest.mark.parametrize(
    "size", [(4, 8), (8, 4), (20, 4), (52, 100)]
)  # smaller than the windows, and about a strip of rows
def test_texture_at_borders_is_that_of_its_definition(size):
    sr, hr = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert texture_of(sr, hr, 4) == pytest.approx(reference_texture(sr, hr, 4), rel=1e-3)


def test_texture_of_known_images(astronaut):
    gray = np.repeat(astronaut[..., :1], 3, -1)
    same = texture_of(gray, gray, 4)
    assert same["Detail"] == 1 and same["Colour"] == pytest.approx(
        0, abs=1e-4
    )  # gray has no chroma, and SR no noise in it
    assert texture_of(astronaut, astronaut, 4)["Grid"] < 0.1
    flat = np.full((64, 80, 3), 100, np.uint8)
    checkerboard = flat + 4 * (np.indices(flat.shape).sum(0) % 2 == 0).astype(np.uint8)
    checkerboard[..., 1:] = checkerboard[..., :1]
    assert texture_of(flat, flat, 2) == {"Grid": pytest.approx(0, abs=1e-4)}
    # Luma is 219/255 of a gray level; the blur takes nearly nothing of a checkerboard away
    assert texture_of(checkerboard, flat, 2) == {"Grid": pytest.approx(2 * 219 / 255, rel=1e-3)}


def untrained_distance() -> metrics.FeatureDistance:
    return metrics.FeatureDistance(pretrained.state_dict("squeezenet", "random"))


def test_distance_is_that_of_the_perceptual_loss():
    distance, sr, hr = untrained_distance(), torch.rand(2, 3, 40, 50), torch.rand(2, 3, 40, 50)
    assert (
        torch.equal(distance(sr, hr), distance.network.distance(sr, hr))
        and (distance(sr, hr) > 0).all()
    )
    assert distance(hr, hr).tolist() == [0, 0]


def test_distance_of_a_large_image_is_measured_in_parts(monkeypatch):
    monkeypatch.setattr(metrics, "LARGEST_PART", 50)
    distance, seen = untrained_distance(), []
    distance.network.features[0].register_forward_pre_hook(
        lambda _layer, inputs: seen.append(tuple(inputs[0].shape[2:]))
    )
    sr, hr = torch.rand(1, 3, 60, 120), torch.rand(1, 3, 60, 120)
    parts = [distance.network.distance(sr[..., y : y + 30, x : x + 40], hr[..., y : y + 30, x : x + 40])
             for y in (0, 30) for x in (0, 40, 80)]  # fmt: skip
    seen.clear()
    assert distance(sr, hr).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)
    assert seen == [(30, 40)] * 12


def test_distance_of_bicubic_on_set5_is_as_measured_elsewhere(set5, squeezenet_file):
    distance = metrics.distance_networks(squeezenet=str(squeezenet_file))["Distance"]
    name, lr, hr = next(iter(TestDatasetFromFolder(set5 / "x4" / "LR", set5 / "x4" / "HR", 4)))
    bicubic = images.to_tensor(images.upscale_bicubic(images.to_array(lr), 4))
    pair = [images.uint8_to_unit(image) for image in (bicubic, hr)]
    assert name == "img_001" and distance(*pair).item() == pytest.approx(2.021, abs=0.002)


def test_distance_downloads_only_what_was_asked_for(tmp_path, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    checkpoints = tmp_path / "hub" / "checkpoints"
    assert not metrics.distance_networks() and not checkpoints.exists()
    with pytest.raises(
        ValueError,
        match=r"SqueezeNet could not be downloaded.*no route to host.*--perceptual-weights FILE",
    ):
        metrics.distance_networks(squeezenet="imagenet")
    (checkpoints / "squeezenet1_0-b66bff10.pth").write_bytes(b"another version")
    assert not metrics.distance_networks()
    torch.save(
        pretrained.state_dict("squeezenet", "random"), checkpoints / "squeezenet1_1-b8a52dc0.pth"
    )
    assert list(metrics.distance_networks()) == ["Distance"]


def test_an_image_that_is_too_small_for_a_network_has_no_distance():
    networks = torch.nn.ModuleDict(
        {"LPIPS": metrics.LPIPS(random_backbone=True), "Distance": untrained_distance()}
    )
    texture = {"Detail", "Colour", "Grid"}
    for side, names in (
        (20, texture),
        (21, texture | {"Distance"}),
        (32, texture | {"Distance", "LPIPS"}),
    ):
        sr, hr = torch.randint(0, 256, (2, 1, 3, side, 40), dtype=torch.uint8)
        values = metrics.beyond_psnr(sr, hr, 1, networks)
        assert values.keys() == names
        units = images.uint8_to_unit(sr), images.uint8_to_unit(hr)
        assert values == {
            name: networks[name](*units).item() for name in networks if name in names
        } | metrics.texture(*units, 1)


def test_frame_difference_is_that_of_known_frames_and_adds_up():
    def frame(value):
        return torch.full((1, 3, 4, 5), value, dtype=torch.uint8)

    parts = [metrics.FrameDifference() for _ in range(2)]
    for part, values in zip(parts, ([(10, 0), (250, 1), (250, 3)], [(0, 0), (90, 6)]), strict=True):
        for sr, bicubic in values:
            part.add(frame(sr), frame(bicubic))
    assert parts[0].means() == (120, 1.5) and parts[0].sums == [240, 3, 2]
    together = metrics.FrameDifference(map(sum, zip(*(part.sums for part in parts), strict=True)))
    assert together.means() == (110, 3) and metrics.FrameDifference().means() is None
