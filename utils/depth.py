"""Pictures of 16 bits per channel, which Pillow reads in gray only, and writes hardly at all.

OpenCV decodes colour. PNG and TIFF are written here, with whatever metadata Pillow would write.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags

from utils import decoding
from utils.metadata import take_orientation

WHITE = 65_535
FORMATS = ("PNG", "TIFF")  # that can hold 16 bits per channel
_ROWS = 64  # converted at a time, to save memory
_STRIP_BYTES = 2**26  # of a TIFF
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP = 2  # each byte of a PNG less the one above it
_UNASSOCIATED_ALPHA = 2
_BIG_TIFF = b"II+\0\x08\0\0\0" + bytes(8)


# --- reading ------------------------------------------------------------------------------------


def read(image: Image.Image, bits: int, path: str | Path) -> decoding.Pixels | None:
    """Return the 16-bit pixels of a picture that Pillow has decoded, upright by its orientation.

    Args:
        image: of `decoding.loaded`.
        bits: of `decoding.bits_per_channel`.
        path: its file.

    Returns:
        None if it has only 8 bits, or if its colours have to be converted, which is done in 8 bits.

    Raises:
        UserError: a value is not finite.
    """
    alpha = None
    notes: tuple[str, ...] = ()
    if decoding.is_deep_gray(image):
        levels, alpha, notes = decoding.gray_levels(image, WHITE)
        rgb = np.repeat(levels[:, :, None], 3, axis=2)
    else:
        values = _colour_values(image, path) if bits == 16 else None
        if values is None:
            return None
        rgb = values[..., :3]
        alpha = values[..., 3] if values.shape[2] == 4 else None

    # Colours
    profile = image.info.get("icc_profile") or b""
    space = decoding.colour_space(profile)
    gray = decoding.is_gray(rgb)
    if gray and space in ("GRAY", "RGB"):
        tones = decoding.tones(profile, "L" if space == "GRAY" else "RGB")
        if not np.array_equal(tones, np.arange(256)):
            return None

    kept_profile = profile if space == "RGB" and not gray else None
    return decoding.upright(decoding.Pixels(rgb, alpha, kept_profile, notes), image)


def _colour_values(image: Image.Image, path: str | Path) -> np.ndarray | None:
    """Return the values (H, W, 3 or 4) uint16 of a file; None unless they are what Pillow read."""
    if image.mode not in ("LA", "RGB", "RGBA"):
        return None
    import cv2  # a tenth of a second

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    content = bytearray(Path(path).read_bytes())
    # Pillow has turned a TIFF, and OpenCV would, but not in all ways
    orientation = take_orientation(content) if image.format == "TIFF" else 1
    try:
        values: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        return None
    values = decoding.turned(values[..., [2, 1, 0, 3][: values.shape[2]]], orientation)
    # Pillow keeps the upper 8 bits
    seen = np.asarray(image.convert("RGB" if image.mode == "RGB" else "RGBA"))
    return values if np.array_equal(values >> 8, seen) else None


def to_8_bits(levels: np.ndarray) -> np.ndarray:
    """Round uint16 levels to the nearest of uint8."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


# --- writing ------------------------------------------------------------------------------------


def write(
    file: IO[bytes],
    file_format: str,
    rgb: np.ndarray,
    alpha: np.ndarray | None,
    gray: bool,
    options: dict[str, Any],
) -> None:
    """Write a picture with 16 bits per channel.

    Args:
        file: where to.
        file_format: one of `FORMATS`.
        rgb: (H, W, 3) uint16.
        alpha: (H, W) uint16, or None.
        gray: whether to write one channel for the three, if the format allows it.
        options: what `Image.save` would be given: `icc_profile`, `dpi`, `exif` and `pnginfo` or
            `tiffinfo`.
    """
    if file_format == "TIFF" and alpha is not None:
        gray = False  # Pillow and what is built on it cannot open gray with alpha
    height, width = rgb.shape[:2]
    channels = (1 if gray else 3) + (alpha is not None)
    write_format = _write_png if file_format == "PNG" else _write_tiff
    write_format(file, (height, width, channels), _blocks(rgb, alpha, gray), options)


def _blocks(rgb: np.ndarray, alpha: np.ndarray | None, gray: bool) -> Iterator[np.ndarray]:
    """Yield a picture's values (rows, W, channels) uint16, some rows at a time."""
    for top in range(0, len(rgb), _ROWS):
        block = rgb[top : top + _ROWS, :, : 1 if gray else 3]
        if alpha is not None:
            block = np.concatenate([block, alpha[top : top + _ROWS, :, None]], axis=2)
        yield block


def _write_png(
    file: IO[bytes],
    shape: tuple[int, int, int],
    blocks: Iterator[np.ndarray],
    options: dict[str, Any],
) -> None:
    height, width, channels = shape
    # The chunks that Pillow would write for a picture of one pixel, but other dimensions and pixels
    mode = ("L", "LA", "RGB", "RGBA")[channels - 1]
    file.write(_PNG_SIGNATURE)
    for name, content, _checksum in PngImagePlugin.getchunks(Image.new(mode, (1, 1)), **options):
        if name == b"IHDR":
            size_and_depth = struct.pack(">IIB", width, height, 16)
            PngImagePlugin.putchunk(file, name, size_and_depth + content[len(size_and_depth) :])
        elif name == b"IDAT":
            for compressed in _compressed(blocks):
                PngImagePlugin.putchunk(file, name, compressed)
        else:
            PngImagePlugin.putchunk(file, name, content)


def _compressed(blocks: Iterator[np.ndarray]) -> Iterator[bytes]:
    """Yield the compressed content of a PNG's IDAT chunks."""
    compressor = zlib.compressobj()
    last: np.ndarray | int = 0
    for block in blocks:
        rows = block.astype(">u2").view(np.uint8).reshape(len(block), -1)
        above = np.roll(rows, 1, axis=0)
        above[0] = last
        last = rows[-1]
        filters = np.full((len(rows), 1), _FILTER_UP, np.uint8)
        yield compressor.compress(np.hstack([filters, rows - above]).tobytes())
    yield compressor.flush()


def _write_tiff(
    file: IO[bytes],
    shape: tuple[int, int, int],
    blocks: Iterator[np.ndarray],
    options: dict[str, Any],
) -> None:
    height, width, channels = shape
    row_bytes = 2 * channels * width
    is_big = options.get("big_tiff", False)
    tags = TiffImagePlugin.ImageFileDirectory_v2(*((_BIG_TIFF,) if is_big else ()))

    # Metadata
    given = options["tiffinfo"]
    for tag in given:
        tags[tag] = given[tag]
        tags.tagtype[tag] = given.tagtype[tag]
    if "icc_profile" in options:
        tags[TiffImagePlugin.ICCPROFILE] = options["icc_profile"]
    if "dpi" in options:
        tags[TiffImagePlugin.RESOLUTION_UNIT] = 2  # inches
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = options["dpi"]

    # Layout
    tags[TiffImagePlugin.IMAGEWIDTH] = width
    tags[TiffImagePlugin.IMAGELENGTH] = height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (16,) * channels
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    tags[TiffImagePlugin.COMPRESSION] = 1  # none
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2 if channels >= 3 else 1  # RGB or gray
    if channels in (2, 4):
        tags[TiffImagePlugin.EXTRASAMPLES] = _UNASSOCIATED_ALPHA
    rows_per_strip = max(1, _STRIP_BYTES // row_bytes)
    tops = range(0, height, rows_per_strip)
    sizes = [row_bytes * min(rows_per_strip, height - top) for top in tops]
    tags[TiffImagePlugin.ROWSPERSTRIP] = rows_per_strip
    for tag, values in (
        (TiffImagePlugin.STRIPBYTECOUNTS, sizes),
        (TiffImagePlugin.STRIPOFFSETS, [row_bytes * top for top in tops]),  # from the first strip
    ):
        tags.tagtype[tag] = TiffTags.LONG8 if is_big else TiffTags.LONG
        tags[tag] = tuple(values)

    # Write
    tags.save(file)
    for block in blocks:
        file.write(block.astype("<u2").tobytes())
