"""The pixels of a video's frames: between 8-bit RGB and how they are coded, and upright as a player shows them.

Needs PyAV, which brings FFmpeg's libraries: pip install av.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils import cli

BT709, UNSPECIFIED, BT601 = 1, 2, 6  # matrices between RGB and YCbCr, by the codes of H.273
_KNOWN_MATRICES = (BT709, 4, 5, BT601, 7, 9)  # to swscale
_SWSCALE_CODES = {BT601: 5}
LIMITED, FULL = 1, 2  # ranges of Y: 16 to 235, or 0 to 255


def pyav() -> Any:
    """Import PyAV, or raise UserError."""
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder would print its settings
    try:
        import av
    except ImportError as error:
        raise cli.UserError(
            f"videos need PyAV, which cannot be loaded ({error}); pip install av"
        ) from error
    return av


@dataclass(frozen=True)
class Colours:
    """How pixels are coded: matrix between RGB and YCbCr, range of Y, primaries and transfer function (H.273's codes)."""

    matrix: int = BT709
    range: int = LIMITED
    primaries: int = 1
    transfer: int = 13  # sRGB


def colours_of(frame) -> Colours:
    """Return how a frame is coded; what it does not say is guessed as players do. RGB becomes BT.709.

    Raises:
        UserError: its matrix is not supported.
    """
    matrix, full = frame.colorspace, frame.color_range == FULL
    if _is_rgb(frame):
        return Colours(BT709, LIMITED, frame.color_primaries, frame.color_trc)
    if matrix == UNSPECIFIED:
        matrix = BT709 if frame.height >= 720 else BT601
    if matrix not in _KNOWN_MATRICES:
        raise cli.UserError(
            f"its colours are coded in a way that is not supported (matrix {matrix} of H.273)"
        )
    full = full or (not frame.color_range and frame.format.name.startswith(("yuvj", "gray")))
    return Colours(matrix, FULL if full else LIMITED, frame.color_primaries, frame.color_trc)


def _is_rgb(frame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette or frame.colorspace == 0


def to_rgb(frame, colours: Colours) -> np.ndarray:
    """Convert a decoded frame to an array (H, W, 3) uint8."""
    if not _is_rgb(frame):
        frame.colorspace, frame.color_range = colours.matrix, colours.range
    return frame.reformat(
        format="rgb24", dst_color_range=FULL, interpolation=_accurately(), threads=1
    ).to_ndarray()


def from_rgb(rgb: np.ndarray, pixels: str, colours: Colours) -> Any:
    """Convert an array (H, W, 3) uint8 to a frame of a pixel format: one of RGB, or of YCbCr, coded as `colours` says."""
    frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(rgb))
    frame.color_range = FULL
    if pyav().VideoFormat(pixels).is_rgb:
        return frame.reformat(format=pixels, threads=1)
    matrix, flags = _SWSCALE_CODES.get(colours.matrix, colours.matrix), _accurately()
    return frame.reformat(
        format=pixels,
        dst_colorspace=matrix,
        dst_color_range=colours.range,
        interpolation=flags,
        threads=1,
    )


def _accurately():
    """Return the flags with which swscale rounds to the nearest and interpolates chroma."""
    kind = pyav().video.reformatter.Interpolation
    return (
        kind.BICUBIC | kind.FULL_CHR_H_INT | kind.FULL_CHR_H_INP | kind.ACCURATE_RND | kind.BITEXACT
    )


def display_matrix(frame) -> tuple[int, ...] | None:
    """Return a, b, u, c, d of a frame's display matrix, which moves pixel (x, y) to (a·x + c·y, b·x + d·y)."""
    data = next(
        (bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None
    )
    return None if data is None else tuple(np.frombuffer(data, np.int32)[:5].tolist())


def is_lying(matrix: tuple[int, ...] | None) -> bool:
    """Tell whether a display matrix turns columns into rows."""
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])


def upright(rgb: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """Turn and mirror an image (H, W, 3) as a display matrix says, by the nearest quarter of a turn."""
    if matrix is None:
        return rgb
    a, b, _, c, d = matrix
    if is_lying(matrix):
        rgb, a, d = rgb.swapaxes(0, 1), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
