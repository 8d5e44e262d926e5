"""Picture files as a stranger or a broken disk makes them: bits flipped, cut, headers and dimensions rewritten."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = {"png": {}, "jpg": {"quality": 90}, "webp": {"quality": 90}, "tif": {"compression": "tiff_lzw"}, "bmp": {}, "gif": {}}
MODES = ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "1")


def originals(seed: int = 0) -> list[tuple[str, bytes]]:
    """(suffix, content) of good small files: every format in every mode that it can hold."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((24, 20), Image.Resampling.BICUBIC)
    found = []
    for suffix, options in FORMATS.items():
        for mode in MODES:
            if mode == "I;16":
                image = Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257)
            else:
                image = smooth.convert(mode)
            file = io.BytesIO()
            try:
                image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
            except (OSError, ValueError, KeyError):
                continue  # a mode that the format does not have
            found.append((suffix, file.getvalue()))
    return found


def with_absurd_size(suffix: str, content: bytes, width: int, height: int) -> bytes:
    """The file with other dimensions in its header (its checksum made to fit), where the format keeps them at a known place."""
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
        data[24:30] = (width - 1 & 0xFFFFFF).to_bytes(3, "little") + (height - 1 & 0xFFFFFF).to_bytes(3, "little")
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
            sides = [(0, 0), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (65535, 65535), (30000, 30000), (0, 20), (25, 20)]
            data = bytearray(with_absurd_size(suffix, content, *sides[int(rng.integers(len(sides)))]))
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
