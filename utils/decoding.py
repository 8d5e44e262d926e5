"""Open picture files that may be damaged or hostile, and convert them to 8-bit RGB."""

import contextlib
import errno
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from utils import cli, plugins

# Long prompts and XMP exceed Pillow's limit of 1 MiB for a compressed text of a PNG; the limit for
# all texts together, 64 MiB, stays
PngImagePlugin.MAX_TEXT_CHUNK = 2**24

# TIFF tags
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_ORIENTATION = 274
_MAX_SAMPLE = 281
_SAMPLE_FORMAT = 339
_S_MAX_SAMPLE = 341

CLIP_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ogv", ".3gp"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
}
_END_OF_JPEG = b"\xff\xd9"
_JPEG2000_START = b"\xff\x4f\xff\x51"  # the markers SOC and SIZ
_FILLINGS = (b"\x55" * 4096, b"\xaa" * 4096)
_MARKER = re.compile(rb"\xff[^\0\xff]")

_UNSIGNED = 1
_SIGNED = 2

# Formats with a signature and a built-in decoder; EPS is missing because Pillow reads it by running
# an external program
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")


# The first bytes of pictures
_SIGNATURE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II[*+]\0|MM\0[*+]|RIFF....WEBP|"
    rb"\0\0\0\x0cjP  |\xffO\xffQ|....ftypavi[fs]",
    re.DOTALL,
)


@dataclass
class Pixels:
    """The pixels of a picture, upright.

    Attributes:
        rgb: (H, W, 3) uint8, or uint16 for one of 16 bits per channel.
        alpha: (H, W), as deep as rgb, or None for an opaque picture.
        icc_profile: ICC profile of the RGB values, or None for sRGB.
        notes: messages for the user.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    icc_profile: bytes | None
    notes: tuple[str, ...]


# --- opening ------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture file with Pillow; errors that its content raises become one-line UserErrors.

    Sets a limit of Pillow's that all threads share.

    Raises:
        OSError: the file cannot be opened or read.
        UserError: it is no picture, is damaged, or has more than `max_pixels` pixels.
    """
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        # Opening a pipe could block for ever
        raise cli.UserError(f"{path}: not a file, but a pipe, socket or device")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit_before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        announced = None
        try:
            announced = plugins.of_file(file.read(16))
            Image.init()  # loads the decoders, once
            formats = [name for name in _FORMATS if name in Image.OPEN]
            if announced is not None and announced.load():
                if announced is plugins.JXL:
                    height, width = plugins.jxl_size(file)
                    if height * width > max_pixels:
                        raise Image.DecompressionBombError
                formats.append(announced.format)
            image = Image.open(file, formats=formats)
            width, height = image.size
            if width * height > max_pixels:
                raise Image.DecompressionBombError
            yield image
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EIO:
                # The disk is at fault, not the picture
                raise OSError(error.errno, error.strerror, str(path)) from error
            if isinstance(error, Image.DecompressionBombError):
                limit = f"has more than {cli.counted(max_pixels, 'pixel')}"
                reason = f"{limit}; test_image.py takes larger images with --max-pixels"
            elif os.fstat(file.fileno()).st_size == 0:
                reason = "the file is empty"
            elif isinstance(error, Image.UnidentifiedImageError):
                reason = "not an image of a known format"
                if announced is not None and not announced.load():
                    reason = announced.advice
                if Path(path).suffix.lower() in CLIP_SUFFIXES:
                    reason += "; test_video.py enlarges clips"
            else:
                reason = f"cut short or damaged ({cli.describe(error)})"
            raise cli.UserError(f"{path}: {reason}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit_before


def has_signature(path: Path) -> bool:
    """Tell whether a file begins as a picture does; one that cannot be read does not."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe could block for ever
            return False
        with open(path, "rb") as file:
            start = file.read(16)
        plugin = plugins.of_file(start)
        return _SIGNATURE.match(start) is not None or (plugin is not None and plugin.load())
    except OSError:
        return False


def loaded(image: Image.Image, path: str | Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Decode the pixels of an opened picture; return it, and a note if its file has a damaged end.

    A JPEG that lacks only the marker at its end is whole: every viewer shows it. Pillow refuses it,
    and with the marker added, it would also take a file that lacks pixels, in whose place the
    decoder puts whatever it finds. So such a file is decoded with different bytes at its end, which
    show only where data are missing.

    Raises:
        OSError: pixels are missing.
    """
    try:
        image.load()
        return image, ()
    except OSError:
        if image.format not in ("JPEG", "MPO"):
            raise
        content = Path(path).read_bytes().rstrip(b"\xff")  # the marker's first byte may be there
        if not _has_all_scans(content):
            raise
        whole = _decoded(content + _END_OF_JPEG)
        for filling in _FILLINGS:
            other = _decoded(content + filling + _END_OF_JPEG)
            if not np.array_equal(np.asarray(whole), np.asarray(other)):
                raise
        return whole, ("the end of the file is missing, but no pixels are",)


def _has_all_scans(content: bytes) -> bool:
    """Tell whether a JPEG's scans hold every coefficient of every component to the last bit.

    Between scans, and between restart markers, a decoder skips what it does not understand, so
    filling shows nothing there. A file with restart markers therefore counts as incomplete.
    """
    missing: dict[tuple[int, int], int] = {}  # bits, by component and coefficient
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            return False
        marker = content[position + 1]
        length = int.from_bytes(content[position + 2 : position + 4])
        body = content[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == 0xDD:  # restarts
            return False
        if marker in (0xC0, 0xC1, 0xC2):  # a frame
            missing = {(number, k): 1 for number in body[6::3] for k in range(64)}
        if marker == 0xDA:  # a scan, and after its header its data up to the next marker
            if len(body) < 4:
                return False
            first, last, bits = body[-3:]
            for number in body[1 : 1 + 2 * body[0] : 2]:
                missing |= {(number, k): bits & 15 for k in range(first, last + 1)}
            following = _MARKER.search(content, position)
            position = following.start() if following else len(content)
    return bool(missing) and not any(missing.values())


def _decoded(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=["JPEG", "MPO"])
    image.load()
    return image


def read(image: Image.Image) -> Pixels:
    """Return the 8-bit pixels of a picture that is `loaded`; notes are those of `gray_levels`."""
    shallow, notes = to_8_bit(image)
    rgb, alpha, profile = to_rgb(shallow)
    return upright(Pixels(rgb, alpha, profile, notes), image)


# --- depth --------------------------------------------------------------------------------------


def bits_per_channel(image: Image.Image, path: str | Path) -> int:
    """Return the depth of an opened picture that is not decoded yet; 8 if it is unknown."""
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if image.format == "TIFF":
        return max(map(int, getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))))
    if image.format == "PNG":
        tiles = getattr(image, "tile", ())
        return 16 if any(";16" in str(tile) for tile in tiles) else 8
    if image.format == "PPM":
        return _netpbm_bits(image)
    if image.format == "JPEG2000":
        return _jpeg2000_bits(Path(path).read_bytes())
    if image.format == "AVIF":
        return _avif_bits(Path(path).read_bytes())
    if image.format == "JXL":
        return plugins.jxl_bits(path)
    return 8


def _netpbm_bits(image: Image.Image) -> int:
    """Return 16 if the values of a PPM or PGM take two bytes each, else 8."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]  # of the decoder: a raw mode, or a mode and the value of white
        if isinstance(arguments, str):
            is_deep = ";16" in arguments
        else:
            white = arguments[-1]
            is_deep = white > 255
        if is_deep:
            return 16
    return 8


def _jpeg2000_bits(content: bytes) -> int:
    """Return the largest depth of the components (ISO/IEC 15444-1, A.5.1: the marker SIZ)."""
    start = content.find(_JPEG2000_START)
    if start < 0:
        return 8
    count = int.from_bytes(content[start + 40 : start + 42])
    sizes = content[start + 42 :: 3][:count]  # each component has its depth and two steps
    return max([8, *((size & 0x7F) + 1 for size in sizes)])


def _avif_bits(content: bytes) -> int:
    """Return the depth that an AVIF file's first AV1 configuration states (AV1-ISOBMFF, 2.3)."""
    start = content.find(b"av1C")
    flags = content[start + 6 : start + 7]
    if start < 0 or not flags or not flags[0] & 0x40:
        return 8
    return 12 if flags[0] & 0x20 else 10


def is_deep_gray(image: Image.Image) -> bool:
    """Tell whether Pillow has decoded gray of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def to_8_bit(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Scale gray of more than 8 bits to mode L, or to LA if one of its values means transparent.

    Images of other modes are returned as they are. The notes and errors are those of `gray_levels`.
    """
    if not is_deep_gray(image):
        return image, ()
    levels, alpha, notes = gray_levels(image, 255)
    gray = Image.fromarray(levels)
    gray.info = {name: value for name, value in image.info.items() if name != "transparency"}
    if alpha is not None:
        gray.putalpha(Image.fromarray(alpha))
    return gray, notes


def gray_levels(
    image: Image.Image, most: int
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Scale gray of more than 8 bits to the levels from 0 to `most`, which is 255 or 65,535.

    `white_level` says which value becomes `most`; if that is a guess, a note says so.

    Returns:
        the levels, uint8 or uint16; alpha in the same levels if a value means transparent, else
        None; notes for the user.

    Raises:
        UserError: a value is not finite.
    """
    tags = getattr(image, "tag_v2", {})

    # Values
    values = np.asarray(image)
    is_uint32 = tags.get(_BITS_PER_SAMPLE) == (32,) and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)) == (
        _UNSIGNED,
    )
    if image.mode == "I" and is_uint32:
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise cli.UserError("values that are not finite")

    # Scale
    kind = np.min_scalar_type(most)
    white, guessed = white_level(image, values)
    scaled = values * (most / white)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 means white; Pillow inverts only 8-bit images
        scaled = most - scaled
    levels = scaled.round().clip(0, most).astype(kind)

    # Transparency
    transparent = image.info.get("transparency")
    alpha = None
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, most).astype(kind)

    if not guessed:
        return levels, alpha, ()
    bits = values.itemsize * 8
    if values.max() > 1.5 * white:
        reason = f"its values reach {values.max():,.4g}; {white:,.0f} is taken as white"
        return levels, alpha, (f"{reason}: scale them first if that is wrong",)
    note = f"its {bits}-bit values hardly exceed {white:,.0f}, which is taken as white"
    return levels, alpha, (note,)


def white_level(image: Image.Image, values: np.ndarray) -> tuple[float, bool]:
    """Return the value of white in a gray image of more than 8 bits, and whether it is a guess.

    PGM and JPEG 2000 files state their depth, and Pillow has scaled them to 16 bits. A TIFF of less
    than 16 bits states its depth too. Otherwise, white is the first of these levels that the values
    do not exceed: a TIFF's tags for the largest sample value; 1; 255; 4095; 65,535; the largest
    value of the type.

    A few values may exceed it, so that a hot pixel does not decide: one in 10,000, and at least one
    in an image of 16 pixels or more. Floating-point values may exceed it by half, since sharpening
    overshoots. If most of them do not exceed 1, but some do by far, the picture has lights brighter
    than white (HDR), which is 1.
    """
    floating = image.mode == "F"
    if image.format in ("PPM", "JPEG2000") and not floating:
        return 65_535, False
    tags = getattr(image, "tag_v2", {})
    bits = 16 if floating else tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if bits < 16:
        return 2**bits - 1, False
    signed = tags.get(_SAMPLE_FORMAT) == (_SIGNED,)
    largest = 2 ** (bits - 1 if signed else bits) - 1

    # The largest value, but for the few that may exceed white
    exceptions = math.ceil(values.size / 10_000) if values.size >= 16 else 0
    place = values.size - 1 - exceptions
    bulk = float(np.partition(values, place, axis=None)[place])

    # The first level that is not exceeded
    stated = [_number(tags.get(tag)) for tag in (_S_MAX_SAMPLE, _MAX_SAMPLE)]
    stated = [level for level in stated if level > 0]
    usual = [1, 255, 4095, min(65_535, largest)]
    overshoot = 1.5 if floating else 1
    white = next((level for level in (*stated, *usual) if bulk <= level * overshoot), None)
    if white is None:
        white = bulk if floating else largest
    if floating and white not in stated and np.median(values) <= 1 < bulk < white / 8:
        white = 1
    is_usual = bulk <= 1.5 if floating else white == largest
    return white, not is_usual and white not in stated


def _number(value: Any) -> float:
    """Return the largest number in a tag's value, or 0 if there is none."""
    try:
        return float(np.max(value))
    except (TypeError, ValueError):
        return 0.0


# --- orientation --------------------------------------------------------------------------------


def orientation(image: Image.Image) -> int:
    """Return how a decoded picture has to be turned: EXIF's orientation, from 1 (upright) to 8.

    The decoder of JPEG XL has turned it, and EXIF then means nothing, unless the file is a JPEG in
    a new dress, which comes out as it was.
    """
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except SyntaxError:  # broken EXIF data hold none
        return 1


def upright(pixels: Pixels, image: Image.Image) -> Pixels:
    """Turn pixels by the orientation of the image that they come from."""
    turn = orientation(image)
    pixels.rgb = turned(pixels.rgb, turn)
    if pixels.alpha is not None:
        pixels.alpha = turned(pixels.alpha, turn)
    return pixels


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W, ...) upright, by EXIF's orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# --- colour -------------------------------------------------------------------------------------


def to_rgb(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """Return an 8-bit image as rgb (H, W, 3), alpha (H, W) or None, and the profile of its RGB.

    The profile is None for sRGB. An RGB profile is kept; CMYK, Lab and gray images are converted
    to sRGB, with their profile if they have one. An RGB image with three equal channels counts as
    gray: it will be written with one channel, which an RGB profile would not fit.
    """
    profile = image.info.get("icc_profile") or b""
    space = colour_space(profile)
    image, alpha = _without_alpha(image)
    if image.mode in ("RGB", "RGBX", "P") and space == "RGB":
        rgb = np.array(image.convert("RGB"))
        if is_gray(rgb):
            return tones(profile, "RGB")[rgb], alpha, None
        return rgb, alpha, profile
    if image.mode == "L" and space == "GRAY":
        image = image.point(tones(profile, "L").tolist())
    elif image.mode == "CMYK" and space == "CMYK":
        image = _to_srgb(image, profile) or image
    elif image.mode == "LAB":
        image = _convert(image, ImageCms.createProfile("LAB"))
    return np.array(image.convert("RGB")), alpha, None


def is_gray(rgb: np.ndarray) -> bool:
    """Tell whether the three channels of an image (H, W, 3) are equal."""
    for step in (16, 1):  # a few pixels are enough to tell for most images
        red, green, blue = np.moveaxis(rgb[::step, ::step], 2, 0)
        if not np.array_equal(red, green) or not np.array_equal(red, blue):
            return False
    return True


def _without_alpha(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA")
    if image.mode not in ("LA", "RGBA"):
        return image, None
    return image.convert(image.mode[:-1]), np.array(image.getchannel("A"))


def to_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert an RGB image (H, W, 3) uint8 to sRGB; as it is if the profile does not fit."""
    converted = _to_srgb(Image.fromarray(rgb), profile)
    return rgb if converted is None else np.array(converted)


def tones(profile: bytes, mode: str) -> np.ndarray:
    """Return the sRGB level of each of the 256 gray levels of a profile."""
    ramp = np.arange(256, dtype=np.uint8)
    converted = _to_srgb(Image.fromarray(ramp[None]).convert(mode), profile)
    if converted is None:
        return ramp
    return np.asarray(converted)[0].mean(1).round().astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert an image to sRGB with its profile; return None if the profile does not fit."""
    try:
        return _convert(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ImageCms.PyCMSError):
        return None


def _convert(
    image: Image.Image, profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile
) -> Image.Image:
    """Convert an image from the space of a profile to sRGB."""
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert converted is not None  # None only for conversion in place
    return converted


def colour_space(profile: bytes) -> str | None:
    """Return the colour space of an ICC profile, such as RGB, or None if it is no profile."""
    if not profile:
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None
