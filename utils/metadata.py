"""EXIF, XMP, IPTC, texts, resolution and colour tags of a picture, carried over to its result.

What would be wrong for the new picture is corrected: the orientation becomes 1, since its pixels
are upright; the stored sizes become its own; thumbnails are dropped.
"""

import contextlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

# Tags of a TIFF's first directory that describe the picture; most others say where its pixels lie.
_DESCRIPTIVE = (
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.XResolution,
    Base.YResolution,
    Base.ResolutionUnit,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.Rating,
    Base.RatingPercent,
    Base.Copyright,
    Base.XPTitle,
    Base.XPComment,
    Base.XPAuthor,
    Base.XPKeywords,
    Base.XPSubject,
)
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_EXIF_HEADER = b"Exif\0\0"
_XMP_HEADER_BYTES = 29  # of the name that precedes XMP in a JPEG segment
_JPEG_SEGMENT_BYTES = 65_533
_PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC_RESOURCE = b"8BIM\x04\x04\0\0"  # its number, and an empty name
_IPTC_TAG = 33_723  # of a TIFF
_IPTC_IN_PNG = "Raw profile type iptc"
_STANDARD_COLOURS = {  # what a PNG's colour chunks say of sRGB, which is what viewers assume anyway
    b"cICP": struct.pack("4B", 1, 13, 0, 1),
    b"gAMA": struct.pack(">I", 45_455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
_NOT_TEXTS = ("XML:com.adobe.xmp", "Raw profile type ")


@dataclass
class Metadata:
    """What describes a picture besides its pixels; each is None if absent.

    Attributes:
        exif: EXIF block that begins with its byte order.
        xmp: XMP as XML.
        dpi: pixels per inch (x, y).
        iptc: IPTC-IIM records, such as title, keywords and copyright.
        texts: of a PNG, by keyword, such as the parameters of image generators.
        colours: what the values mean if it is not sRGB, as chunks of a PNG, by name: cICP (as for
            HDR), gAMA, cHRM.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    iptc: bytes | None = None
    texts: dict[str, str] | None = None
    colours: dict[bytes, bytes] | None = None


# --- reading ------------------------------------------------------------------------------------


def read_metadata(image: Image.Image) -> Metadata:
    """Return the metadata of an image opened by Pillow; damaged metadata count as absent."""
    exif = image.info.get("exif")
    if exif is None:  # a TIFF has it among its own tags
        with contextlib.suppress(Exception):  # untrusted tags can make Pillow raise anything
            exif = _exif_of_tiff(image.getexif())
    if exif is not None:
        exif = exif.removeprefix(_EXIF_HEADER)
    xmp = image.info.get("xmp")
    if not isinstance(xmp, bytes):
        xmp = None
    texts = {}
    with contextlib.suppress(Exception):  # as above
        texts = dict(getattr(image, "text", {}))
    iptc = None
    with contextlib.suppress(Exception):
        iptc = _read_iptc(image, texts)
    own = {
        name: text
        for name, text in texts.items()
        if not name.startswith(_NOT_TEXTS) or (name == _IPTC_IN_PNG and iptc is None)
    }
    colours = _heif_colours(image) if image.format == "HEIF" else None
    return Metadata(exif or None, xmp, _read_dpi(image), iptc or None, own or None, colours)


def _read_iptc(image: Image.Image, texts: dict[str, str]) -> bytes | None:
    """Return the IPTC records of a JPEG, a TIFF, or a PNG of ImageMagick or of ours."""
    if _IPTC_IN_PNG in texts:
        _blank, _name, _length, *lines = texts[_IPTC_IN_PNG].split("\n")
        content = bytes.fromhex("".join(lines))
        if content.startswith(b"\x1c"):
            return content
        start = len(_PHOTOSHOP + _IPTC_RESOURCE)
        (size,) = struct.unpack_from(">I", content, start)
        is_iptc = content[:start] == _PHOTOSHOP + _IPTC_RESOURCE and start + 4 + size <= len(
            content
        )
        return content[start + 4 : start + 4 + size] if is_iptc else None
    if image.format == "TIFF":
        # The raw bytes: many programs declare them as 32-bit numbers, and some swap those
        stored = image.tag.tagdata.get(_IPTC_TAG, b"")  # type: ignore[attr-defined]
        swapped = b"".join(stored[at : at + 4][::-1] for at in range(0, len(stored), 4))
        found = (records for records in (stored, swapped) if records.startswith(b"\x1c"))
        return next(found, None)
    return image.info.get("photoshop", {}).get(0x0404)


def _exif_of_tiff(tags: Image.Exif) -> bytes | None:
    """Return an EXIF block of those tags of a TIFF that describe the picture."""
    described = _described(tags)
    if not described:
        return None
    exif = Image.Exif()
    exif.update(described)
    return exif.tobytes()


def _read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return the resolution of an image, or None if it is absent or implausible."""
    if image.format == "TIFF" and Base.XResolution not in getattr(image, "tag_v2", {}):
        return None  # for which Pillow would give one dot per inch
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    if 1 <= x <= 65_535 and 1 <= y <= 65_535:
        return x, y
    return None


def _heif_colours(image: Image.Image) -> dict[bytes, bytes] | None:
    """Return a PNG's cICP chunk for a HEIC without profile that is not in sRGB, such as HDR."""
    if "icc_profile" in image.info or "nclx_profile" not in image.info:
        return None
    stated = image.info["nclx_profile"]
    primaries = int(stated["color_primaries"])
    transfer = int(stated["transfer_characteristics"])
    if primaries in (1, 2) and transfer not in (16, 18):  # sRGB's or unknown, and no HDR
        return None
    return {b"cICP": struct.pack("4B", primaries, 13 if transfer == 2 else transfer, 0, 1)}


def read_png_colours(path: str | Path, has_profile: bool) -> dict[bytes, bytes] | None:
    """Return the chunks that give a PNG's values another meaning than sRGB's; None if none does.

    Pillow skips cICP. In the order of precedence: cICP, a profile or sRGB, gAMA and cHRM.
    """
    found = {}
    with open(path, "rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name == b"IDAT":
                break
            has_profile = has_profile or name == b"sRGB"
            if name in _STANDARD_COLOURS and length == len(_STANDARD_COLOURS[name]):
                found[name] = file.read(length)
                length = 0
            file.seek(length + 4, 1)  # the checksum, which Pillow has verified
    if has_profile:
        found = {name: chunk for name, chunk in found.items() if name == b"cICP"}
    for name, chunk in _STANDARD_COLOURS.items():
        if found.get(name) == chunk:
            del found[name]
    return found or None


# --- writing ------------------------------------------------------------------------------------


def save_options(metadata: Metadata, file_format: str, height: int, width: int) -> dict[str, Any]:
    """Return the options with which Pillow saves metadata beside pixels of this size.

    What the format cannot hold is left out; see `left_out`.
    """
    exif = fitted_exif(metadata.exif, height, width) if metadata.exif else None
    if metadata.texts and not metadata.exif and file_format != "PNG":
        exif = _comment(metadata.texts)
    xmp = fitted_xmp(metadata.xmp, height, width) if metadata.xmp else None
    options: dict[str, Any] = {}
    if metadata.dpi and file_format != "WEBP":
        options["dpi"] = metadata.dpi

    if file_format == "TIFF":
        options["tiffinfo"] = _tiff_tags(exif, xmp, metadata.iptc)
        return options
    if file_format == "BMP":
        return options
    if file_format == "JPEG" and metadata.iptc and (segment := _photoshop_segment(metadata.iptc)):
        options["extra"] = segment
    if exif and _holds(file_format, len(_EXIF_HEADER + exif)):
        options["exif"] = _EXIF_HEADER + exif
    if file_format == "PNG":
        options["pnginfo"] = _png_chunks(xmp, metadata)
    elif xmp and _holds(file_format, _XMP_HEADER_BYTES + len(xmp)):
        options["xmp"] = xmp
    return options


def _holds(file_format: str, length: int) -> bool:
    """Tell whether a format holds EXIF or XMP of so many bytes, with its header."""
    if file_format == "JPEG":
        return length <= _JPEG_SEGMENT_BYTES  # Pillow refuses what does not fit into one segment
    return file_format != "BMP"


def left_out(metadata: Metadata, file_format: str, height: int, width: int) -> list[str]:
    """Return what a format cannot hold beside pixels of this size, in words for the user."""
    names = []
    if metadata.colours and file_format != "PNG":
        chunks = ", ".join(name.decode() for name in metadata.colours)
        names.append(f"its colour tags ({chunks}), so that colours may look different")
    if metadata.exif and not _holds(file_format, len(_EXIF_HEADER + metadata.exif)):
        names.append(f"its EXIF ({len(metadata.exif):,} bytes)")
    xmp = fitted_xmp(metadata.xmp, height, width) if metadata.xmp else b""
    if xmp and not _holds(file_format, _XMP_HEADER_BYTES + len(xmp)):
        names.append(f"its XMP ({len(xmp):,} bytes)")
    if metadata.iptc:
        segment = file_format != "JPEG" or _photoshop_segment(metadata.iptc)
        if file_format not in ("PNG", "TIFF", "JPEG") or not segment:
            names.append("its IPTC records (title, keywords, copyright)")
    if metadata.texts and file_format != "PNG":
        comment = _EXIF_HEADER + _comment(metadata.texts)
        too_long = file_format == "JPEG" and len(comment) > _JPEG_SEGMENT_BYTES
        if metadata.exif or too_long or file_format == "BMP":
            keywords = ", ".join(list(metadata.texts)[:5])
            shown = "".join(letter if letter.isprintable() else "?" for letter in keywords)
            names.append(f"its texts ({shown})")
    return names


def _png_chunks(xmp: bytes | None, metadata: Metadata) -> PngImagePlugin.PngInfo:
    """Return a PNG's colour chunks and texts.

    Texts are not compressed, since Pillow limits compressed ones by default.
    """
    info = PngImagePlugin.PngInfo()
    for kind, chunk in (metadata.colours or {}).items():
        info.add(kind, chunk)
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp.decode(errors="replace"))
    if metadata.iptc:
        resource = _photoshop_resource(metadata.iptc).hex()
        lines = [resource[start : start + 72] for start in range(0, len(resource), 72)]
        length = f"{len(resource) // 2:8d}"
        info.add_text(_IPTC_IN_PNG, "\n".join(["", "iptc", length, *lines, ""]))
    for name, text in (metadata.texts or {}).items():
        info.add_text(name, text)
    return info


def _comment(texts: dict[str, str]) -> bytes:
    """Return an EXIF block whose comment holds texts.

    Programs that generate images store their parameters so in a JPEG.
    """
    lines = [text if name == "parameters" else f"{name}: {text}" for name, text in texts.items()]
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"UNICODE\0" + "\n".join(lines).encode("utf-16-be")
    return exif.tobytes().removeprefix(_EXIF_HEADER)


def _photoshop_resource(iptc: bytes) -> bytes:
    """Return IPTC records as JPEGs and PNGs hold them, in a resource of Photoshop's."""
    padding = bytes(len(iptc) % 2)
    return _PHOTOSHOP + _IPTC_RESOURCE + struct.pack(">I", len(iptc)) + iptc + padding


def _photoshop_segment(iptc: bytes) -> bytes | None:
    """Return a JPEG segment that holds IPTC records, or None if they are too long for one."""
    resource = _photoshop_resource(iptc)
    if len(resource) > _JPEG_SEGMENT_BYTES:
        return None
    return b"\xff\xed" + struct.pack(">H", 2 + len(resource)) + resource


def fitted_exif(block: bytes, height: int, width: int) -> bytes | None:
    """Return an EXIF block that fits an upright picture of this size, or None if it is damaged.

    The numbers are changed in place; all other bytes stay as they are.
    """
    # Pillow can edit EXIF too, but only by writing the block anew: Image.Exif.tobytes moves the
    # maker note, whose offsets count from the start of the block, and turns every letter that is
    # not ASCII into a question mark.
    data = bytearray(block)
    byte_order = _BYTE_ORDERS.get(block[:4])
    if byte_order is None:
        return None
    try:
        main = _Directory(data, byte_order, offset_at=4)
        main.set_long(Base.ImageWidth, width)
        main.set_long(Base.ImageLength, height)
        main.set_short(Base.Orientation, 1)
        if IFD.Exif in main.entries:
            details = _Directory(data, byte_order, offset_at=main.entries[IFD.Exif] + 8)
            details.set_long(Base.ExifImageWidth, width)
            details.set_long(Base.ExifImageHeight, height)
        main.unlink_next()  # which describes the thumbnail
    except struct.error:
        return None
    return bytes(data)


def take_orientation(tiff: bytearray) -> int:
    """Set the orientation in a TIFF file's bytes to 1 (upright), and return what it was."""
    byte_order = _BYTE_ORDERS.get(bytes(tiff[:4]))
    if byte_order is None:
        return 1
    main = _Directory(tiff, byte_order, offset_at=4)
    if Base.Orientation not in main.entries:
        return 1
    entry_at = main.entries[Base.Orientation]
    (orientation,) = struct.unpack_from(f"{byte_order}H", tiff, entry_at + 8)
    main.set_short(Base.Orientation, 1)
    return orientation


class _Directory:
    """A directory in an EXIF block; its methods change the block in place.

    A directory is a count (2 bytes), entries of 12 bytes (tag, type, count, value or its offset),
    and the offset of the next directory.
    """

    def __init__(self, data: bytearray, byte_order: str, offset_at: int):
        """Read the directory whose offset stands at `offset_at`."""
        self.data = data
        self.byte_order = byte_order
        (offset,) = struct.unpack_from(f"{byte_order}I", data, offset_at)
        (count,) = struct.unpack_from(f"{byte_order}H", data, offset)
        self.next_at = offset + 2 + 12 * count
        self.entries: dict[int, int] = {}  # tag: where its entry begins
        for entry_at in range(offset + 2, self.next_at, 12):
            (tag,) = struct.unpack_from(f"{byte_order}H", data, entry_at)
            self.entries[tag] = entry_at

    def set_long(self, tag: int, value: int) -> None:
        """Set a tag to a 32-bit number, if it is there."""
        if tag in self.entries:
            entry = (TiffTags.LONG, 1, value)
            struct.pack_into(f"{self.byte_order}HII", self.data, self.entries[tag] + 2, *entry)

    def set_short(self, tag: int, value: int) -> None:
        """Set a tag to a 16-bit number, if it is there."""
        if tag in self.entries:
            entry = (TiffTags.SHORT, 1, value)
            struct.pack_into(f"{self.byte_order}HIHxx", self.data, self.entries[tag] + 2, *entry)

    def unlink_next(self) -> None:
        """Make this directory the last."""
        struct.pack_into(f"{self.byte_order}I", self.data, self.next_at, 0)


def fitted_xmp(xmp: bytes, height: int, width: int) -> bytes:
    """Return XMP that fits an upright picture of this size."""
    # Pillow reads XMP and stores it, but has no function that edits it
    for prefix in (b"xmp", b"xap"):
        closing = b"</%s:Thumbnails>" % prefix
        begin = xmp.find(b"<%s:Thumbnails" % prefix)
        end = xmp.rfind(closing)
        if 0 <= begin < end:
            xmp = xmp[:begin] + xmp[end + len(closing) :]
    values = {
        b"tiff:Orientation": 1,
        b"tiff:ImageWidth|exif:PixelXDimension": width,
        b"tiff:ImageLength|exif:PixelYDimension": height,
    }
    for names, number in values.items():
        xmp = re.sub(rb"((?:%s)(?:=[\"']|>))\d+" % names, rb"\g<1>%d" % number, xmp)
    return xmp


def _tiff_tags(exif: bytes | None, xmp: bytes | None, iptc: bytes | None) -> ImageFileDirectory_v2:
    """Return TIFF tags that hold an EXIF block, if Pillow can read it, XMP and IPTC."""
    info = ImageFileDirectory_v2()
    if exif:
        with contextlib.suppress(Exception):  # untrusted tags can make Pillow raise anything
            tags = Image.Exif()
            tags.load(exif)
            described = ImageFileDirectory_v2()
            described.update(_described(tags))
            described.tobytes()  # raises what saving would raise
            info = described
    if xmp:
        info[TiffImagePlugin.XMP] = xmp
    if iptc:
        info.tagtype[_IPTC_TAG] = TiffTags.UNDEFINED
        info[_IPTC_TAG] = iptc
    return info


# --- reading and writing TIFF -------------------------------------------------------------------


def _described(tags: Image.Exif) -> dict[int, Any]:
    """Return the tags that describe the picture, the EXIF and GPS directories included.

    Entries of those that point into the old file are left out.
    """
    found: dict[int, Any] = {}
    for tag in _DESCRIPTIVE:
        if tag in tags:
            value = tags[tag]
            # Pillow reads text as Latin-1, but would write it as ASCII
            found[tag] = value.encode("latin-1", "replace") if isinstance(value, str) else value
    for directory in (IFD.Exif, IFD.GPSInfo):
        inner = dict(tags.get_ifd(directory))
        inner.pop(IFD.MakerNote, None)
        inner.pop(IFD.Interop, None)
        if inner:
            found[directory] = inner
    return found
