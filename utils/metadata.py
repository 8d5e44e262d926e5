"""EXIF, XMP and resolution of a picture file, carried over to a picture made from it.

Whatever would be wrong for the new picture is corrected: the orientation becomes 1, since its pixels are upright; the sizes
become its own; thumbnails are dropped.
"""

import contextlib
import re
import struct
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin, TiffImagePlugin

# Tags of the first directory that describe the picture; a TIFF's others say where its pixels lie.
_DESCRIPTIVE = (
    270,
    271,
    272,
    282,
    283,
    296,
    305,
    306,
    315,
    316,
    18246,
    18249,
    *range(40091, 40096),
    33432,
)
_WIDTH, _HEIGHT, _ORIENTATION, _XMP, _EXIF_IFD, _GPS_IFD = 256, 257, 274, 700, 34665, 34853
_PIXEL_X, _PIXEL_Y, _MAKER_NOTE, _INTEROPERABILITY = 40962, 40963, 37500, 40965
_JPEG_SEGMENT = 65_533


@dataclass
class Metadata:
    """EXIF as a block that begins with its byte order, XMP as XML, and pixels per inch (x, y); each None if absent."""

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


def read_metadata(image: Image.Image) -> Metadata:
    """Return the metadata of an image opened by Pillow; damaged metadata count as absent."""
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    if exif is None:  # in a TIFF it is among the file's own tags
        with contextlib.suppress(Exception):  # untrusted tags can make Pillow raise anything
            exif = _exif_of_tags(image.getexif())
    exif = exif.removeprefix(b"Exif\0\0") if exif else None
    try:
        dpi = tuple(float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        dpi = ()
    plausible = len(dpi) == 2 and all(1 <= value <= 65_535 for value in dpi)
    return Metadata(
        exif or None, xmp if isinstance(xmp, bytes) else None, dpi if plausible else None
    )


def save_options(metadata: Metadata, kind: str, height: int, width: int) -> dict[str, Any]:
    """Return Pillow's options to write metadata into a picture of this size, as far as the format `kind` can hold them."""
    exif = fitted_exif(metadata.exif, height, width) if metadata.exif else None
    xmp = fitted_xmp(metadata.xmp, height, width) if metadata.xmp else None
    options: dict[str, Any] = {"dpi": metadata.dpi} if metadata.dpi and kind != "WEBP" else {}
    if kind == "TIFF":
        options["tiffinfo"] = _tiff_tags(exif, xmp)
    elif kind in ("PNG", "JPEG", "WEBP"):
        if exif and (kind != "JPEG" or len(exif) + 6 <= _JPEG_SEGMENT):
            options["exif"] = b"Exif\0\0" + exif
        if xmp and kind == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode(errors="replace"))
        elif xmp and (kind != "JPEG" or len(xmp) + 29 <= _JPEG_SEGMENT):
            options["xmp"] = xmp
    return options


def fitted_exif(block: bytes, height: int, width: int) -> bytes | None:
    """Return an EXIF block changed in place to fit an upright picture of this size, or None if it is damaged.

    Everything else stays byte for byte: text in any encoding, and maker notes, which hold offsets into the block.
    """
    data = bytearray(block)
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return None

    def entries(offset: int) -> tuple[dict[int, int], int]:
        """Return the offset of every tag's entry in a directory, and the offset of the link to the next directory."""
        (count,) = struct.unpack_from(f"{order}H", data, offset)
        places = range(offset + 2, offset + 2 + 12 * count, 12)
        return {
            struct.unpack_from(f"{order}H", data, place)[0]: place for place in places
        }, offset + 2 + 12 * count

    def set_numbers(tags: dict[int, int], numbers: dict[int, int]) -> None:
        for tag, number in numbers.items():
            if tag in tags:
                struct.pack_into(f"{order}HII", data, tags[tag] + 2, 4, 1, number)

    try:
        tags, link = entries(struct.unpack_from(f"{order}I", data, 4)[0])
        set_numbers(tags, {_WIDTH: width, _HEIGHT: height})
        if _ORIENTATION in tags:
            struct.pack_into(f"{order}HIHxx", data, tags[_ORIENTATION] + 2, 3, 1, 1)
        if _EXIF_IFD in tags:
            inner, _ = entries(struct.unpack_from(f"{order}I", data, tags[_EXIF_IFD] + 8)[0])
            set_numbers(inner, {_PIXEL_X: width, _PIXEL_Y: height})
        struct.pack_into(f"{order}I", data, link, 0)  # the next directory would be the thumbnail's
    except struct.error:
        return None
    return bytes(data)


def fitted_xmp(xmp: bytes, height: int, width: int) -> bytes:
    """Return XMP changed to fit an upright picture of this size."""
    for prefix in (b"xmp", b"xap"):
        begin, end = xmp.find(b"<%s:Thumbnails" % prefix), xmp.rfind(b"</%s:Thumbnails>" % prefix)
        if 0 <= begin < end:
            xmp = xmp[:begin] + xmp[end + len(b"</xmp:Thumbnails>") :]
    values = {
        b"tiff:Orientation": 1,
        b"tiff:ImageWidth|exif:PixelXDimension": width,
        b"tiff:ImageLength|exif:PixelYDimension": height,
    }
    for names, number in values.items():
        xmp = re.sub(rb"((?:%s)(?:=[\"']|>))\d+" % names, rb"\g<1>%d" % number, xmp)
    return xmp


def _exif_of_tags(tags: Image.Exif) -> bytes | None:
    """Return an EXIF block of those tags of a TIFF that describe the picture."""
    exif, described = Image.Exif(), _described(tags)
    for tag, value in described.items():
        if isinstance(value, dict):
            exif.get_ifd(tag).update(value)
        else:
            exif[tag] = value
    return exif.tobytes() if described else None


def _tiff_tags(exif: bytes | None, xmp: bytes | None) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Return TIFF tags that hold an EXIF block, if Pillow can read it, and XMP."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    if exif:
        with contextlib.suppress(Exception):  # untrusted tags can make Pillow raise anything
            tags = Image.Exif()
            tags.load(exif)
            described = TiffImagePlugin.ImageFileDirectory_v2()
            for tag, value in _described(tags).items():
                described[tag] = value
            described.tobytes()
            info = described
    if xmp:
        info[_XMP] = xmp
    return info


def _described(tags: Image.Exif) -> dict[int, Any]:
    """Return the descriptive tags, and the EXIF and GPS directories without entries that point into the old file."""
    values = {tag: tags[tag] for tag in _DESCRIPTIVE if tag in tags}
    found = {
        tag: value.encode("latin-1", "replace") if isinstance(value, str) else value
        for tag, value in values.items()
    }
    for directory in (_EXIF_IFD, _GPS_IFD):
        inner = {
            tag: v
            for tag, v in tags.get_ifd(directory).items()
            if tag not in (_MAKER_NOTE, _INTEROPERABILITY)
        }
        if inner:
            found[directory] = inner
    return found
