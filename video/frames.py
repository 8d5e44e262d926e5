"""Convert video frames to upright RGB and back, by their own colour coding.

Needs PyAV, which brings FFmpeg's libraries: pip install av.
"""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import cli

if TYPE_CHECKING:
    import av

# Codes of H.273: matrices between RGB and YCbCr
BT709 = 1
UNSPECIFIED = 2
BT601 = 6
_MATRICES_OF_SWSCALE = (BT709, 4, 5, BT601, 7, 9)
_SWSCALE_CODES = {BT601: 5}  # where swscale's code differs

# Ranges of Y
LIMITED = 1  # 16 to 235
FULL = 2  # 0 to 255

_DEEP_RGB = f"rgb48{'le' if sys.byteorder == 'little' else 'be'}"


def pyav() -> Any:
    """Import PyAV.

    Raises:
        UserError: it cannot be imported.
    """
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder would print its settings
    try:
        import av
    except ImportError as error:
        raise cli.UserError(
            f"videos need PyAV, which cannot be imported ({error}); install it with: pip install av"
        ) from error
    return av


# --- colours ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Colours:
    """How pixels are coded, by the codes of H.273.

    Attributes:
        matrix: between RGB and YCbCr.
        range: of Y, `LIMITED` or `FULL`.
        primaries: the colours of pure red, green and blue.
        transfer: between linear light and RGB values.
    """

    matrix: int = BT709
    range: int = LIMITED
    primaries: int = 1
    transfer: int = 13  # sRGB


def colours_of(frame: "av.VideoFrame") -> Colours:
    """Return how to code the enlarged frame: as the frame itself, or as BT.709 if it is RGB.

    Missing tags are guessed as players do.

    Raises:
        UserError: the frame's matrix is not supported.
    """
    if _is_rgb(frame):
        return Colours(BT709, LIMITED, frame.color_primaries, frame.color_trc)

    matrix = frame.colorspace
    if matrix == UNSPECIFIED:
        matrix = BT709 if frame.height >= 720 else BT601
    if matrix not in _MATRICES_OF_SWSCALE:
        raise cli.UserError(f"its colour matrix is not supported (number {matrix} of H.273)")

    full = frame.color_range == FULL
    if not frame.color_range:
        full = frame.format.name.startswith(("yuvj", "gray"))
    return Colours(matrix, FULL if full else LIMITED, frame.color_primaries, frame.color_trc)


def to_rgb(frame: "av.VideoFrame", colours: Colours, deep: bool = False) -> np.ndarray:
    """Convert a decoded frame to (H, W, 3) uint8, or uint16 if it is to be `deep`."""
    if not _is_rgb(frame):
        frame.colorspace = colours.matrix
        frame.color_range = colours.range
    rgb = frame.reformat(
        format=_DEEP_RGB if deep else "rgb24",
        dst_color_range=FULL,
        interpolation=_accurate_scaling(),
        threads=1,
    )
    return rgb.to_ndarray()


def from_rgb(rgb: np.ndarray, pixel_format: str, colours: Colours) -> "av.VideoFrame":
    """Convert (H, W, 3) uint8 or uint16 to a frame.

    Args:
        rgb: the pixels.
        pixel_format: FFmpeg's name of a format of RGB or YCbCr.
        colours: how YCbCr is coded.
    """
    rgb_format = _DEEP_RGB if rgb.dtype == np.uint16 else "rgb24"
    frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(rgb), rgb_format)
    frame.color_range = FULL
    if pyav().VideoFormat(pixel_format).is_rgb:
        return frame.reformat(format=pixel_format, threads=1)
    return frame.reformat(
        format=pixel_format,
        dst_colorspace=_SWSCALE_CODES.get(colours.matrix, colours.matrix),
        dst_color_range=colours.range,
        interpolation=_accurate_scaling(),
        threads=1,
    )


def _is_rgb(frame: "av.VideoFrame") -> bool:
    return frame.format.is_rgb or frame.format.has_palette or frame.colorspace == 0


def _accurate_scaling() -> int:
    """Return the flags that make swscale round to the nearest and interpolate chroma."""
    flags = pyav().video.reformatter.Interpolation
    chroma = flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP
    return flags.BICUBIC | chroma | flags.ACCURATE_RND | flags.BITEXACT


def bits_of(pixel_format: str) -> int:
    """Return how many bits a channel has in a pixel format of FFmpeg."""
    components = pyav().VideoFormat(pixel_format).components
    return max(component.bits for component in components)


# --- orientation --------------------------------------------------------------------------------


def display_matrix(frame: "av.VideoFrame") -> tuple[int, ...] | None:
    """Return a, b, u, c, d of a frame's display matrix; None if it has none.

    The matrix moves pixel (x, y) to (a·x + c·y, b·x + d·y).
    """
    entries: Any = frame.side_data  # iterates over its values, though typed as a mapping
    for data in entries:
        if data.type.name == "DISPLAYMATRIX":
            return tuple(np.frombuffer(bytes(data), np.int32)[:5].tolist())
    return None


def is_sideways(matrix: tuple[int, ...] | None) -> bool:
    """Return whether a display matrix turns rows into columns."""
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])


def upright(rgb: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """Rotate and mirror (H, W, 3) by a display matrix, rounded to quarter turns."""
    if matrix is None:
        return rgb
    a, b, _, c, d = matrix
    if is_sideways(matrix):
        rgb = rgb.swapaxes(0, 1)
        a, d = c, b
    rows = -1 if d < 0 else 1
    columns = -1 if a < 0 else 1
    return np.ascontiguousarray(rgb[::rows, ::columns])
