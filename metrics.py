"""PSNR and SSIM, on RGB and (as in the papers) on the Y channel, and what they miss.

PSNR and SSIM prefer a soft image to one with texture. `beyond_psnr` therefore measures texture
(fine detail, colour noise, a grid) and the distance between features of ImageNet networks.
All metrics are computed without TF32 and outside autocast, whatever the precision of the run.
"""

import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from generator_loss_functions import PERCEPTUAL_NETWORKS
from utils import cli, filters, images, pretrained
from utils.device import true_fp32

LARGEST_PSNR = 100.0
LARGEST_PARTS = {"squeezenet": 2048, "vgg19": 1024}  # pixels; they take 2.4 and 1.5 GB
LEAST_DETAIL = 0.01 / 255  # an image with less is flat, and a share of it would be rounding noise

# BT.601: the weights of R, G and B in Y, Cb and Cr, in 255ths and without the offsets
_YCC = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))

# --- PSNR and SSIM ------------------------------------------------------------------------------


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the PSNR in dB of each image (N,), from images (N, C, H, W) in [0, 1].

    It is capped at 100 dB, so that one pair of equal images does not make a mean infinite.
    """
    mse = (sr - hr).square().flatten(1).mean(1)
    return (-10 * torch.log10(mse)).clamp(max=LARGEST_PSNR)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Return the SSIM of each image (N,), from images (N, C, H, W) in [0, 1], mean over channels.

    The Gaussian window has a sigma of 1.5 and 11 taps, or fewer if the image is smaller than 11
    pixels (Wang et al., 2004). It is applied as a weighted sum of shifted images instead of a
    convolution, so that no device rounds it to TF32, and in strips of rows that stay in the
    processor's cache, which is ten times faster on a CPU.
    """
    channels, height, width = sr.shape[1:]
    largest_odd = (min(height, width) - 1) // 2 * 2 + 1
    taps = min(11, largest_odd)
    window = filters.gaussian(taps // 2)
    rows = height - taps + 1
    columns = width - taps + 1
    strip_rows = filters.strip_rows(sr.device)
    sums = []
    for top in range(0, rows, strip_rows):
        strip = slice(top, top + strip_rows + taps - 1)
        ssim_map = _ssim_map(sr[..., strip, :], hr[..., strip, :], window)
        sums.append(ssim_map.flatten(1).sum(1))
    return torch.stack(sums).sum(0) / (channels * rows * columns)


def _ssim_map(x: Tensor, y: Tensor, window: list[float]) -> Tensor:
    mean_x = filters.convolved(x, window)
    mean_y = filters.convolved(y, window)
    mean_squares = filters.convolved(x * x + y * y, window)
    mean_product = filters.convolved(x * y, window)
    squares = mean_x**2 + mean_y**2
    product = mean_x * mean_y
    luminance = (2 * product + 0.01**2) / (squares + 0.01**2)
    contrast = (2 * (mean_product - product) + 0.03**2) / (mean_squares - squares + 0.03**2)
    return luminance * contrast


def psnr_ssim_rgb(sr: Tensor, hr: Tensor) -> tuple[float, float]:
    """Return the PSNR in dB and the SSIM of an image (1, 3, H, W) uint8, on RGB and every pixel."""
    sr = images.uint8_to_unit(sr)
    hr = images.uint8_to_unit(hr)
    return psnr(sr, hr).item(), ssim(sr, hr).item()


def rgb_to_y(image: Tensor) -> Tensor:
    """Map RGB (N, 3, H, W) in [0, 1] to BT.601 luma (N, 1, H, W) in [16/255, 235/255]."""
    weights = image.new_tensor(_YCC[0]).view(1, 3, 1, 1)
    return ((image * weights).sum(1, keepdim=True) + 16) / 255


def crop_border(image: Tensor, border: int) -> Tensor:
    """Leave out `border` pixels on every side of (N, C, H, W)."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr_ssim_y(sr: Tensor, hr: Tensor, upscale: int) -> tuple[Tensor, Tensor]:
    """Return the Y-PSNR in dB and the Y-SSIM of each image (N,), by the papers' protocol.

    A border of `upscale` pixels is left out.

    Args:
        sr: (N, 3, H, W) in [0, 1], already of 8-bit precision, with sides that are multiples of
            the scale.
        hr: the same.
    """
    sr_y = crop_border(rgb_to_y(sr.cpu().double()), upscale)
    hr_y = crop_border(rgb_to_y(hr.cpu().double()), upscale)
    return psnr(sr_y, hr_y), ssim(sr_y, hr_y)


# --- what PSNR misses ---------------------------------------------------------------------------


def beyond_psnr(sr: Tensor, hr: Tensor, upscale: int, networks: nn.ModuleDict) -> dict[str, float]:
    """Return what PSNR misses in an image (1, 3, H, W) uint8, by CSV column.

    That is the distance by each network and the figures of `texture`.

    Args:
        networks: of `distance_networks`; one that cannot take so small an image is left out.
    """
    sr = images.uint8_to_unit(sr)
    hr = images.uint8_to_unit(hr)
    values = {}
    for name, network in networks.items():
        assert isinstance(network, DistanceNetwork)
        if min(hr.shape[-2:]) >= network.least_side:
            values[name] = network(sr, hr).item()
    return values | texture(sr, hr, upscale)


class DistanceNetwork(nn.Module):
    """A network that measures how far SR is from HR; lower is nearer.

    Its `forward` maps SR and HR, (N, 3, H, W) in [0, 1] each, to distances (N,).
    """

    least_side: int  # of the smallest image that it can take, in pixels


DISTANCE_COLUMNS = {"squeezenet": "Distance", "vgg19": "Distance_VGG19"}  # of the CSVs


def distance_networks(
    lpips: bool = False, weights: Sequence[pretrained.Pretrained] = ()
) -> nn.ModuleDict:
    """Return the networks that measure distances, by CSV column.

    Args:
        lpips: whether to measure LPIPS.
        weights: of SqueezeNet, of VGG19 or of both. Without SqueezeNet's, torchvision's are used if
            they are in PyTorch's hub folder already.

    Raises:
        UserError: weights cannot be read, or the package of LPIPS is not installed.
    """
    networks = nn.ModuleDict()
    by_network = {one.network: one for one in weights}
    if "squeezenet" not in by_network and _has_squeezenet():
        by_network["squeezenet"] = pretrained.load("squeezenet", "imagenet")
    for network, column in DISTANCE_COLUMNS.items():
        if network in by_network:
            networks[column] = FeatureDistance(by_network[network])
    if lpips:
        networks["LPIPS"] = LPIPS()
    return networks


def _has_squeezenet() -> bool:
    # Look for any version first: importing torchvision, which knows the right name, takes a second
    checkpoints = Path(torch.hub.get_dir(), "checkpoints")
    if not any(checkpoints.glob("squeezenet*")):
        return False
    return not pretrained.missing_download("squeezenet", "imagenet")


class FeatureDistance(DistanceNetwork):
    """Distance between the ImageNet features of a perceptual network.

    With SqueezeNet, it is LPIPS without its calibration.
    """

    def __init__(self, weights: pretrained.Pretrained):
        super().__init__()
        self.network = PERCEPTUAL_NETWORKS[weights.network](weights.state_dict)
        self.least_side = pretrained.LEAST_SIDES[weights.network]
        self.largest_part = LARGEST_PARTS[weights.network]

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distances (N,) of images (N, 3, H, W) in [0, 1], of `least_side` at least.

        Images larger than `LARGEST_PARTS` are compared in parts to bound the memory, which changes
        the distance by about 1%.
        """
        sr_parts = _parts(sr, self.largest_part)
        hr_parts = _parts(hr, self.largest_part)
        with true_fp32(sr.device):
            total = torch.zeros(len(sr), device=sr.device)
            for sr_part, hr_part in zip(sr_parts, hr_parts, strict=True):
                pixels = sr_part[0, 0].numel()
                total = total + self.network.measure(sr_part, hr_part) * pixels
            return total / sr[0, 0].numel()


def _parts(image: Tensor, largest: int) -> list[Tensor]:
    """Split (N, C, H, W) into parts of nearly equal size, with sides of at most `largest`."""
    height, width = image.shape[-2:]
    parts: list[Tensor] = []
    for rows in image.tensor_split(-(-height // largest), 2):
        parts += rows.tensor_split(-(-width // largest), 3)
    return parts


class LPIPS(DistanceNetwork):
    """Learned perceptual distance (Zhang et al., 2018): version 0.1 on AlexNet, of package `lpips`.

    AlexNet's ImageNet weights are downloaded to PyTorch's hub folder if they are not there yet.

    Args:
        random_backbone: use an untrained AlexNet, whose distances are meaningless.

    Raises:
        UserError: the package is not installed, or AlexNet's weights cannot be downloaded.
    """

    least_side = 32  # AlexNet cannot take smaller images

    def __init__(self, random_backbone: bool = False):
        super().__init__()
        if importlib.util.find_spec("lpips") is None:
            raise cli.UserError(
                "LPIPS cannot be measured: its package is missing; pip install lpips, or leave out "
                "--lpips"
            )
        pretrained.import_torchvision()
        import lpips

        try:
            with pretrained.network_timeout(30), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the way lpips names torchvision's weights
                self.network = lpips.LPIPS(net="alex", pnet_rand=random_backbone, verbose=False)
        except (OSError, RuntimeError) as error:
            raise cli.UserError(
                "LPIPS cannot be measured: AlexNet's ImageNet weights could not be downloaded or "
                f"read ({error}); put them in {torch.hub.get_dir()}/checkpoints, or leave out "
                "--lpips"
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distances (N,) of images (N, 3, H, W) in [0, 1], at least 32x32."""
        with true_fp32(sr.device):
            return self.network(sr, hr, normalize=True).flatten()


def texture(sr: Tensor, hr: Tensor, upscale: int) -> dict[str, float]:
    """Return three measures of an image's texture, by CSV column.

    They compare fine detail, which is what a Gaussian blur (sigma 1.5) removes.

    * Detail: mean magnitude of SR's fine luma detail as a share of HR's. 1 is as much as the
      original has; more is noise or ringing.
    * Colour: the same for chroma. A value far above Detail means coloured noise.
    * Grid: RMS, in levels of 255, of what repeats every `upscale` pixels in SR's fine detail where
      HR is flat. Photographs have about 0.05; a grid is visible from about 0.4.

    If HR is flat everywhere, Detail and Colour are left out.

    Args:
        sr: (1, 3, H, W) in [0, 1], with sides that are multiples of the scale.
        hr: the same.
    """
    sr_detail = _fine_detail(sr)
    hr_detail = _fine_detail(hr)
    sr_luma, *sr_chroma = sr_detail.abs().mean((0, 2, 3)).tolist()
    hr_luma, *hr_chroma = hr_detail.abs().mean((0, 2, 3)).tolist()
    values = {}
    if hr_luma >= LEAST_DETAIL:
        values["Detail"] = sr_luma / hr_luma
        # A tenth of the luma detail is added so that gray images have a value too
        values["Colour"] = sum(sr_chroma) / (sum(hr_chroma) + 0.1 * hr_luma)
    if upscale > 1:
        values["Grid"] = 255 * _grid(sr_detail[:, :1], hr_detail[:, :1], upscale).item()
    return values


def _fine_detail(image: Tensor) -> Tensor:
    """Return Y, Cb and Cr of an RGB image less their blurred copies, (1, 3, H, W)."""
    red, green, blue = image.unbind(1)
    planes = torch.stack([(r * red + g * green + b * blue) / 255 for r, g, b in _YCC], 1)
    return planes.sub_(filters.smoothed(planes, filters.gaussian(6)))  # four sigmas on either side


def _grid(sr_detail: Tensor, hr_detail: Tensor, upscale: int) -> Tensor:
    """Return the RMS of the repeating part of SR's fine detail in the flattest 30% of HR.

    Pixels with the same row and column modulo the scale share a phase; what repeats is the mean of
    each phase. How flat a pixel is depends on the 9x9 pixels around it.

    Args:
        sr_detail: fine luma detail (1, 1, H, W).
        hr_detail: the same.
        upscale: the scale.
    """

    def sum_by_phase(x: Tensor) -> Tensor:
        cells = x.unflatten(3, (-1, upscale)).unflatten(2, (-1, upscale))
        return cells.sum((2, 4))  # (1, 1, H/s, s, W/s, s) -> (1, 1, s, s)

    busy = filters.smoothed(hr_detail.abs(), [1 / 9] * 9)
    thirty_percent = int(0.3 * (busy.numel() - 1)) + 1
    flat = busy <= busy.flatten().kthvalue(thirty_percent).values
    # Not sr_detail[flat].mean(): to learn how many there are, the CPU would wait for a GPU
    mean = torch.where(flat, sr_detail, 0).sum() / flat.sum()
    flat_detail = torch.where(flat, sr_detail - mean, 0)
    sums = sum_by_phase(flat_detail)
    counts = sum_by_phase(flat)
    return ((sums.square() / counts.clamp(min=1)).sum() / counts.sum()).sqrt()


class FrameDifference:
    """How much consecutive frames differ, in SR and in bicubic.

    It is the mean absolute difference, in levels of 255. Motion makes a sharp video differ more
    than a soft one; in a scene that stands still, all that is left is flicker.

    Args:
        sums: the sum of SR's differences, that of bicubic's, and their number, to continue from.
    """

    def __init__(self, sums: Iterable[float] = (0.0, 0.0, 0)):
        self._sums = list(sums)
        self._before: tuple[Tensor, Tensor] | None = None

    def add(self, sr: Tensor, bicubic: Tensor) -> None:
        """Take in the next frame (1, 3, H, W) uint8."""
        if self._before is not None:
            for index, (before, now) in enumerate(zip(self._before, (sr, bicubic), strict=True)):
                self._sums[index] += (now.short() - before.short()).abs().float().mean().item()
            self._sums[2] += 1
        self._before = (sr, bicubic)

    @classmethod
    def of_parts(cls, parts: Iterable[list[float]]) -> Self:
        """Return the difference over several parts of a video, each given by its `sums`."""
        return cls(sum(column) for column in zip((0, 0, 0), *parts, strict=True))

    @property
    def sums(self) -> list[float]:
        """The sums so far."""
        return list(self._sums)

    def means(self) -> tuple[float, float] | None:
        """Return the mean of SR and of bicubic, or None after fewer than two frames."""
        sr, bicubic, count = self._sums
        return (sr / count, bicubic / count) if count else None
