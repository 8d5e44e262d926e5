"""Windows that smooth images, applied to rows and then to columns."""

import torch
from torch import Tensor


def gaussian(radius: int) -> list[float]:
    """Return the 2·radius + 1 taps of a Gaussian window with a sigma of 1.5; their sum is 1."""
    window = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * 1.5**2))
    return (window / window.sum()).tolist()


def strip_rows(device: torch.device) -> int:
    """Return how many rows of an image are best processed at once, so that caches hold them."""
    return 48 if device.type == "cpu" else 1024


def smoothed(planes: Tensor, window: list[float]) -> Tensor:
    """Apply a window to the rows and columns of (N, C, H, W), mirrored beyond its border."""
    height, width = planes.shape[-2:]
    radius = len(window) // 2
    rows_at_once = strip_rows(planes.device)
    rows = _mirrored(height, radius, planes.device)
    columns = _mirrored(width, radius, planes.device)
    result = torch.empty_like(planes)
    for top in range(0, height, rows_at_once):
        strip = planes.index_select(-2, rows[top : top + rows_at_once + 2 * radius])
        left = strip.index_select(-1, columns[:radius])
        right = strip.index_select(-1, columns[-radius:])
        padded = torch.cat([left, strip, right], -1)
        result[..., top : top + rows_at_once, :] = convolved(padded, window)
    return result


def convolved(image: Tensor, window: list[float]) -> Tensor:
    """Apply a window to the rows and columns of (N, C, H, W), without padding."""
    for dim in (-2, -1):
        length = image.shape[dim] - len(window) + 1
        total = image.narrow(dim, 0, length) * window[0]
        for start, weight in enumerate(window[1:], 1):
            total.add_(image.narrow(dim, start, length), alpha=weight)
        image = total
    return image


def _mirrored(side: int, radius: int, device: torch.device) -> Tensor:
    """Return the indices c b a | a b c d | d c b of a side and `radius` places beyond both ends."""
    index = torch.arange(-radius, side + radius, device=device) % (2 * side)
    return torch.minimum(index, 2 * side - 1 - index)
