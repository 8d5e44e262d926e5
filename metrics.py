"""PSNR and SSIM, on RGB and (as in the super-resolution papers) on the Y channel; LPIPS.

All are computed without TF32 and outside autocast, whatever the precision of the run.
"""

import importlib.util
import warnings

import torch
from torch import Tensor, nn

from utils import cli, compat, images
from utils.device import true_fp32

LARGEST_PSNR = 100.0
LPIPS_LEAST_SIDE = 32  # pixels; AlexNet cannot take smaller images


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the PSNR in dB of each image (N,), from images (N, C, H, W) in [0, 1].

    It is capped at 100 dB, so that a pair of equal images does not make the mean over many images infinite.
    """
    mse = (sr - hr).square().flatten(1).mean(1)
    return (-10 * torch.log10(mse)).clamp(max=LARGEST_PSNR)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the SSIM of each image (N,), from images (N, C, H, W) in [0, 1] (Wang et al., 2004), averaged over channels.

    The Gaussian window has a sigma of 1.5 and 11 taps, or fewer if the image is smaller than 11 pixels. It is applied as a
    weighted sum of shifted images instead of a convolution, so that no device rounds it to TF32, and in strips of rows that
    stay in the processor's cache, which is ten times faster on a CPU.
    """
    taps = min(11, *((side - 1) // 2 * 2 + 1 for side in sr.shape[-2:]))
    window = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).tolist()
    rows, columns = (side - taps + 1 for side in sr.shape[-2:])
    strip_rows = 48 if sr.device.type == "cpu" else 1024
    sums = []
    for top in range(0, rows, strip_rows):
        strips = (image[..., top : top + strip_rows + taps - 1, :] for image in (sr, hr))
        sums.append(_ssim_map(*strips, window).flatten(1).sum(1))
    return torch.stack(sums).sum(0) / (sr.shape[1] * rows * columns)


def _ssim_map(x: Tensor, y: Tensor, window: list[float]) -> Tensor:
    mean_x, mean_y, mean_squares, mean_product = (_blur(image, window) for image in (x, y, x * x + y * y, x * y))
    squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
    luminance = (2 * product + 0.01**2) / (squares + 0.01**2)
    contrast = (2 * (mean_product - product) + 0.03**2) / (mean_squares - squares + 0.03**2)
    return luminance * contrast


def _blur(image: Tensor, window: list[float]) -> Tensor:
    """Apply a window to the rows and columns of (N, C, H, W), without padding."""
    for dim in (-2, -1):
        length = image.shape[dim] - len(window) + 1
        total = image.narrow(dim, 0, length) * window[0]
        for start, weight in enumerate(window[1:], 1):
            total.add_(image.narrow(dim, start, length), alpha=weight)
        image = total
    return image


def psnr_ssim_rgb(sr: Tensor, hr: Tensor) -> tuple[float, float]:
    """Return the PSNR in dB and the SSIM of one image (1, 3, H, W) uint8, on RGB and over every pixel."""
    sr, hr = images.uint8_to_unit(sr), images.uint8_to_unit(hr)
    return psnr(sr, hr).item(), ssim(sr, hr).item()


def rgb_to_y(image: Tensor) -> Tensor:
    """Map RGB (N, 3, H, W) in [0, 1] to BT.601 studio-swing luma (N, 1, H, W) in [16/255, 235/255]."""
    weights = image.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    return ((image * weights).sum(1, keepdim=True) + 16) / 255


def crop_border(image: Tensor, border: int) -> Tensor:
    """Leave out `border` pixels on every side of (N, C, H, W)."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr_ssim_y(sr: Tensor, hr: Tensor, upscale: int) -> tuple[Tensor, Tensor]:
    """Return Y-PSNR in dB and Y-SSIM of each image by the papers' protocol, which leaves out a border of `upscale` pixels.

    `sr` and `hr` are (N, 3, H, W) in [0, 1], already of 8-bit precision, with sides that are multiples of the scale.
    """
    sr, hr = (crop_border(rgb_to_y(image.cpu().double()), upscale) for image in (sr, hr))
    return psnr(sr, hr), ssim(sr, hr)


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018) from the `lpips` package, version 0.1 on AlexNet; lower is better.

    AlexNet's ImageNet weights are downloaded to PyTorch's hub folder if they are not there yet.

    Args:
        random_backbone: use an untrained AlexNet, whose distances are meaningless.

    Raises:
        UserError: the package is not installed, or AlexNet's weights cannot be downloaded.
    """

    def __init__(self, random_backbone: bool = False):
        super().__init__()
        if importlib.util.find_spec("lpips") is None:
            raise cli.UserError("LPIPS cannot be measured: its package is missing; pip install lpips, or leave out --lpips")
        compat.import_torchvision()
        import lpips

        try:
            with compat.network_timeout(30), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the package names torchvision's weights in a deprecated way
                self.network = lpips.LPIPS(net="alex", pnet_rand=random_backbone, verbose=False)
        except (OSError, RuntimeError) as error:
            raise cli.UserError(
                f"LPIPS cannot be measured: AlexNet's ImageNet weights could not be downloaded or read ({error}); "
                f"put them in {torch.hub.get_dir()}/checkpoints, or leave out --lpips"
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distance (N,) of images (N, 3, H, W) in [-1, 1], at least 32x32."""
        with true_fp32(sr.device):
            return self.network(sr, hr).flatten()
