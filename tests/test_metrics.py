import numpy as np
import pytest
import torch
from conftest import photograph
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.utils.flop_counter import FlopCounterMode

import metrics
from dataloader import TestDatasetFromFolder
from utils import images


def test_psnr_of_a_known_error():
    hr = torch.zeros(2, 3, 16, 16)
    sr = hr + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert metrics.psnr(sr, hr).tolist() == pytest.approx([20, 40], abs=1e-4)
    assert metrics.psnr(hr, hr).tolist() == [100, 100]


def test_rgb_metrics_agree_with_scikit_image(astronaut):
    noise = np.random.default_rng(0).integers(-20, 20, astronaut.shape)
    noisy = (astronaut + noise).clip(0, 255).astype(np.uint8)
    psnr, ssim = metrics.psnr_ssim_rgb(images.to_tensor(noisy), images.to_tensor(astronaut))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert psnr == pytest.approx(peak_signal_noise_ratio(astronaut, noisy, data_range=255), abs=1e-3)
    assert ssim == pytest.approx(structural_similarity(astronaut, noisy, channel_axis=2, **options), abs=1e-4)


def test_y_is_studio_swing():
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]]).view(3, 3, 1, 1)
    assert (metrics.rgb_to_y(corners) * 255).flatten().tolist() == pytest.approx([16, 235, 81.481], abs=1e-3)


@pytest.mark.parametrize("side", [1, 2, 5, 10, 11])
def test_ssim_of_small_images_is_defined(side):
    image = torch.rand(1, 3, side, side + 1)
    assert metrics.ssim(image, image).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("scale", "psnr", "ssim"), [(2, 33.67, 0.9303), (3, 30.40, 0.8689), (4, 28.43, 0.8111)])
def test_bicubic_on_set5_is_the_papers(set5, scale, psnr, ssim):
    scores = []
    for _name, lr, hr in TestDatasetFromFolder(None, set5 / f"x{scale}" / "HR", scale):
        bicubic = images.upscale_bicubic(images.to_array(lr), scale)
        scores.append(metrics.psnr_ssim_y(*(images.uint8_to_unit(image) for image in (images.to_tensor(bicubic), hr)), scale))
    means = torch.tensor(scores).mean(0).tolist()
    assert means[0] == pytest.approx(psnr, abs=0.02)
    assert means[1] == pytest.approx(ssim, abs=1e-3)


def test_y_ssim_agrees_with_scikit_image():
    hr = images.crop_to_multiple(photograph("chelsea.png"), 4)
    sr = images.upscale_bicubic(images.downscale(hr, 4), 4)
    y = [
        np.asarray(metrics.rgb_to_y(images.uint8_to_unit(images.to_tensor(i)).double()))[0, 0, 4:-4, 4:-4] * 255
        for i in (sr, hr)
    ]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    psnr, ssim = metrics.psnr_ssim_y(*(images.uint8_to_unit(images.to_tensor(i)) for i in (sr, hr)), 4)
    assert ssim.item() == pytest.approx(structural_similarity(*y, **options), abs=1e-4)
    assert psnr.item() == pytest.approx(peak_signal_noise_ratio(y[1], y[0], data_range=255), abs=1e-3)


def test_lpips_is_the_packages_distance():
    ours = metrics.LPIPS(random_backbone=True)
    import lpips  # which needs torchvision, as only our own import can have it beside a CPU-only torch

    sr, hr = torch.rand(2, 3, 40, 50) * 2 - 1, torch.rand(2, 3, 40, 50) * 2 - 1
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    reference.load_state_dict(ours.network.state_dict())
    assert torch.equal(ours(sr, hr), reference(sr, hr).flatten())
    assert ours(hr, hr).tolist() == [0, 0] and (ours(sr, hr) > 0).all()


def test_lpips_says_why_it_cannot_be_measured(monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline, raising=False)
    with pytest.raises(ValueError, match=r"could not be downloaded or read \(no route to host\).*leave out --lpips"):
        metrics.LPIPS()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="pip install lpips, or leave out --lpips"):
        metrics.LPIPS()


def test_metrics_are_the_same_under_autocast():
    hr = torch.rand(1, 3, 40, 50)
    sr = (hr + 0.1 * torch.randn(hr.shape)).clamp(0, 1)
    lpips = metrics.LPIPS(random_backbone=True)
    functions = (metrics.psnr, metrics.ssim, lpips, lambda sr, hr: torch.stack(metrics.psnr_ssim_y(sr, hr, 2)))
    for function in functions:
        expected = function(sr, hr)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(function(sr, hr), expected)


def test_lpips_uses_no_tf32_and_leaves_the_switch_as_it_was():
    lpips, seen = metrics.LPIPS(random_backbone=True), []
    lpips.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    lpips(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    assert seen == [False] and torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands for every device that is no CPU
def test_ssim_has_no_convolution_that_tf32_could_round(device):
    image = torch.zeros(2, 3, 30, 40, device=device)
    with FlopCounterMode(display=False) as counter:
        assert metrics.ssim(image, image).shape == (2,)
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
