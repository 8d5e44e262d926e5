"""PSNR and SSIM, on RGB and (as in the super-resolution papers) on the Y channel, and what they cannot see.

PSNR and SSIM prefer a soft image to one with texture. `beyond_psnr` therefore measures texture (fine detail, colour noise, a
grid) and the distance between the features of networks trained on ImageNet.
All metrics are computed without TF32 and outside autocast, whatever the precision of the run.
"""

import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from generator_loss_functions import SqueezeNetFeatures
from utils import cli, images, pretrained
from utils.device import true_fp32

LARGEST_PSNR = 100.0
LARGEST_PART = 2048  # pixels; comparing features of 2048x2048 pixels takes 2.4 GB
LEAST_DETAIL = 0.01 / 255  # an image with less is flat, and a share of it would be rounding noise

# BT.601: Y, Cb and Cr of (R, G, B), in 255ths, less their offsets
_YCC = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))

# --- PSNR and SSIM ------------------------------------------------------------------------------------------------


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
    sums = []
    for top in range(0, rows, strip_rows := _strip_rows(sr.device)):
        strips = (image[..., top : top + strip_rows + taps - 1, :] for image in (sr, hr))
        sums.append(_ssim_map(*strips, window).flatten(1).sum(1))
    return torch.stack(sums).sum(0) / (sr.shape[1] * rows * columns)


def _strip_rows(device: torch.device) -> int:
    return 48 if device.type == "cpu" else 1024


def _ssim_map(x: Tensor, y: Tensor, window: list[float]) -> Tensor:
    mean_x, mean_y, mean_squares, mean_product = (
        _blur(image, window) for image in (x, y, x * x + y * y, x * y)
    )
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
    weights = image.new_tensor(_YCC[0]).view(1, 3, 1, 1)
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


# --- what PSNR cannot see -----------------------------------------------------------------------------------------


def beyond_psnr(sr: Tensor, hr: Tensor, upscale: int, networks: nn.ModuleDict) -> dict[str, float]:
    """Return what PSNR cannot see of one image (1, 3, H, W) uint8, by CSV column: `texture`, and a distance per network.

    Args:
        networks: of `open_networks`; one whose `least_side` is larger than the image is left out.
    """
    sr, hr, least = images.uint8_to_unit(sr), images.uint8_to_unit(hr), min(hr.shape[-2:])
    distances = {
        name: network(sr, hr).item()
        for name, network in networks.items()
        if least >= network.least_side
    }
    return distances | texture(sr, hr, upscale)


def texture(sr: Tensor, hr: Tensor, upscale: int) -> dict[str, float]:
    """Return three measures of an image's texture, by CSV column. Fine detail is what a Gaussian blur (sigma 1.5) removes.

    * Detail: mean magnitude of SR's fine luma detail as a share of HR's. 1 is as much as the original has; more is noise or
      ringing.
    * Colour: the same for chroma. A value far above Detail means coloured noise.
    * Grid: RMS, in levels of 255, of what repeats every `upscale` pixels in SR's fine detail where HR is flat. Photographs
      have about 0.05; a grid is visible from about 0.4.

    If HR is flat everywhere, Detail and Colour are left out.

    Args:
        sr, hr: image (1, 3, H, W) in [0, 1], with sides that are multiples of the scale.
    """
    sr, hr = _fine_detail(sr), _fine_detail(hr)
    (luma, *chroma), (hr_luma, *hr_chroma) = (
        detail.abs().mean((0, 2, 3)).tolist() for detail in (sr, hr)
    )
    values = {}
    if hr_luma >= LEAST_DETAIL:
        # A tenth of the luma detail is added so that gray images have a value too.
        values = {
            "Detail": luma / hr_luma,
            "Colour": sum(chroma) / (sum(hr_chroma) + 0.1 * hr_luma),
        }
    return values | {"Grid": 255 * _grid(sr[:, :1], hr[:, :1], upscale).item()}


def _fine_detail(image: Tensor) -> Tensor:
    """Return Y, Cb and Cr of an RGB image less their blurred copies, (1, 3, H, W)."""
    red, green, blue = image.unbind(1)
    planes = torch.stack([(r * red + g * green + b * blue) / 255 for r, g, b in _YCC], 1)
    window = torch.exp(-(torch.arange(-6, 7) ** 2) / (2 * 1.5**2))  # four sigmas on either side
    return planes.sub_(_smoothed(planes, (window / window.sum()).tolist()))


def _grid(sr: Tensor, hr: Tensor, upscale: int) -> Tensor:
    """Return the RMS of the repeating part of SR's fine detail in the flattest 30% of HR.

    Pixels with the same row and column modulo the scale share a phase; what repeats is the mean of each phase. A pixel is as
    flat as the 9x9 pixels around it.

    Args:
        sr, hr: fine luma detail (1, 1, H, W).
    """
    busy = _smoothed(hr.abs(), [1 / 9] * 9)
    flat = busy <= busy.flatten().kthvalue(int(0.3 * (busy.numel() - 1)) + 1).values
    flat_detail = torch.where(flat, sr - sr[flat].mean(), 0)
    cells = (
        x.unflatten(3, (-1, upscale)).unflatten(2, (-1, upscale)) for x in (flat_detail, flat)
    )  # (1, 1, H/s, s, W/s, s)
    sums, counts = (x.sum((2, 4)) for x in cells)
    return ((sums.square() / counts.clamp(min=1)).sum() / counts.sum()).sqrt()


def _smoothed(planes: Tensor, window: list[float]) -> Tensor:
    """Apply a window to the rows and columns of (N, C, H, W); beyond its border, the image is mirrored."""
    radius, strip_rows = len(window) // 2, _strip_rows(planes.device)
    rows, columns = (_mirrored(side, radius).to(planes.device) for side in planes.shape[-2:])
    smoothed = torch.empty_like(planes)
    for top in range(0, planes.shape[-2], strip_rows):
        strip = planes.index_select(-2, rows[top : top + strip_rows + 2 * radius])
        left, right = (
            strip.index_select(-1, beyond) for beyond in (columns[:radius], columns[-radius:])
        )
        smoothed[..., top : top + strip_rows, :] = _blur(
            torch.cat([left, strip, right], -1), window
        )
    return smoothed


def _mirrored(side: int, radius: int) -> Tensor:
    """Return the indices c b a | a b c d | d c b of a side and `radius` places beyond either end."""
    index = torch.arange(-radius, side + radius) % (2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


class FrameDifference:
    """How much consecutive frames differ, in SR and in bicubic: the mean absolute difference, in levels of 255.

    Motion makes a sharp video differ more than a soft one. On a scene that stands still, all that is left is flicker.

    Args:
        sums: sum of SR's differences, of bicubic's, and their number, to go on from; see `sums`.
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
        self._before = sr, bicubic

    @property
    def sums(self) -> list[float]:
        """The sums so far; those of several parts of a video can be added up."""
        return list(self._sums)

    def means(self) -> tuple[float, float] | None:
        """Return the mean of SR and of bicubic, or None after less than two frames."""
        sr, bicubic, count = self._sums
        return (sr / count, bicubic / count) if count else None


def open_networks(lpips: bool = False, squeezenet: str | None = None) -> nn.ModuleDict:
    """Return the network of Distance, if there are weights for it, and that of LPIPS, if wanted, by CSV column.

    Args:
        squeezenet: weights for Distance: `imagenet` (torchvision's, downloaded if missing) or a file; None: torchvision's if
            they are in PyTorch's hub folder already, else no Distance.

    Raises:
        UserError: the weights cannot be read or downloaded, or the package of LPIPS is not installed.
        OSError: the file cannot be opened.
    """
    networks = nn.ModuleDict()
    if squeezenet is None and _has_squeezenet():
        squeezenet = "imagenet"
    if squeezenet is not None:
        networks["Distance"] = FeatureDistance(pretrained.state_dict("squeezenet", squeezenet))
    if lpips:
        networks["LPIPS"] = LPIPS()
    return networks


def _has_squeezenet() -> bool:
    checkpoints = Path(torch.hub.get_dir(), "checkpoints")
    if not any(
        checkpoints.glob("squeezenet*")
    ):  # spares importing torchvision, which takes a second
        return False
    return not pretrained.missing_download("squeezenet", "imagenet")


class FeatureDistance(nn.Module):
    """Distance between ImageNet features of SqueezeNet: LPIPS without its calibration; lower is nearer.

    Args:
        state_dict: SqueezeNet's, of `pretrained.state_dict`.
    """

    least_side = pretrained.LEAST_SIDES["squeezenet"]

    def __init__(self, state_dict: dict[str, Tensor]):
        super().__init__()
        self.network = SqueezeNetFeatures(state_dict)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distance (N,) of images (N, 3, H, W) in [0, 1], at least 21x21.

        Images larger than 2048x2048 are compared in parts, to bound the memory; this changes the distance by about 1%.
        """
        with true_fp32(sr.device):
            parts = zip(_parts(sr), _parts(hr), strict=True)
            return (
                sum(self.network.distance(x, y) * x[0, 0].numel() for x, y in parts)
                / sr[0, 0].numel()
            )


def _parts(image: Tensor) -> list[Tensor]:
    """Split (N, C, H, W) into parts of nearly equal size, with sides of at most `LARGEST_PART`."""
    counts = [-(-side // LARGEST_PART) for side in image.shape[-2:]]
    return [
        part
        for rows in image.tensor_split(counts[0], 2)
        for part in rows.tensor_split(counts[1], 3)
    ]


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018) from the `lpips` package, version 0.1 on AlexNet; lower is better.

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
                "LPIPS cannot be measured: its package is missing; pip install lpips, or leave out --lpips"
            )
        pretrained.import_torchvision()
        import lpips

        try:
            with pretrained.network_timeout(30), warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # the package names torchvision's weights in a deprecated way
                self.network = lpips.LPIPS(net="alex", pnet_rand=random_backbone, verbose=False)
        except (OSError, RuntimeError) as error:
            raise cli.UserError(
                f"LPIPS cannot be measured: AlexNet's ImageNet weights could not be downloaded or read ({error}); "
                f"put them in {torch.hub.get_dir()}/checkpoints, or leave out --lpips"
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distance (N,) of images (N, 3, H, W) in [0, 1], at least 32x32."""
        with true_fp32(sr.device):
            return self.network(sr, hr, normalize=True).flatten()
