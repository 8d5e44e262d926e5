"""PSNR and SSIM on RGB, and on the Y channel as the super-resolution papers measure."""

import torch
from pytorch_msssim import ssim as msssim_ssim
from torch import Tensor

import images


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the PSNR in dB of each image (N,), from images (N, C, H, W) in [0, 1]; infinite where they are equal."""
    mse = (sr - hr).square().flatten(1).mean(1)
    return -10 * torch.log10(mse)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the SSIM of each image (N,), from images (N, C, H, W) in [0, 1] (Wang et al., 2004).

    The Gaussian window has 11 taps and a sigma of 1.5, fewer taps where the image is smaller than 11 pixels.
    """
    # pytorch_msssim drops a dimension of one pixel: a second, equal one changes no mean.
    sr, hr = (image.expand(*image.shape[:2], *(max(2, side) for side in image.shape[2:])) for image in (sr, hr))
    taps = min(11, *((side - 1) // 2 * 2 + 1 for side in sr.shape[-2:]))
    return msssim_ssim(sr, hr, data_range=1, size_average=False, win_size=taps)


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
    sr, hr = (crop_border(rgb_to_y(image.double()), upscale) for image in (sr, hr))
    return psnr(sr, hr), ssim(sr, hr)
