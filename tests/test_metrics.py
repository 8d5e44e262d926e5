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

# The SSIM of Wang et al., for scikit-image
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


def unit(picture: np.ndarray) -> torch.Tensor:
    """A picture (H, W, 3) uint8 as (1, 3, H, W) in [0, 1]."""
    return images.uint8_to_unit(images.to_tensor(picture))


def test_psnr_of_a_known_error():
    hr = torch.zeros(2, 3, 16, 16)
    sr = hr + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert metrics.psnr(sr, hr).tolist() == pytest.approx([20, 40], abs=1e-4)
    assert metrics.psnr(hr, hr).tolist() == [100, 100]


def test_rgb_metrics_agree_with_scikit_image(astronaut):
    noise = np.random.default_rng(0).integers(-20, 20, astronaut.shape)
    noisy = (astronaut + noise).clip(0, 255).astype(np.uint8)
    psnr, ssim = metrics.psnr_ssim_rgb(images.to_tensor(noisy), images.to_tensor(astronaut))
    expected_psnr = peak_signal_noise_ratio(astronaut, noisy, data_range=255)
    expected_ssim = structural_similarity(astronaut, noisy, channel_axis=2, **SSIM)
    assert psnr == pytest.approx(expected_psnr, abs=1e-3)
    assert ssim == pytest.approx(expected_ssim, abs=1e-4)


def test_y_is_studio_swing():
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]]).view(3, 3, 1, 1)
    luma = (metrics.rgb_to_y(corners) * 255).flatten().tolist()
    assert luma == pytest.approx([16, 235, 81.481], abs=1e-3)


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
        scores.append(metrics.psnr_ssim_y(unit(bicubic), images.uint8_to_unit(hr), scale))
    means = torch.tensor(scores).mean(0).tolist()
    assert means[0] == pytest.approx(psnr, abs=0.02)
    assert means[1] == pytest.approx(ssim, abs=1e-3)


def test_y_ssim_agrees_with_scikit_image():
    hr = images.crop_to_multiple(photograph("chelsea.png"), 4)
    sr = images.upscale_bicubic(images.downscale(hr, 4), 4)

    def luma(picture):
        y = metrics.rgb_to_y(unit(picture).double())
        return y[0, 0, 4:-4, 4:-4].numpy() * 255

    expected_psnr = peak_signal_noise_ratio(luma(hr), luma(sr), data_range=255)
    expected_ssim = structural_similarity(luma(sr), luma(hr), **SSIM)
    psnr, ssim = metrics.psnr_ssim_y(unit(sr), unit(hr), 4)
    assert psnr.item() == pytest.approx(expected_psnr, abs=1e-3)
    assert ssim.item() == pytest.approx(expected_ssim, abs=1e-4)


def test_lpips_is_the_packages_distance():
    ours = metrics.LPIPS(random_backbone=True)  # which imports torchvision beside a CPU-only torch
    import lpips

    sr = torch.rand(2, 3, 40, 50)
    hr = torch.rand(2, 3, 40, 50)
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    reference.load_state_dict(ours.network.state_dict())
    assert torch.equal(ours(sr, hr), reference(2 * sr - 1, 2 * hr - 1).flatten())
    assert ours(hr, hr).tolist() == [0, 0]
    assert (ours(sr, hr) > 0).all()


def test_lpips_says_why_it_cannot_be_measured(monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline, raising=False)
    reason = r"could not be downloaded or read \(no route to host\).*leave out --lpips"
    with pytest.raises(ValueError, match=reason):
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
    layer = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    network(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands for every other device
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


# --- what PSNR misses ---------------------------------------------------------------------------


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
    detail = sr[0] - sr[0][flat].mean()
    squares = 0.0
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
    return metrics.texture(unit(sr), unit(hr), scale)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_texture_is_that_of_its_definition(astronaut, scale):
    hr = images.crop_to_multiple(astronaut[150:, 100:350], scale)
    bicubic = images.upscale_bicubic(images.downscale(hr, scale), scale)
    noise = np.random.default_rng(0).integers(-9, 10, hr.shape)
    lines = 3 * (np.indices(hr.shape)[0] % scale == 0)
    noisy = (bicubic + noise + lines).clip(0, 255).astype(np.uint8)
    for sr in (bicubic, noisy):
        expected = reference_texture(sr, hr, scale)
        assert texture_of(sr, hr, scale) == pytest.approx(expected, rel=1e-3)


# Smaller than the windows, and about a strip of rows
@pytest.mark.parametrize("size", [(4, 8), (8, 4), (20, 4), (52, 100)])
def test_texture_at_borders_is_that_of_its_definition(size):
    sr, hr = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert texture_of(sr, hr, 4) == pytest.approx(reference_texture(sr, hr, 4), rel=1e-3)


def test_texture_of_known_images(astronaut):
    gray = np.repeat(astronaut[..., :1], 3, -1)
    same = texture_of(gray, gray, 4)
    assert same["Detail"] == 1
    assert same["Colour"] == pytest.approx(0, abs=1e-4)  # gray has no chroma
    assert texture_of(astronaut, astronaut, 4)["Grid"] < 0.1
    flat = np.full((64, 80, 3), 100, np.uint8)
    checkerboard = flat + 4 * (np.indices(flat.shape).sum(0) % 2 == 0).astype(np.uint8)
    checkerboard[..., 1:] = checkerboard[..., :1]
    assert texture_of(flat, flat, 2) == {"Grid": pytest.approx(0, abs=1e-4)}
    # Luma is 219/255 of a gray level; the blur takes hardly anything of a checkerboard away
    assert texture_of(checkerboard, flat, 2) == {"Grid": pytest.approx(2 * 219 / 255, rel=1e-3)}


def untrained_distance() -> metrics.FeatureDistance:
    return metrics.FeatureDistance(pretrained.load("squeezenet", "random"))


def test_distance_is_that_of_the_perceptual_loss():
    distance = untrained_distance()
    sr = torch.rand(2, 3, 40, 50)
    hr = torch.rand(2, 3, 40, 50)
    assert torch.equal(distance(sr, hr), distance.network.distance(sr, hr))
    assert (distance(sr, hr) > 0).all()
    assert distance(hr, hr).tolist() == [0, 0]


def test_distance_of_a_large_image_is_measured_in_parts(monkeypatch):
    monkeypatch.setitem(metrics.LARGEST_PARTS, "squeezenet", 50)
    distance = untrained_distance()
    seen = []
    distance.network.features[0].register_forward_pre_hook(
        lambda _layer, inputs: seen.append(tuple(inputs[0].shape[2:]))
    )
    sr = torch.rand(1, 3, 60, 120)
    hr = torch.rand(1, 3, 60, 120)
    parts = []
    for y in (0, 30):
        for x in (0, 40, 80):
            rows = slice(y, y + 30)
            columns = slice(x, x + 40)
            part = distance.network.distance(sr[..., rows, columns], hr[..., rows, columns])
            parts.append(part)
    seen.clear()
    assert distance(sr, hr).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)
    assert seen == [(30, 40)] * 12


def test_distance_of_bicubic_on_set5_is_as_measured_elsewhere(set5, squeezenet_file):
    distance = metrics.distance_networks(
        weights=[pretrained.load("squeezenet", str(squeezenet_file))]
    )["Distance"]
    name, lr, hr = next(iter(TestDatasetFromFolder(set5 / "x4" / "LR", set5 / "x4" / "HR", 4)))
    bicubic = images.upscale_bicubic(images.to_array(lr), 4)
    found = distance(unit(bicubic), images.uint8_to_unit(hr)).item()
    assert name == "img_001"
    assert found == pytest.approx(2.021, abs=0.002)


def test_distance_downloads_only_what_was_asked_for(tmp_path, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    checkpoints = tmp_path / "hub" / "checkpoints"
    assert not metrics.distance_networks() and not checkpoints.exists()
    reason = r"SqueezeNet could not be downloaded.*no route to host.*--perceptual-weights FILE"
    with pytest.raises(ValueError, match=reason):
        pretrained.load_to_measure("imagenet")
    (checkpoints / "squeezenet1_0-b66bff10.pth").write_bytes(b"another version")
    assert not metrics.distance_networks()
    torch.save(
        pretrained.load("squeezenet", "random").state_dict,
        checkpoints / "squeezenet1_1-b8a52dc0.pth",
    )
    assert list(metrics.distance_networks()) == ["Distance"]


def test_an_image_that_is_too_small_for_a_network_has_no_distance():
    lpips = metrics.LPIPS(random_backbone=True)
    networks = torch.nn.ModuleDict({"LPIPS": lpips, "Distance": untrained_distance()})
    for side, names in ((20, []), (21, ["Distance"]), (32, ["Distance", "LPIPS"])):
        sr, hr = torch.randint(0, 256, (2, 1, 3, side, 40), dtype=torch.uint8)
        sr_unit = images.uint8_to_unit(sr)
        hr_unit = images.uint8_to_unit(hr)
        expected = {name: networks[name](sr_unit, hr_unit).item() for name in names}
        expected |= metrics.texture(sr_unit, hr_unit, 1)  # at x1, nothing can repeat as a grid
        assert expected.keys() == {*names, "Detail", "Colour"}
        assert metrics.beyond_psnr(sr, hr, 1, networks) == expected


def test_frame_difference_is_that_of_known_frames_and_adds_up():
    def frame(value):
        return torch.full((1, 3, 4, 5), value, dtype=torch.uint8)

    first = metrics.FrameDifference()
    for sr, bicubic in [(10, 0), (250, 1), (250, 3)]:
        first.add(frame(sr), frame(bicubic))
    second = metrics.FrameDifference()
    for sr, bicubic in [(0, 0), (90, 6)]:
        second.add(frame(sr), frame(bicubic))
    assert first.means() == (120, 1.5)
    assert first.sums == [240, 3, 2]
    together = metrics.FrameDifference(map(sum, zip(first.sums, second.sums, strict=True)))
    assert together.means() == (110, 3)
    assert metrics.FrameDifference().means() is None
