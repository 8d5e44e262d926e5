"""Open picture files that may be damaged or hostile, and convert images of any mode and depth to 8-bit RGB."""

import errno
import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from utils import cli

_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT, _S_MAX_SAMPLE = (
    258,
    262,
    281,
    339,
    341,
)  # TIFF tags
_SIGNED = 2

# Formats with a signature and a built-in decoder. EPS is left out, because reading it runs an external program.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")


# --- opening ------------------------------------------------------------------------------------------------------


class opened:
    """Context manager that opens a file with Pillow and turns whatever goes wrong into one clear UserError."""

    def __init__(self, path: str | Path, max_pixels: int):
        self.path, self.max_pixels = path, max_pixels

    def __enter__(self) -> Image.Image:
        if not stat.S_ISREG(os.stat(self.path).st_mode) and not os.path.isdir(self.path):
            raise cli.UserError(
                f"{self.path}: not a file, but a pipe, socket or device"
            )  # opening it could block for ever
        self.file = open(self.path, "rb")
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")
        self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self.max_pixels
        try:
            Image.init()  # loads the decoders, once
            self.image = Image.open(
                self.file, formats=[name for name in _FORMATS if name in Image.OPEN]
            )
            width, height = self.image.size
            if width * height > self.max_pixels:
                raise Image.DecompressionBombError
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self.image

    def __exit__(self, kind, error, _traceback) -> None:
        Image.MAX_IMAGE_PIXELS = self.limit
        self.warnings.__exit__(None, None, None)
        empty = os.fstat(self.file.fileno()).st_size == 0
        self.file.close()
        if error is None or isinstance(error, MemoryError) or not isinstance(error, Exception):
            return
        if (
            isinstance(error, OSError) and error.errno == errno.EIO
        ):  # the disk is at fault, not the picture
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if isinstance(error, Image.DecompressionBombError):
            reason = f"has more than {self.max_pixels:,} pixels; test_image.py takes larger images with --max-pixels"
        elif empty:
            reason = "the file is empty"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image of a known format"
        else:
            reason = f"cut short or damaged ({error or kind.__name__})"
        raise cli.UserError(f"{self.path}: {reason}") from error


# --- depth --------------------------------------------------------------------------------------------------------


def to_8_bit(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Scale a 16-bit, 32-bit or floating-point gray image to mode L, or to LA if one of its values means transparent.

    Images of other modes are returned as they are. `white_level` says which value becomes 255; if that is a guess that
    brightens the image, a note says so.

    Raises:
        UserError: a value is not finite.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image, ()
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if (
        image.mode == "I"
        and tags.get(_BITS_PER_SAMPLE) == (32,)
        and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)
    ):
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise cli.UserError("values that are not finite")
    white, guessed = white_level(image, values)
    notes = (
        (
            f"its {values.itemsize * 8}-bit values hardly exceed {white:,.0f}, which is taken as white",
        )
        if guessed
        else ()
    )
    scaled = values * (255 / white)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 means white; Pillow inverts only 8-bit images
        scaled = 255 - scaled
    gray = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    gray.info = dict(image.info)
    transparent = gray.info.pop("transparency", None)
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray, notes


def white_level(image: Image.Image, values: np.ndarray) -> tuple[float, bool]:
    """Return the value that stands for white in a gray image of more than 8 bits, and whether it is a guess.

    PGM and JPEG 2000 files state their depth, and Pillow has scaled them to 16 bits; a TIFF of less than 16 bits states it
    too. Otherwise white is the first of these levels that the values do not exceed: a TIFF's maximum sample value tags; 1;
    255; 4095; 65,535; the largest value of the type. A few values may exceed it, so that a hot pixel does not decide: one in
    10,000, and at least one in an image of 16 pixels or more. Floating-point values may exceed it by half, since sharpening
    overshoots.
    """
    floating = image.mode == "F"
    if image.format in ("PPM", "JPEG2000") and not floating:
        return 65_535, False
    tags = getattr(image, "tag_v2", {})
    bits = 16 if floating else tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if bits < 16:
        return 2**bits - 1, False
    largest = 2 ** (bits - (tags.get(_SAMPLE_FORMAT) == (_SIGNED,))) - 1
    allowed_beyond = -(-values.size // 10_000) if values.size >= 16 else 0
    place = values.size - 1 - allowed_beyond
    bulk = float(np.partition(values, place, axis=None)[place])
    said = [
        level
        for level in (_number(tags.get(_S_MAX_SAMPLE)), _number(tags.get(_MAX_SAMPLE)))
        if level > 0
    ]
    usual = (1, 255, 4095, min(65_535, largest))
    overshoot = 1.5 if floating else 1
    white = next(
        (white for white in (*said, *usual) if bulk <= white * overshoot),
        bulk if floating else largest,
    )
    return white, not floating and white not in (*said, largest)


def _number(value) -> float:
    """Return the largest number in a tag's value, or 0 if there is none."""
    try:
        return float(np.max(value))
    except (TypeError, ValueError):
        return 0.0


# --- colour -------------------------------------------------------------------------------------------------------


def to_rgb(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """Return an 8-bit image as rgb (H, W, 3), alpha (H, W) or None, and the profile of its RGB (None: sRGB).

    An RGB profile is kept; CMYK, Lab and gray images are converted to sRGB, by their profile if they have one. An RGB image
    with three equal channels counts as gray: it will be written with one channel, which an RGB profile would not fit.
    """
    profile = image.info.get("icc_profile")
    space = _colour_space(profile)
    image, alpha = _without_alpha(image)
    if image.mode == "L" and space == "GRAY":
        image = image.point(_tones(profile, "L").tolist())
    elif image.mode == "CMYK" and space == "CMYK":
        image = _to_srgb(image, profile) or image
    elif image.mode == "LAB":
        image = _by_profile(image, ImageCms.createProfile("LAB"))
    elif image.mode in ("RGB", "RGBX", "P") and space == "RGB":
        rgb = np.array(image.convert("RGB"))
        return (_tones(profile, "RGB")[rgb], alpha, None) if is_gray(rgb) else (rgb, alpha, profile)
    return np.array(image.convert("RGB")), alpha, None


def is_gray(rgb: np.ndarray) -> bool:
    """Tell whether the three channels of an image (H, W, 3) are equal; for most images, a few pixels are enough to tell."""
    return all(
        np.array_equal(rgb[::step, ::step, 0], rgb[::step, ::step, channel])
        for step in (16, 1)
        for channel in (1, 2)
    )


def _without_alpha(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA")
    if image.mode not in ("LA", "RGBA"):
        return image, None
    return image.convert(image.mode[:-1]), np.array(image.getchannel("A"))


def _tones(profile: bytes, mode: str) -> np.ndarray:
    """Return the sRGB level of each of the 256 gray levels that a profile describes."""
    ramp = np.arange(256, dtype=np.uint8)
    converted = _to_srgb(Image.fromarray(ramp[None]).convert(mode), profile)
    return ramp if converted is None else np.asarray(converted)[0].mean(1).round().astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert an image to sRGB by its profile; return None if the profile does not fit."""
    try:
        return _by_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ImageCms.PyCMSError):
        return None


def _by_profile(image: Image.Image, profile) -> Image.Image:
    return ImageCms.profileToProfile(
        image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


def _colour_space(profile: bytes | None) -> str | None:
    if not profile:
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None
