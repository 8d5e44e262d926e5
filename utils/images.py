"""Read and write pictures as uint8 RGB, resize with bicubic, convert between three value ranges.

files, cache, data loader     uint8 RGB
networks                      float in [-1, 1]
losses and metrics            float in [0, 1]
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, TiffImagePlugin, TiffTags, features

from utils import cli, decoding, depth, files, plugins
from utils.metadata import Metadata, left_out, read_metadata, read_png_colours, save_options

if TYPE_CHECKING:  # test_image.py may do without PyTorch, which takes a second to import
    from torch import Tensor

MAX_PIXELS = 100_000_000
SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".apng",
    ".ppm",
    ".pgm",
    ".pnm",
    ".jp2",
    ".avif",
}  # and those of plug-ins, where they are installed
# Formats of pictures that are neither read nor written here
_OTHER_SUFFIXES = {
    *(".eps", ".ico", ".pcx", ".pdf", ".svg", ".tga"),
    *(".exr", ".hdr", ".jxr", ".psd", ".xcf"),
    # Cameras', whose files may begin like a TIFF that holds only a thumbnail
    *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc"),
    *(".mef", ".mos", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw", ".thm"),
    # Copies, unfinished files, and what lies beside pictures
    *(".bak", ".crdownload", ".csv", ".json", ".mov", ".mp4", ".npy", ".orig", ".part", ".tmp"),
    *(".txt", ".xml", ".xmp"),
}
OUTPUT_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".jxl": "JXL",
}
FORMATS = ("png", "jpg", "webp", "tif", "avif", "jxl")  # of a folder's results
LOSSY_FORMATS = ("JPEG", "WEBP", "AVIF", "JXL")
_LOSSLESS_BY_DEFAULT = ("WEBP", "JXL")
_OPAQUE_FORMATS = ("JPEG", "BMP")
LARGEST_SIDE = {
    "JPEG": 65_500,  # libjpeg stops a little before JPEG's own 65,535
    "WEBP": 16_383,
    "AVIF": 32_768,
}
# Bytes of pixels in a file with 32-bit offsets; the rest is for its header and metadata
_LARGEST_FILE = 2**32 - 2**24
_LARGEST_PNG_PROFILE = 2**20  # bytes; programs built on Pillow refuse a PNG with a larger one
_ENCODER_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "JXL": {"lossless": True},
}


@dataclass
class Picture:
    """A decoded picture.

    Attributes:
        rgb: (H, W, 3) uint8, or uint16 for one of 16 bits per channel.
        alpha: (H, W), as deep as rgb, or None for an opaque picture.
        icc_profile: ICC profile of the RGB values, or None for sRGB.
        gray: whether the three channels are equal, so that they are written as one.
        metadata: EXIF, XMP, resolution and the like.
        notes: messages for the user, such as frames left out or a guessed gray range.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    gray: bool = False
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()


_UINT8 = np.dtype(np.uint8)

# --- the three ranges ---------------------------------------------------------------------------


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
    """Clamp float to [-1, 1], then map it to the nearest of the 256 levels of uint8."""
    return (image.float().clamp(-1, 1) + 1).mul(127.5).round().byte()


def array_to_signed(rgb: np.ndarray) -> np.ndarray:
    """Map uint8 or uint16 (H, W, 3) to float32 (1, 3, H, W) in [-1, 1]; as `uint8_to_signed`."""
    half = np.float32(np.iinfo(rgb.dtype).max / 2)  # 127.5 for uint8
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32) / half - 1


def signed_to_array(image: np.ndarray, kind: np.dtype = _UINT8) -> np.ndarray:
    """Map float (1, 3, H, W) to the nearest levels (H, W, 3); as `signed_to_uint8`."""
    levels = np.clip(image[0].transpose(1, 2, 0), -1, 1, dtype=np.float32)
    levels += 1
    levels *= np.iinfo(kind).max / 2
    return np.rint(levels, out=levels).astype(kind)


def to_tensor(rgb: np.ndarray) -> Tensor:
    """View an array (H, W, 3) as a channels-last tensor (1, 3, H, W) that shares its memory."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(0)


def to_array(image: Tensor) -> np.ndarray:
    """Turn a uint8 tensor (1, 3, H, W) into a contiguous array (H, W, 3)."""
    return np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy())


# --- reading ------------------------------------------------------------------------------------


def list_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """Return the sorted paths of a folder's image files; see `list_image_names`."""
    return [Path(folder, name) for name in list_image_names(folder, recursive)]


def list_image_names(folder: str | Path, recursive: bool = True) -> list[str]:
    """Return the sorted paths of a folder's image files, relative to it and written with slashes.

    A file is an image if its suffix says so or, if that is unknown, its first bytes do. Hidden
    files are left out. Links to folders are followed, but no folder is visited twice, so a loop of
    links ends.

    Raises:
        UserError: the folder does not exist or has no image.
        OSError: a subfolder cannot be read.
    """
    found, others = sorted_by_kind(folder, recursive)
    advice = plugins.advice_for(others)
    if not found:
        known = ", ".join(sorted(SUFFIXES))
        raise cli.UserError(f"{folder}: no image in this folder (looked for {known}){advice}")
    if advice:
        print(f"{folder}: some images are left out{advice}", file=sys.stderr)
    return found


def is_image_file(path: Path) -> bool:
    """Tell by its suffix, or by its first bytes if that is unknown, whether a file is an image."""
    suffix = path.suffix.lower()
    if suffix in plugins.BY_SUFFIX:
        return plugins.BY_SUFFIX[suffix].load()
    return suffix in SUFFIXES or (suffix not in _OTHER_SUFFIXES and decoding.has_signature(path))


def sorted_by_kind(
    folder: str | Path,
    recursive: bool = True,
    is_wanted: Callable[[Path], bool] = is_image_file,
) -> tuple[list[str], list[str]]:
    """Return the paths of a folder's image files and of its other files; see `list_image_names`.

    Args:
        folder: where they are.
        recursive: also look into subfolders.
        is_wanted: tells which files to look for, if not for images.

    Raises:
        UserError: the folder does not exist.
        OSError: a subfolder cannot be read.
    """
    if not Path(folder).is_dir():
        raise cli.UserError(f"{folder}: no such folder of images")
    found: list[str] = []
    others: list[str] = []
    visited: set[tuple[int, int]] = set()
    for parent, subfolders, names in os.walk(folder, onerror=_raise, followlinks=True):
        status = os.stat(parent)
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            subfolders.clear()
            continue
        visited.add(identity)
        # os.walk descends into what is left in this list
        subfolders[:] = sorted(
            name for name in subfolders if recursive and not name.startswith(".")
        )
        place = Path(parent).relative_to(folder).as_posix()
        prefix = "" if place == "." else place + "/"
        for name in names:
            if name.startswith("."):
                continue
            is_one = is_wanted(Path(parent, name))
            (found if is_one else others).append(prefix + name)
    return sorted(found), sorted(others)


def _raise(error: OSError) -> None:
    raise error


def result_names(names: Iterable[str]) -> list[str]:
    """Return a unique file name without suffix for the result of each image.

    Images are given by their paths in a folder: `a/b.png` becomes `a_b`. Names that would clash
    or be too long end in a checksum of the path.
    """
    names = list(names)
    flat = [Path(name).with_suffix("").as_posix().replace("/", "_") for name in names]
    uses = Counter(stem.lower() for stem in flat)
    unique = []
    for name, stem in zip(names, flat, strict=True):
        clashes = uses[stem.lower()] > 1
        unique.append(_with_checksum(stem, name) if clashes else fitting_name(stem))
    return unique


def fitting_name(stem: str, ending: str = "_x4_compare.png") -> str:
    """Return `stem`, shortened and with a checksum if it leaves no room for `ending`."""
    if len(os.fsencode(stem + ending)) <= 255:
        return stem
    return _with_checksum(stem, stem)


def _with_checksum(stem: str, name: str) -> str:
    return f"{stem[:45]}-{zlib.crc32(os.fsencode(name)):08x}"


def read_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) from a picture file's header, before any EXIF rotation.

    Raises the same errors as `read_picture`.
    """
    with open(path, "rb") as file:
        if plugins.of_file(file.read(16)) is plugins.JXL and plugins.JXL.load():
            with contextlib.suppress(SyntaxError):
                height, width = plugins.jxl_size(file)
                if height * width <= max_pixels:
                    return height, width
    with decoding.opened(path, max_pixels) as image:
        width, height = image.size
        return height, width


def read_picture(
    path: str | Path, max_pixels: int = MAX_PIXELS, keep_depth: bool = False
) -> Picture:
    """Decode the first frame of a picture file to RGB, upright by its EXIF orientation.

    An RGB profile is kept; CMYK, gray and Lab are converted to sRGB, with their profile if they
    have one. Deeper pictures are scaled to 8 bits; see `decoding.white_level`.

    Args:
        path: the file.
        max_pixels: more are refused.
        keep_depth: give 16 bits for more than 8, unless the colours have to be converted.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file is not an image, is damaged, or has more than `max_pixels` pixels.
    """
    with decoding.opened(path, max_pixels) as file:
        # Decode
        bits = decoding.bits_per_channel(file, path)
        file, damage = decoding.loaded(file, path)
        metadata = read_metadata(file)
        pixels = depth.read(file, bits, path) if keep_depth else None
        if pixels is None:
            pixels = decoding.read(file)
        notes = pixels.notes
        kept_bits = 8 * pixels.rgb.itemsize
        if bits > kept_bits:
            notes += (f"{bits} bits per channel, reduced to {kept_bits}",)
        if file.format == "JXL":
            metadata.xmp = plugins.jxl_xmp(path)
        has_profile = "icc_profile" in file.info
        if file.format == "PNG" and (pixels.icc_profile or not has_profile):  # else converted
            metadata.colours = read_png_colours(path, has_profile)

        # Count the frames
        try:
            frames = str(getattr(file, "n_frames", 1))
        except Exception:
            # A damaged later frame can make Pillow raise anything; the first one is intact
            frames = "several"
        if frames != "1":
            notes += (f"{frames} frames or pages, only the first is used",)
        notes += damage
        gray = decoding.is_gray(pixels.rgb)
        return Picture(pixels.rgb, pixels.alpha, pixels.icc_profile, gray, metadata, notes)


# --- writing ------------------------------------------------------------------------------------


def output_format(path: str | Path, width: int = 0, height: int = 0, channels: int = 3) -> str:
    """Return Pillow's name for the format of an output path.

    Raises:
        UserError: the format is not supported, or cannot hold a picture of this size.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        name = suffix or "a file without a suffix"
        raise cli.UserError(f"{path}: cannot write {name}; use one of {', '.join(OUTPUT_SUFFIXES)}")
    file_format = OUTPUT_SUFFIXES[suffix]
    if file_format == "JXL" and not plugins.JXL.load():
        raise cli.UserError(f"{path}: {plugins.JXL.advice}")
    if file_format == "AVIF" and not features.check("avif"):
        raise cli.UserError(f"{path}: this version of Pillow cannot write AVIF; use .webp")
    size = f"{width}x{height}"
    if max(width, height) > LARGEST_SIDE.get(file_format, 2**31 - 1):
        limit = f"{file_format} holds at most {LARGEST_SIDE[file_format]} pixels per side"
        raise cli.UserError(f"{path}: {limit}, this is {size}; use .png or .tif")
    if file_format == "AVIF" and width * height > 2**28:
        limit = f"programs read AVIF only up to {2**28:,} pixels"
        raise cli.UserError(f"{path}: {limit}, this is {size}; use .webp, .png or .tif")
    padded_row_bytes = (width * channels + 3) // 4 * 4
    if file_format == "BMP" and padded_row_bytes * height > _LARGEST_FILE:
        limit = f"BMP holds at most 4 GiB, too little for {size} pixels"
        raise cli.UserError(f"{path}: {limit}; use .png or .tif")
    return file_format


def names_a_picture(path: str | Path) -> bool:
    """Tell whether a path ends as a picture's does, whether or not the format can be written."""
    return Path(path).suffix.lower() in SUFFIXES | _OTHER_SUFFIXES | set(plugins.BY_SUFFIX)


def prepare_output(path: str | Path) -> None:
    """Make the folder for a picture and check early that the picture can be written.

    Raises the same errors as `write_picture`.
    """
    output_format(path)  # refuses those that cannot be written
    files.make_folder(Path(path).parent)


def write_picture(path: str | Path, picture: Picture, quality: int | None = None) -> None:
    """Write a picture in the format of the path's suffix, whole or not at all.

    JPEG and BMP, which have no transparency, show the picture on a white background. If the format
    cannot hold its colour profile, it is converted to sRGB; see `what_is_lost`.

    Args:
        path: output path.
        picture: what to write.
        quality: of a lossy format, from 1 to 100. None: 95; WebP and JPEG XL without loss.

    Raises:
        UserError: the format is not supported or cannot hold the size.
        OSError: the file cannot be written.
    """
    height, width = picture.rgb.shape[:2]
    channels = 1 if picture.gray else 3
    file_format = output_format(path, width, height, channels)
    profile_held = not picture.icc_profile or _holds_profile(file_format, picture.icc_profile)
    is_deep = is_16_bit(picture) and profile_held and file_format in depth.FORMATS
    if not is_deep:
        picture = in_8_bits(picture)

    # Pixels
    alpha = None if file_format in _OPAQUE_FORMATS else picture.alpha
    is_flattened = picture.alpha is not None and alpha is None
    rgb = on_white(picture) if is_flattened else picture.rgb
    profile = picture.icc_profile
    metadata = picture.metadata
    if profile and not profile_held:
        rgb = decoding.to_srgb(rgb, profile)
        profile = None
        metadata = replace(metadata, colours=None)

    # Options of the encoder
    options = _ENCODER_OPTIONS.get(file_format, {})
    if quality is not None:
        options = options | {"quality": quality}
        if file_format in _LOSSLESS_BY_DEFAULT:
            options["lossless"] = False
    options = options | save_options(metadata, file_format, height, width)
    if is_deep and alpha is not None and file_format == "TIFF":
        channels = 3  # see `depth.write`
    row_bytes = width * (channels + (alpha is not None)) * rgb.itemsize
    if file_format == "TIFF" and row_bytes * height > _LARGEST_FILE:
        options["big_tiff"] = True
    if profile:
        options["icc_profile"] = profile

    # Write
    if is_deep:
        with files.write_atomic(path) as file:
            depth.write(file, file_format, rgb, alpha, picture.gray, options)
        return
    image = Image.fromarray(rgb[..., 0] if picture.gray else rgb)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    if "big_tiff" in options:
        _set_big_strips(options["tiffinfo"], row_bytes)
    with files.write_atomic(path) as file:
        image.save(file, file_format, **options)


def what_is_lost(picture: Picture, path: str | Path) -> list[str]:
    """Return what the format of a path cannot hold of a picture, in words for the user."""
    file_format = output_format(path)
    height, width = picture.rgb.shape[:2]
    names = left_out(picture.metadata, file_format, height, width)
    lost = [f"{file_format} cannot hold {name}" for name in names]
    alpha = picture.alpha
    is_transparent = alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max
    if file_format in _OPAQUE_FORMATS and is_transparent:
        lost.append(f"{file_format} cannot hold its transparency; it is on white")
    if is_16_bit(picture) and file_format not in depth.FORMATS:
        lost.append(f"{file_format} cannot hold 16 bits per channel; reduced to 8")
    if picture.icc_profile and not _holds_profile(file_format, picture.icc_profile):
        in_8 = " in 8 bits" if is_16_bit(picture) else ""
        lost.append(f"{file_format} cannot hold its colour profile; converted to sRGB{in_8}")
    return lost


def _holds_profile(file_format: str, profile: bytes) -> bool:
    """Tell whether a file can hold a colour profile, and other programs can read it again."""
    if file_format == "PNG":
        return len(profile) < _LARGEST_PNG_PROFILE
    return file_format not in ("BMP", "JXL")


def _set_big_strips(tags: TiffImagePlugin.ImageFileDirectory_v2, row_bytes: int) -> None:
    """Have Pillow write the pixels of a BigTIFF in strips with 64-bit offsets."""
    tags[TiffImagePlugin.ROWSPERSTRIP] = max(1, 2**26 // row_bytes)
    # Pillow would give even a BigTIFF 32-bit offsets
    tags.tagtype[TiffImagePlugin.STRIPOFFSETS] = TiffTags.LONG8
    tags[TiffImagePlugin.STRIPOFFSETS] = 0


def is_16_bit(picture: Picture) -> bool:
    """Tell whether a picture has 16 bits per channel."""
    return picture.rgb.dtype == np.uint16


def in_8_bits(picture: Picture) -> Picture:
    """Return a picture with 8 bits per channel."""
    if not is_16_bit(picture):
        return picture
    alpha = None if picture.alpha is None else depth.to_8_bits(picture.alpha)
    return replace(picture, rgb=depth.to_8_bits(picture.rgb), alpha=alpha)


def on_white(picture: Picture) -> np.ndarray:
    """Return the RGB (H, W, 3) uint8 of a picture on a white background."""
    picture = in_8_bits(picture)
    if picture.alpha is None:
        return picture.rgb
    image = Image.fromarray(picture.rgb)
    white = Image.new("RGB", image.size, "white")
    return np.asarray(Image.composite(image, white, Image.fromarray(picture.alpha)))


# --- transparency and gray ----------------------------------------------------------------------


def with_flat_parts_of(alpha: np.ndarray, enlarged: np.ndarray, upscale: int) -> np.ndarray:
    """Make opaque and fully transparent parts of an enlarged alpha channel exactly so.

    Args:
        alpha: (H, W) uint8 or uint16; a pixel counts if its eight neighbours are equally opaque.
        enlarged: (upscale·H, upscale·W), of the same kind.
        upscale: the scale.
    """
    from scipy import ndimage

    most = np.iinfo(alpha.dtype).max
    opaque = ndimage.minimum_filter(alpha, 3) == most
    clear = ndimage.maximum_filter(alpha, 3) == 0
    opaque, clear = (part.repeat(upscale, 0).repeat(upscale, 1) for part in (opaque, clear))
    return np.where(opaque, most, np.where(clear, 0, enlarged)).astype(alpha.dtype, copy=False)


def fill_transparent(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give almost transparent pixels (below 8 of 255) the colour of the nearest other pixel.

    Their own colour is invisible and often black; enlarging would bleed it into the visible edge.

    Args:
        rgb: (H, W, 3).
        alpha: (H, W).
    """
    from scipy import ndimage

    hidden = alpha < 8 * (np.iinfo(alpha.dtype).max // 255)
    if not hidden.any() or hidden.all():
        return rgb
    rows, columns = ndimage.distance_transform_edt(
        hidden, return_distances=False, return_indices=True
    )
    return rgb[rows, columns]


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """Replace the three channels of (H, W, 3) uint8 or uint16 with their mean.

    A network turns a gray image into three estimates of the same value. Their mean is closer to the
    truth than their luma, which is mostly green: by 0.01 dB on photographs.
    """
    wider = np.dtype("uint16" if rgb.dtype == np.uint8 else "uint32")
    total: np.ndarray = rgb[..., 0].astype(wider)
    total += rgb[..., 1]
    total += rgb[..., 2]
    total += 1  # so that the division rounds to the nearest level
    total //= 3
    return np.broadcast_to(total.astype(rgb.dtype)[..., None], rgb.shape)


# --- resizing and showing -----------------------------------------------------------------------


def resize_bicubic(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) or (H, W) with Pillow's bicubic, which low-pass filters to shrink."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resized(picture: Picture, width: int, height: int) -> Picture:
    """Return a picture at another size, by Lanczos."""
    if picture.rgb.shape[:2] == (height, width):
        return picture

    def at_size(image: np.ndarray) -> np.ndarray:
        method = Image.Resampling.LANCZOS
        if image.dtype == np.uint8:
            return np.asarray(Image.fromarray(image).resize((width, height), method))
        if image.ndim == 3:
            return np.stack([at_size(channel) for channel in np.moveaxis(image, 2, 0)], axis=2)
        # Pillow resizes 16 bits only as floating-point numbers
        values = Image.fromarray(image.astype(np.float32)).resize((width, height), method)
        return np.asarray(values).round().clip(0, depth.WHITE).astype(np.uint16)

    alpha = None if picture.alpha is None else at_size(picture.alpha)
    return replace(picture, rgb=at_size(picture.rgb), alpha=alpha)


def crop_to_multiple(image: np.ndarray, factor: int) -> np.ndarray:
    """Crop (H, W, ...) at the bottom and right to multiples of `factor`, as the papers do."""
    height, width = (side - side % factor for side in image.shape[:2])
    return image[:height, :width]


def downscale(hr: np.ndarray, upscale: int) -> np.ndarray:
    """Make the LR image of an HR image (H, W, 3) uint8 whose sides are multiples of `upscale`."""
    height, width = hr.shape[:2]
    return resize_bicubic(hr, width // upscale, height // upscale)


def upscale_bicubic(lr: np.ndarray, upscale: int) -> np.ndarray:
    """Enlarge an LR image (H, W, 3) or (H, W) uint8 with bicubic, the baseline of every network."""
    height, width = lr.shape[:2]
    return resize_bicubic(lr, width * upscale, height * upscale)


def crop_centre(image: np.ndarray, side: int) -> np.ndarray:
    """Return the centre of (H, W, ...), at most `side` pixels a side."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


# Pixels in `side_by_side`
_GAP = 4
_LABEL_HEIGHT = 20
_LABEL_SIZE = 14


def side_by_side_size(width: int, height: int, count: int) -> tuple[int, int]:
    """Return the (width, height) of `side_by_side` for `count` images of this size."""
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
