"""Damaged picture files: bits flipped, cut short, headers and dimensions rewritten."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

FORMATS = {
    "png": {},
    "jpg": {"quality": 90},
    "webp": {"quality": 90},
    "tif": {"compression": "tiff_lzw"},
    "bmp": {},
    "gif": {},
}
MODES = ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1")
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
    b'exif:PixelXDimension="24" dc:title="XMP title">'
    b"<xmp:Thumbnails><rdf:Alt>AAAA</rdf:Alt></xmp:Thumbnails><tiff:ImageWidth>24"
    b"</tiff:ImageWidth></rdf:Description></x:xmpmeta>"
)


def exif(order: str = "<", width: int = 24, height: int = 20, orientation: int = 1) -> bytes:
    """An EXIF block as cameras write it: non-ASCII text, a maker note, GPS, and a thumbnail."""

    def directory(offset: int, entries: list, following: int = 0) -> bytes:
        """A directory of (tag, type, count, value), and the offset of the next one."""
        head, tail = struct.pack(f"{order}H", len(entries)), b""
        for tag, kind, count, value in entries:
            if isinstance(value, bytes) and len(value) <= 4:
                field = value.ljust(4, b"\0")
            elif isinstance(value, bytes):
                field = struct.pack(f"{order}I", offset + 6 + 12 * len(entries) + len(tail))
                tail += value
            else:
                field = struct.pack(f"{order}{'HI'[kind == 4]}", value).ljust(4, b"\0")
            head += struct.pack(f"{order}HHI", tag, kind, count) + field
        return head + struct.pack(f"{order}I", following) + tail

    artist = "Jürgen ©".encode() + b"\0"
    sizes = [(40962, 3, 1, width), (40963, 3, 1, height)]
    parts = [
        (200, [(37500, 7, 12, b"NoteOfMaker\0"), *sizes, (42036, 2, 9, b"35mm f/2\0")], 0),
        (400, [(1, 2, 2, b"N\0"), (2, 5, 3, struct.pack(f"{order}6I", 52, 1, 30, 1, 0, 1))], 0),
        (600, [(513, 4, 1, 700), (514, 4, 1, 4)], 0),
    ]
    first = [
        (271, 2, 6, b"Maker\0"),
        (274, 3, 1, orientation),
        (315, 2, len(artist), artist),
        (34665, 4, 1, 200),
        (34853, 4, 1, 400),
    ]
    block = bytearray(704)
    block[:8] = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    for offset, entries, following in [(8, first, 600), *parts]:
        content = directory(offset, entries, following)
        block[offset : offset + len(content)] = content
    block[700:] = b"\xff\xd8\xff\xd9"
    return bytes(block)


def described_options(suffix: str, **options) -> dict:
    """Pillow's options to save EXIF, XMP and resolution in a format, as far as Pillow can."""
    block = b"Exif\0\0" + exif(**options)
    if suffix == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        return {"exif": block, "pnginfo": info, "dpi": (300, 300)}
    if suffix == "tif":
        tags = Image.Exif()
        tags.load(block)
        tags[700] = XMP
        return {"exif": tags, "dpi": (300, 300)}
    return {"exif": block, "xmp": XMP, "dpi": (300, 300)}


def originals(seed: int = 0) -> list[tuple[str, bytes]]:
    """(suffix, content) of good small files: every format in every mode that it can hold."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
        (24, 20), Image.Resampling.BICUBIC
    )
    found = []
    for suffix, options in FORMATS.items():
        for mode in MODES:
            if mode == "I;16":
                image = Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257)
            else:
                image = smooth.convert(mode)
            file = io.BytesIO()
            try:
                image.save(
                    file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options
                )
            except (OSError, ValueError, KeyError):
                continue  # a mode that the format does not have
            found.append((suffix, file.getvalue()))
    for suffix in ("jpg", "png", "webp", "tif"):
        file = io.BytesIO()
        smooth.save(
            file,
            {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()),
            **described_options(suffix),
        )
        found.append((suffix, file.getvalue()))
    for suffix in ("gif", "tif"):
        file = io.BytesIO()
        smooth.save(
            file,
            {"tif": "TIFF"}.get(suffix, "GIF"),
            save_all=True,
            append_images=[smooth.rotate(180)],
        )
        found.append((suffix, file.getvalue()))
    return found


def with_absurd_size(suffix: str, content: bytes, width: int, height: int) -> bytes:
    """The file with other dimensions in its header, if the format has them at a known place."""
    data = bytearray(content)
    if suffix == "png":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif suffix == "bmp":
        data[18:26] = struct.pack("<ii", width & 0x7FFFFFFF, height & 0x7FFFFFFF)
    elif suffix == "gif":
        data[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif suffix == "jpg":
        start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[start + 5 : start + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif suffix == "tif":
        for tag, value in ((256, width), (257, height)):
            place = data.find(struct.pack("<HHI", tag, 4, 1))
            place = place if place >= 0 else data.find(struct.pack("<HHI", tag, 3, 1))
            if place >= 0:
                data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF)
    elif suffix == "webp" and data[12:16] == b"VP8X":
        data[24:30] = (width - 1 & 0xFFFFFF).to_bytes(3, "little") + (
            height - 1 & 0xFFFFFF
        ).to_bytes(3, "little")
    return bytes(data)


def mutated(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield `count` (file name, content), the same for the same seed."""
    rng = np.random.default_rng(seed)
    files = originals(seed)
    for index in range(count):
        suffix, content = files[index % len(files)]
        data = bytearray(content)
        kind = ("flip", "cut", "header", "size", "splice", "repeat")[index // len(files) % 6]
        if kind == "flip":
            for place in rng.integers(0, len(data), rng.integers(1, 12)):
                data[place] ^= 1 << int(rng.integers(8))
        elif kind == "cut":
            del data[rng.integers(0, len(data)) :]
        elif kind == "header":
            for place in rng.integers(0, min(64, len(data)), 6):
                data[place] = int(rng.integers(256))
        elif kind == "size":
            sides = [
                (0, 0),
                (1, 2**31 - 1),
                (2**31 - 1, 2**31 - 1),
                (65535, 65535),
                (30000, 30000),
                (0, 20),
                (25, 20),
            ]
            data = bytearray(
                with_absurd_size(suffix, content, *sides[int(rng.integers(len(sides)))])
            )
        elif kind == "splice":
            other = files[int(rng.integers(len(files)))][1]
            data = data[: rng.integers(0, len(data))] + other[rng.integers(0, len(other)) :]
        else:
            start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 200))
            data[start:start] = data[start : start + length] * int(rng.integers(1, 50))
        yield f"{index:05d}_{kind}.{suffix}", bytes(data)


def damaged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield a file's content with a bit flipped, or, every third time, cut short."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        data = bytearray(content)
        if index % 3 == 2:
            del data[rng.integers(0, len(data)) :]
        else:
            data[rng.integers(0, len(data))] ^= 1 << int(rng.integers(8))
        yield bytes(data)
