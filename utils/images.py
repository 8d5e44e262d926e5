"""Picture files to uint8 RGB and back, bicubic resizing, and the three value ranges of the project.

files, cache, data loader     uint8 RGB
networks                      float in [-1, 1]
losses and metrics            float in [0, 1]
"""

import contextlib
import io
import os
import stat
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from utils import cli, files

MAX_PIXELS = 100_000_000
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
OUTPUT_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
LARGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}
# Formats with a signature and a decoder of their own; not EPS, which runs a program.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")


@dataclass
class Picture:
    """A decoded picture: rgb (H, W, 3) uint8, alpha (H, W) uint8 or None, and the ICC profile of its RGB or None."""

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None


# --- the three ranges ---------------------------------------------------------------------------------------------


def uint8_to_signed(image: Tensor) -> Tensor:
    """Map uint8 to float32 in [-1, 1], what the networks take."""
    return image.float() / 127.5 - 1


def signed_to_unit(image: Tensor) -> Tensor:
    """Map float in [-1, 1] to float in [0, 1], what losses and metrics take."""
    return (image + 1) / 2


def uint8_to_unit(image: Tensor) -> Tensor:
    """Map uint8 to float32 in [0, 1]."""
    return image.float() / 255


def signed_to_uint8(image: Tensor) -> Tensor:
    """Map float in [-1, 1] to uint8: clamped, then rounded to the nearest level."""
    return (image.float().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)


def to_tensor(rgb: np.ndarray) -> Tensor:
    """Turn an array (H, W, 3) into a tensor (1, 3, H, W) that shares its memory (and so is channels-last)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)


def to_array(image: Tensor) -> np.ndarray:
    """Turn a uint8 tensor (1, 3, H, W) into a contiguous array (H, W, 3)."""
    return np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy())


# --- reading ------------------------------------------------------------------------------------------------------


def list_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """Return the image files of a folder, as `list_image_names` does, with the folder before their names."""
    return [Path(folder, name) for name in list_image_names(folder, recursive)]


def list_image_names(folder: str | Path, recursive: bool = True) -> list[str]:
    """Return the paths in a folder of its image files (by suffix, hidden ones left out), sorted, with / between the parts.

    Links to folders are followed, each folder once, so that a loop of links ends.

    Raises:
        ValueError: no such folder, or no image in it.
        OSError: a subfolder cannot be read.
    """
    if not Path(folder).is_dir():
        raise cli.UserError(f"{folder}: no such folder of images")
    found: list[str] = []
    seen = set()
    for parent, subfolders, names in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if recursive and not name.startswith("."))
        place = Path(parent).relative_to(folder).as_posix()
        inside = "" if place == "." else place + "/"
        found += [inside + name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")]
    if not found:
        raise cli.UserError(f"{folder}: no image in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def result_names(names: Iterable[str]) -> list[str]:
    """Return a file name without suffix for what is made of each image of a folder, given as its path in that folder.

    `a/b.png` becomes `a_b`; names that would be shared, or too long, end in a checksum of the path.
    """
    names = list(names)
    flat = [Path(name).with_suffix("").as_posix().replace("/", "_") for name in names]
    uses = Counter(short.lower() for short in flat)
    return [
        fitting_name(short) if uses[short.lower()] == 1 else _with_checksum(short, name)
        for name, short in zip(names, flat, strict=True)
    ]


def fitting_name(stem: str) -> str:
    """Return a file name without suffix that a file system takes with `_x4_compare.png` after it: the name, or its beginning
    and a checksum."""
    return stem if len(os.fsencode(stem)) <= 240 else _with_checksum(stem, stem)


def _with_checksum(stem: str, name: str) -> str:
    return f"{stem[:45]}-{zlib.crc32(os.fsencode(name)):08x}"


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the two sides of a picture file from its header alone: (height, width), unless its EXIF turns it; raises as
    `read_picture` does."""
    with _opened(path, max_pixels) as image:
        return image.size[::-1]


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture file of any mode to 8-bit RGB, turned upright by its EXIF orientation; the first of several frames.

    16-bit values are scaled to 8. An RGB profile is kept; CMYK, gray and Lab are converted to sRGB, by their profile
    where they have one.

    Raises:
        OSError: the file cannot be opened.
        ValueError: not an image, damaged, or of more than `max_pixels` pixels.
    """
    with _opened(path, max_pixels) as image:
        image.load()
        with contextlib.suppress(SyntaxError):  # EXIF data that are none say nothing of the orientation
            image = ImageOps.exif_transpose(image)
        profile = image.info.get("icc_profile")
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            image = _to_8_bit_gray(image)
        if "transparency" in image.info or image.mode in ("PA", "LA", "La", "RGBa"):
            image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A")) if image.mode == "RGBA" else None
        rgb, profile = _to_rgb(image, profile)
        return Picture(np.array(rgb), alpha, profile)


class _opened:
    """Context in which Pillow has a file open, and in which whatever goes wrong becomes one clear ValueError."""

    def __init__(self, path: str | Path, max_pixels: int):
        self.path, self.max_pixels = path, max_pixels

    def __enter__(self) -> Image.Image:
        if not stat.S_ISREG(os.stat(self.path).st_mode) and not os.path.isdir(self.path):
            raise cli.UserError(f"{self.path}: not a file, but a pipe, socket or device")  # opening it could wait for ever
        self.file = open(self.path, "rb")
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")
        self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self.max_pixels
        try:
            Image.init()  # loads the decoders, once
            self.image = Image.open(self.file, formats=[name for name in _FORMATS if name in Image.OPEN])
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
        if isinstance(error, Image.DecompressionBombError):
            reason = f"has more than {self.max_pixels:,} pixels; test_image.py takes larger ones by --max-pixels"
        elif empty:
            reason = "the file is empty"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image of a known format"
        else:
            reason = f"cut short or damaged ({error or kind.__name__})"
        raise cli.UserError(f"{self.path}: {reason}") from error


def _to_8_bit_gray(image: Image.Image) -> Image.Image:
    """Scale a 16-bit, 32-bit or floating-point gray image to 8 bits by the range that its values are in.

    A value that stands for transparency becomes an alpha channel.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise cli.UserError("values that are not finite")
    largest = values.max(initial=0)
    if image.mode.startswith("I"):
        white = 65_535 if largest <= 65_535 else 2**31 - 1
    else:
        white = next((white for white in (1, 255, 65_535) if largest <= white), largest)
    gray = Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))
    if isinstance(image.info.get("transparency"), int):
        gray.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return gray


def _to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """Return the image as RGB and the profile that then describes it (None: sRGB)."""
    space = _colour_space(profile)
    if image.mode in ("RGB", "RGBA", "RGBX", "P"):
        return image.convert("RGB"), profile if space == "RGB" else None
    source = {"CMYK": "CMYK", "L": "GRAY"}.get(image.mode)
    if source and source == space:
        try:
            return _by_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile))), None
        except ImageCms.PyCMSError:
            pass  # the profile does not fit its own image: convert without it
    if image.mode == "LAB":
        return _by_profile(image, ImageCms.createProfile("LAB")), None
    return image.convert("RGB"), None


def _by_profile(image: Image.Image, profile) -> Image.Image:
    return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _colour_space(profile: bytes | None) -> str | None:
    if not profile:
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None


# --- writing ------------------------------------------------------------------------------------------------------


def check_output_path(path: str | Path, width: int | None = None, height: int | None = None) -> str:
    """Return Pillow's format for an output path; ValueError when it is none that is written, or cannot hold the size."""
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise cli.UserError(
            f"{path}: cannot write {suffix or 'a file without suffix'}; use one of {', '.join(OUTPUT_SUFFIXES)}"
        )
    kind = OUTPUT_SUFFIXES[suffix]
    if max(width or 0, height or 0) > LARGEST_SIDE.get(kind, 2**31):
        raise cli.UserError(
            f"{path}: {kind} holds at most {LARGEST_SIDE[kind]} pixels a side, this is {width}x{height}; use .png"
        )
    return kind


def prepare_output(path: str | Path) -> None:
    """See, before a long computation, that a picture can be written to `path`, making its folder; raises what writing would."""
    check_output_path(path)
    files.make_folder(Path(path).parent)


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write a picture as the format of the path's suffix, whole or not at all; alpha is laid on white in JPEG and BMP.

    Raises:
        ValueError: no format that is written.
        OSError: the file cannot be written.
    """
    height, width = picture.rgb.shape[:2]
    kind = check_output_path(path, width, height)
    image = Image.fromarray(picture.rgb)
    if picture.alpha is not None:
        mask = Image.fromarray(picture.alpha)
        if kind in ("JPEG", "BMP"):
            image = Image.composite(image, Image.new("RGB", image.size, "white"), mask)
        else:
            image.putalpha(mask)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    if picture.icc_profile and kind != "BMP":
        options["icc_profile"] = picture.icc_profile
    with files.write_atomic(path) as file:
        image.save(file, kind, **options)


# --- resizing and showing -----------------------------------------------------------------------------------------


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) or (H, W) by Pillow's bicubic, which low-pass filters when it makes smaller."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def crop_to_multiple(image: np.ndarray, factor: int) -> np.ndarray:
    """Crop (H, W, ...) at the bottom right to multiples of `factor`, as the papers do."""
    height, width = (side - side % factor for side in image.shape[:2])
    return image[:height, :width]


def downscale(hr: np.ndarray, upscale: int) -> np.ndarray:
    """Make the LR image of an HR image (H, W, 3) uint8 whose sides are multiples of `upscale`."""
    return resize_bicubic(hr, hr.shape[0] // upscale, hr.shape[1] // upscale)


def upscale_bicubic(lr: np.ndarray, upscale: int) -> np.ndarray:
    """Enlarge an LR image (H, W, 3) or (H, W) uint8 by bicubic: the baseline that every network has to beat."""
    return resize_bicubic(lr, lr.shape[0] * upscale, lr.shape[1] * upscale)


def crop_centre(image: np.ndarray, side: int) -> np.ndarray:
    """Return the centre of (H, W, ...), at most `side` pixels a side."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def side_by_side(labelled: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """Set images (H, W, 3) uint8 of one size in a row, each under its label."""
    labels, panels = zip(*labelled, strict=True)
    height, width = panels[0].shape[:2]
    gap, strip, size = 4, 20, 14
    canvas = Image.new("RGB", ((width + gap) * len(panels) - gap, height + strip), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size)
    for index, (label, panel) in enumerate(zip(labels, panels, strict=True)):
        left = index * (width + gap)
        draw.text((left + 2, 1), label, fill="black", font=font)
        canvas.paste(Image.fromarray(panel), (left, strip))
    return np.asarray(canvas)
