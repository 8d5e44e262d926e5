"""HEIC and JPEG XL, which Pillow reads with plug-ins that are not among the requirements."""

import importlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Plugin:
    """A plug-in of Pillow for one format.

    Attributes:
        format: Pillow's name of the format.
        name: its usual name.
        suffixes: of its files.
        module: what is imported.
        package: what pip installs.
        signature: the first bytes of the format's files.
    """

    format: str
    name: str
    suffixes: tuple[str, ...]
    module: str
    package: str
    signature: re.Pattern[bytes]

    def load(self) -> bool:
        """Register the plug-in with Pillow; return whether it is installed."""
        try:
            module = importlib.import_module(self.module)
        except ImportError:
            return False
        if self is HEIF:
            module.register_heif_opener()
        return True

    @property
    def advice(self) -> str:
        """What to do if it is not installed."""
        return f"{self.name} needs a plug-in of Pillow: pip install {self.package}"


HEIF = Plugin(
    format="HEIF",
    name="HEIC",
    suffixes=(".heic", ".heif", ".hif"),
    module="pillow_heif",
    package="pillow-heif",
    # Some of AVIF's files, which Pillow reads itself, begin so too
    signature=re.compile(rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL),
)
JXL = Plugin(
    format="JXL",
    name="JPEG XL",
    suffixes=(".jxl",),
    module="pillow_jxl",
    package="pillow-jxl-plugin",
    signature=re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
)
ALL = (HEIF, JXL)
BY_SUFFIX = {suffix: plugin for plugin in ALL for suffix in plugin.suffixes}


def of_file(first_bytes: bytes) -> Plugin | None:
    """Return the plug-in for a file that begins so, or None if it needs none."""
    return next((plugin for plugin in ALL if plugin.signature.match(first_bytes)), None)


def advice_for(names: list[str]) -> str:
    """Return what to install to read files that cannot be read; empty if that would not help."""
    suffixes = {Path(name).suffix.lower() for name in names}
    needed = [plugin for plugin in ALL if suffixes & set(plugin.suffixes)]
    return "".join(f"; {plugin.advice}" for plugin in needed)


# --- the header of a JPEG XL (ISO/IEC 18181-1, annex D) -----------------------------------------

# Width to height, and the lowest value and the count of further bits of numbers, by selector
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_DEPTHS = ((8, 0), (10, 0), (12, 0), (1, 6))
_FLOAT_DEPTHS = ((32, 0), (16, 0), (24, 0), (1, 6))
_SIDES = ((1, 9), (1, 13), (1, 18), (1, 30))
_HEADER_BYTES = 32  # as many as the fields up to the depth can take, and more


class _Bits:
    """The bits of a header, the lowest of each byte first."""

    def __init__(self, content: bytes) -> None:
        self.bits = int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        value = self.bits & ((1 << count) - 1)
        self.bits >>= count
        return value

    def number(self, choices: tuple[tuple[int, int], ...]) -> int:
        """Return a number that two bits announce: a lowest value and the count of bits to add."""
        lowest, count = choices[self.take(2)]
        return lowest + self.take(count)

    def size(self) -> tuple[int, int]:
        """Return (height, width)."""
        is_small = self.take(1)
        height = self._side(is_small)
        ratio = self.take(3)
        if ratio == 0:
            return height, self._side(is_small)
        across, down = _RATIOS[ratio]
        return height, height * across // down

    def _side(self, is_small: int) -> int:
        return 8 * (1 + self.take(5)) if is_small else self.number(_SIDES)


def jxl_size(file: IO[bytes]) -> tuple[int, int]:
    """Return (height, width) from a JPEG XL file's header; to open it would decode it.

    Raises:
        SyntaxError: there is no header, as Pillow says it.
    """
    return _Bits(_codestream(file)[2:]).size()


def jxl_bits(path: str | Path) -> int:
    """Return the bits per channel of a JPEG XL file; 8 if it is animated or has a preview.

    Raises:
        OSError: the file cannot be read.
        SyntaxError: there is no header.
    """
    with open(path, "rb") as file:
        header = _Bits(_codestream(file)[2:])
    header.size()
    has_defaults = header.take(1)
    if has_defaults:
        return 8
    has_more_fields = header.take(1)
    if has_more_fields:
        header.take(3)  # the orientation
        has_intrinsic_size = header.take(1)
        if has_intrinsic_size:
            header.size()
        has_preview = header.take(1)
        is_animated = header.take(1)
        if has_preview or is_animated:
            return 8
    is_float = header.take(1)
    return header.number(_FLOAT_DEPTHS if is_float else _DEPTHS)


def jxl_xmp(path: str | Path) -> bytes | None:
    """Return a JPEG XL file's XMP, which the plug-in does not; None if there is none."""
    with open(path, "rb") as file:
        for kind, begin, end in _boxes(file):
            if kind == b"xml ":
                file.seek(begin)
                return file.read(-1 if end is None else end - begin)
    return None


def _codestream(file: IO[bytes]) -> bytes:
    """Return the first bytes of a file's codestream, which may lie in several boxes."""
    file.seek(0)
    found = file.read(_HEADER_BYTES)
    if not found.startswith(b"\xff\x0a"):
        found = b""
    for kind, begin, end in _boxes(file):
        if kind in (b"jxlc", b"jxlp") and len(found) < _HEADER_BYTES:
            begin += 4 if kind == b"jxlp" else 0  # the number of the part
            file.seek(begin)
            length = _HEADER_BYTES if end is None else max(0, end - begin)
            found += file.read(min(_HEADER_BYTES, length))
    if not found.startswith(b"\xff\x0a"):
        raise SyntaxError("no JPEG XL codestream")
    return found


def _boxes(file: IO[bytes]) -> Iterator[tuple[bytes, int, int | None]]:
    """Yield the kind of each box of a container, and where its content begins and ends.

    The end is None for a box that reaches to the end of the file.
    """
    position: int | None = 0
    while position is not None:
        # The length, the kind, perhaps the length again in 64 bits, the content
        file.seek(position)
        header = file.read(16)
        if len(header) < 8 or (position == 0 and not header.startswith(b"\0\0\0\x0cJXL ")):
            return
        length, kind = struct.unpack_from(">I4s", header)
        begin = position + 8
        if length == 1:
            length = int.from_bytes(header[8:], "big")
            begin += 8
        position = position + length if length else None
        if position is not None and position < begin:
            return
        yield kind, begin, position
