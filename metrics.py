"""PSNR and SSIM on RGB, and on the Y channel as the super-resolution papers measure; LPIPS."""

import importlib.util
import warnings

import torch
from pytorch_msssim import ssim as msssim_ssim
from torch import Tensor, nn

from utils import cli, compat, images
from utils.pretrained import hub_path

LARGEST_PSNR = 100.0
_STRIP_ROWS = 48


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the PSNR in dB of each image (N,), from images (N, C, H, W) in [0, 1].

    It is 100 dB at most, so that two equal images do not make the mean over many infinite.
    """
    mse = (sr - hr).square().flatten(1).mean(1)
    return (-10 * torch.log10(mse)).clamp(max=LARGEST_PSNR)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the SSIM of each image (N,), from images (N, C, H, W) in [0, 1] (Wang et al., 2004).

    The Gaussian window has 11 taps and a sigma of 1.5, fewer taps where the image is smaller than 11 pixels.
    """
    # pytorch_msssim drops a dimension of one pixel: a second, equal one changes no mean.
    sr, hr = (image.expand(*image.shape[:2], *(max(2, side) for side in image.shape[2:])) for image in (sr, hr))
    taps = min(11, *((side - 1) // 2 * 2 + 1 for side in sr.shape[-2:]))
    if sr.device.type != "cpu":
        return msssim_ssim(sr, hr, data_range=1, size_average=False, win_size=taps)
    return _ssim_in_strips(sr, hr, taps)


def _ssim_in_strips(x: Tensor, y: Tensor, taps: int) -> Tensor:
    """SSIM as `pytorch_msssim` defines it, ten times faster on a CPU: strips of rows that stay in the processor's cache."""
    window = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).tolist()

    def blur(image: Tensor) -> Tensor:
        for dim in (-2, -1):
            length = image.shape[dim] - taps + 1
            total = image.narrow(dim, 0, length) * window[0]
            for start, weight in enumerate(window[1:], 1):
                total.add_(image.narrow(dim, start, length), alpha=weight)
            image = total
        return image

    rows, sums = x.shape[-2] - taps + 1, 0.0
    for top in range(0, rows, _STRIP_ROWS):
        a, b = (image[..., top : top + _STRIP_ROWS + taps - 1, :] for image in (x, y))
        mean_a, mean_b, mean_squares, mean_product = blur(a), blur(b), blur(a * a + b * b), blur(a * b)
        squares, product = mean_a**2 + mean_b**2, mean_a * mean_b
        luminance = (2 * product + 0.01**2) / (squares + 0.01**2)
        contrast = (2 * (mean_product - product) + 0.03**2) / (mean_squares - squares + 0.03**2)
        sums = sums + (luminance * contrast).flatten(1).sum(1, dtype=torch.float64)
    count = x.shape[1] * rows * (x.shape[-1] - taps + 1)
    return (sums / count).to(x.dtype)


def psnr_ssim_rgb(sr: Tensor, hr: Tensor) -> tuple[float, float]:
    """Return PSNR in dB and SSIM of one image (1, 3, H, W) uint8: RGB, every pixel."""
    sr, hr = images.uint8_to_unit(sr), images.uint8_to_unit(hr)
    return psnr(sr, hr).item(), ssim(sr, hr).item()


def rgb_to_y(image: Tensor) -> Tensor:
    """Map RGB (N, 3, H, W) in [0, 1] to BT.601 studio-swing luma (N, 1, H, W), of 255: 16/255 to 235/255."""
    weights = image.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    return ((image * weights).sum(1, keepdim=True) + 16) / 255


def crop_border(image: Tensor, border: int) -> Tensor:
    """Leave out `border` pixels on every side of (N, C, H, W)."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr_ssim_y(sr: Tensor, hr: Tensor, upscale: int) -> tuple[Tensor, Tensor]:
    """Return Y-PSNR in dB and Y-SSIM of each image by the papers' protocol: a border of `upscale` pixels left out.

    `sr` and `hr` are (N, 3, H, W) in [0, 1], already of 8-bit precision, with sides that are multiples of the scale.
    """
    sr, hr = (crop_border(rgb_to_y(image.cpu().double()), upscale) for image in (sr, hr))
    return psnr(sr, hr), ssim(sr, hr)


LPIPS_LEAST_SIDE = 32  # pixels, below which AlexNet has no features


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018) by the `lpips` package, version 0.1 on AlexNet; lower is nearer.

    Args:
        download: get AlexNet's ImageNet weights where they are not in PyTorch's hub folder yet.
        random_backbone: use an untrained AlexNet; its distances mean nothing.

    Raises:
        ValueError: the package is not installed, or AlexNet's weights are not there and cannot be downloaded.
    """

    def __init__(self, download: bool = True, random_backbone: bool = False):
        super().__init__()
        if importlib.util.find_spec("lpips") is None:
            raise cli.UserError("LPIPS is not measured: the package is missing (pip install lpips)")
        weights = compat.import_torchvision().models.AlexNet_Weights.IMAGENET1K_V1.url
        if not download and not random_backbone and not hub_path(weights).exists():
            missing = "AlexNet's ImageNet weights are not here; test_benchmark.py downloads them"
            raise cli.UserError(f"LPIPS is not measured: {missing}")
        import lpips

        try:
            with compat.network_timeout(30), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it names torchvision's weights in the old way
                self.network = lpips.LPIPS(net="alex", pnet_rand=random_backbone, verbose=False)
        except (OSError, RuntimeError) as error:
            reason = f"AlexNet's ImageNet weights cannot be downloaded ({error})"
            raise cli.UserError(f"LPIPS is not measured: {reason}") from error
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distance (N,) of images (N, 3, H, W) in [-1, 1], at least 32x32."""
        return self.network(sr, hr).flatten()
