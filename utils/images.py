"""Reading and writing picture files as uint8 RGB, bicubic resizing, and the project's three value ranges.

files, cache, data loader     uint8 RGB
networks                      float in [-1, 1]
losses and metrics            float in [0, 1]
"""

import contextlib
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, TiffImagePlugin, TiffTags
from torch import Tensor

from utils import cli, decoding, files
from utils.metadata import Metadata, read_metadata, save_options

MAX_PIXELS = 100_000_000
SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
}
OUTPUT_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # libjpeg stops a little before JPEG's own 65,535
_LARGEST_FILE = (
    2**32 - 2**24
)  # bytes of pixels that a file with 32-bit offsets holds beside its header and metadata


@dataclass
class Picture:
    """A decoded picture.

    Attributes:
        rgb: (H, W, 3) uint8.
        alpha: (H, W) uint8, or None for an opaque picture.
        icc_profile: the ICC profile of its RGB values; None for sRGB.
        gray: whether the three channels are equal; they are then written as one.
        metadata: EXIF, XMP and resolution.
        notes: what the user should know: frames that were left out, a gray range that had to be guessed.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    gray: bool = False
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()


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
    """Return the paths of a folder's image files, the folder included; otherwise as `list_image_names`."""
    return [Path(folder, name) for name in list_image_names(folder, recursive)]


def list_image_names(folder: str | Path, recursive: bool = True) -> list[str]:
    """Return the sorted paths of a folder's image files (by suffix, without hidden ones), relative to it and with /.

    Links to folders are followed, each folder once, so that a loop of links ends.

    Raises:
        UserError: the folder does not exist or has no image.
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
        subfolders[:] = sorted(
            name for name in subfolders if recursive and not name.startswith(".")
        )
        place = Path(parent).relative_to(folder).as_posix()
        inside = "" if place == "." else place + "/"
        found += [
            inside + name
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    if not found:
        raise cli.UserError(
            f"{folder}: no image in this folder (looked for {', '.join(sorted(SUFFIXES))})"
        )
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def result_names(names: Iterable[str]) -> list[str]:
    """Return a file name without suffix for the result of each image, which is given by its path in the folder.

    `a/b.png` becomes `a_b`; names that would be shared or too long end in a checksum of the path.
    """
    names = list(names)
    flat = [Path(name).with_suffix("").as_posix().replace("/", "_") for name in names]
    uses = Counter(short.lower() for short in flat)
    return [
        fitting_name(short) if uses[short.lower()] == 1 else _with_checksum(short, name)
        for name, short in zip(names, flat, strict=True)
    ]


def fitting_name(stem: str, ending: str = "_x4_compare.png") -> str:
    """Return a file name without suffix that leaves room for `ending`: the name, or its beginning and a checksum."""
    return stem if len(os.fsencode(stem + ending)) <= 255 else _with_checksum(stem, stem)


def _with_checksum(stem: str, name: str) -> str:
    return f"{stem[:45]}-{zlib.crc32(os.fsencode(name)):08x}"


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) from a picture file's header, before any EXIF rotation; raises as `read_picture` does."""
    with decoding.opened(path, max_pixels) as image:
        return image.size[::-1]


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture file of any mode to 8-bit RGB, turned upright by its EXIF orientation; only the first of several frames.

    Deeper pictures are scaled to 8 bits as `decoding.white_level` says. An RGB profile is kept; CMYK, gray and Lab are
    converted to sRGB, by their profile if they have one.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file is not an image, is damaged, or has more than `max_pixels` pixels.
    """
    with decoding.opened(path, max_pixels) as file:
        file.load()
        described = read_metadata(file)
        image, notes = decoding.to_8_bit(file)
        with contextlib.suppress(SyntaxError):  # broken EXIF data do not tell the orientation
            image = ImageOps.exif_transpose(image)
        rgb, alpha, profile = decoding.to_rgb(image)
        try:
            frames = getattr(file, "n_frames", 1)
        except (
            Exception
        ):  # a damaged later frame can make Pillow raise anything; the first is intact
            frames = 2
        if frames > 1:
            notes += (f"{frames} frames or pages, only the first is used",)
        return Picture(rgb, alpha, profile, decoding.is_gray(rgb), described, notes)


# --- writing ------------------------------------------------------------------------------------------------------


def check_output_path(path: str | Path, width: int = 0, height: int = 0, channels: int = 3) -> str:
    """Return Pillow's format for an output path; raise UserError if it is not supported or cannot hold the size."""
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise cli.UserError(
            f"{path}: cannot write {suffix or 'a file without suffix'}; use one of {', '.join(OUTPUT_SUFFIXES)}"
        )
    kind = OUTPUT_SUFFIXES[suffix]
    if max(width, height) > LARGEST_SIDE.get(kind, 2**31 - 1):
        raise cli.UserError(
            f"{path}: {kind} holds at most {LARGEST_SIDE[kind]} pixels per side, this is {width}x{height}; use .png or .tif"
        )
    if kind == "BMP" and (width * channels + 3) // 4 * 4 * height > _LARGEST_FILE:
        raise cli.UserError(
            f"{path}: BMP holds at most 4 GiB, too little for {width}x{height} pixels; use .png or .tif"
        )
    return kind


def prepare_output(path: str | Path) -> None:
    """Check early that a picture can be written to `path`, and make its folder; raises the same errors as writing."""
    check_output_path(path)
    files.make_folder(Path(path).parent)


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write a picture in the format of the path's suffix, whole or not at all; JPEG and BMP get it on a white background.

    Raises:
        UserError: the format is not supported or cannot hold the size.
        OSError: the file cannot be written.
    """
    height, width = picture.rgb.shape[:2]
    channels = 1 if picture.gray else 3
    kind = check_output_path(path, width, height, channels)
    transparent = picture.alpha is not None and kind not in ("JPEG", "BMP")
    rgb = picture.rgb if transparent else on_white(picture)
    image = Image.fromarray(rgb[..., 0] if picture.gray else rgb)
    if transparent:
        image.putalpha(Image.fromarray(picture.alpha))
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    options |= save_options(picture.metadata, kind, height, width)
    if kind == "TIFF":
        options |= _tiff_options(options["tiffinfo"], width * (channels + transparent), height)
    if picture.icc_profile and kind != "BMP":
        options["icc_profile"] = picture.icc_profile
    with files.write_atomic(path) as file:
        image.save(file, kind, **options)


def _tiff_options(tags, row_bytes: int, height: int) -> dict[str, Any]:
    """Return Pillow's options for a TIFF of any size: beyond 4 GiB, a BigTIFF in strips with 64-bit offsets."""
    if row_bytes * height <= _LARGEST_FILE:
        return {}
    tags[TiffImagePlugin.ROWSPERSTRIP] = max(1, 2**26 // row_bytes)
    tags.tagtype[TiffImagePlugin.STRIPOFFSETS] = (
        TiffTags.LONG8
    )  # Pillow does not choose this by itself
    tags[TiffImagePlugin.STRIPOFFSETS] = 0
    return {"big_tiff": True}


def on_white(picture: Picture) -> np.ndarray:
    """Return the RGB (H, W, 3) of a picture on a white background."""
    if picture.alpha is None:
        return picture.rgb
    image = Image.fromarray(picture.rgb)
    return np.asarray(
        Image.composite(
            image, Image.new("RGB", image.size, "white"), Image.fromarray(picture.alpha)
        )
    )


# --- transparency and gray ----------------------------------------------------------------------------------------


def fill_transparent(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give pixels of (H, W, 3) that are almost transparent (alpha below 8) the colour of the nearest pixel that is not.

    Their own colour is invisible and often black; after enlarging, it would bleed into the visible edge.
    """
    from scipy import ndimage

    hidden = alpha < 8
    if not hidden.any() or hidden.all():
        return rgb
    rows, columns = ndimage.distance_transform_edt(
        hidden, return_distances=False, return_indices=True
    )
    return rgb[rows, columns]


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """Replace the three channels of (H, W, 3) by their mean.

    A network turns a gray image into three estimates of the same value. Their mean is closer to the truth than their luma,
    which is mostly green: by 0.01 dB on photographs.
    """
    total = rgb[..., 0].astype(np.uint16)
    total += rgb[..., 1]
    total += rgb[..., 2]
    total += 1  # rounds to the nearest
    total //= 3
    return np.broadcast_to(total.astype(np.uint8)[..., None], rgb.shape)


# --- resizing and showing -----------------------------------------------------------------------------------------


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) or (H, W) with Pillow's bicubic, which low-pass filters when it shrinks an image."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def crop_to_multiple(image: np.ndarray, factor: int) -> np.ndarray:
    """Crop (H, W, ...) at the bottom and right to multiples of `factor`, as the papers do."""
    height, width = (side - side % factor for side in image.shape[:2])
    return image[:height, :width]


def downscale(hr: np.ndarray, upscale: int) -> np.ndarray:
    """Make the LR image of an HR image (H, W, 3) uint8 whose sides are multiples of `upscale`."""
    return resize_bicubic(hr, hr.shape[0] // upscale, hr.shape[1] // upscale)


def upscale_bicubic(lr: np.ndarray, upscale: int) -> np.ndarray:
    """Enlarge an LR image (H, W, 3) or (H, W) uint8 with bicubic: the baseline that every network has to beat."""
    return resize_bicubic(lr, lr.shape[0] * upscale, lr.shape[1] * upscale)


def crop_centre(image: np.ndarray, side: int) -> np.ndarray:
    """Return the centre of (H, W, ...), at most `side` pixels a side."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


_GAP, _LABEL_HEIGHT, _LABEL_SIZE = 4, 20, 14  # pixels, in `side_by_side`


def side_by_side_size(width: int, height: int, count: int) -> tuple[int, int]:
    """Return the (width, height) of `side_by_side` for `count` images of a size."""
    return (width + _GAP) * count - _GAP, height + _LABEL_HEIGHT


def side_by_side(labelled: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """Place images (H, W, 3) uint8 of one size in a row, each under its label."""
    labels, panels = zip(*labelled, strict=True)
    height, width = panels[0].shape[:2]
    canvas = Image.new("RGB", side_by_side_size(width, height, len(panels)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LABEL_SIZE)
    for index, (label, panel) in enumerate(zip(labels, panels, strict=True)):
        left = index * (width + _GAP)
        draw.text((left + 2, 1), label, fill="black", font=font)
        canvas.paste(Image.fromarray(panel), (left, _LABEL_HEIGHT))
    return np.asarray(canvas)
