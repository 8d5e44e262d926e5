"""Images decoded once into a memory-mapped file, so that reading a crop means slicing an array.

A cache file holds the pixels of every image of a folder, then an index as JSON, then the index's
length, its CRC-32 and a magic word. Its name is a digest of everything that determines its content:
the folders, the scale, the names, sizes and times of the image files, and the version of the
degradation.

At every start, each process checks the index and the size of the file; if they are wrong, the cache
is built again. To read all pixels at every start would take minutes for a large folder, so they are
checked later: each process verifies an image's checksum when it first uses the image. A damaged
image is decoded from its own file instead, so no process uses a wrong pixel.
"""

import contextlib
import hashlib
import json
import math
import os
import struct
import sys
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from utils import cli, distributed, files, images
from utils.processes import map_in_processes

CACHE_FOLDER = ".srgan-cache"
_MAGIC = b"srgan-cache-2\n\0\0"
_TAIL = struct.Struct("<QI16s")  # of a file: the index's length, its CRC-32 and the magic word


@dataclass
class Entry:
    """One image: its path in the folder, its files' size and time, its pixels in the cache."""

    name: str
    file_bytes: int = 0  # of HR and, if it is read from a file, LR together
    mtime_ns: int = 0  # of the newer one
    lr_name: str | None = None
    height: int = 0  # of HR, a multiple of the scale; 0 if it is smaller or cannot be read
    width: int = 0
    offset: int = 0
    checksum: int = 0  # CRC-32 of its pixels in the cache; 0 without a cache
    error: str | None = None


class LrMaker(Protocol):
    """What the cache needs of a degradation (see degradations.py)."""

    @property
    def version(self) -> str:
        """The name and a number, such as "photo-1"."""

    @property
    def name(self) -> str:
        """The version without its number."""

    def degrade_image(self, hr: np.ndarray, upscale: int, name: str) -> np.ndarray:
        """Return the LR image of an HR image (H, W, 3) uint8, always the same."""


@dataclass(frozen=True)
class Layout:
    """What is decoded for every image: HR, LR and, for validation, LR enlarged by bicubic."""

    folder: Path
    upscale: int
    lr: Path | LrMaker  # a folder of LR files, or what makes LR of HR
    enlarged: bool = False  # whether the enlarged LR is kept too

    @property
    def lr_folder(self) -> Path | None:
        """The folder of LR files, if there is one."""
        return self.lr if isinstance(self.lr, Path) else None

    def shapes(self, entry: Entry) -> list[tuple[int, int, int]]:
        """Return the shapes (H, W, 3) of an image's arrays: HR, LR and, if kept, enlarged LR."""
        hr = (entry.height, entry.width, 3)
        lr = (entry.height // self.upscale, entry.width // self.upscale, 3)
        return [hr, lr, hr] if self.enlarged else [hr, lr]

    def size(self, entry: Entry) -> int:
        """Return the bytes of an image's arrays."""
        return sum(map(math.prod, self.shapes(entry)))

    def decode(self, entry: Entry) -> list[np.ndarray]:
        """Return an image's uint8 arrays (H, W, 3) in the order of `shapes`.

        There are none if the image is smaller than the scale.

        Raises:
            OSError: a file cannot be opened.
            UserError: a file is damaged, or LR does not fit HR.
        """
        whole = images.read_picture(self.folder / entry.name).rgb
        hr = images.crop_to_multiple(whole, self.upscale)
        if not hr.size:
            return []
        if isinstance(self.lr, Path):
            assert entry.lr_name is not None  # `_pair` has found it
            height, width = whole.shape[:2]
            lr = self._read_lr(self.lr / entry.lr_name, height, width)
        else:
            lr = self.lr.degrade_image(hr, self.upscale, entry.name)
        return [hr, lr, images.upscale_bicubic(lr, self.upscale)] if self.enlarged else [hr, lr]

    def _read_lr(self, path: Path, height: int, width: int) -> np.ndarray:
        """Read an HR image's LR image; its sides are HR's over the scale, rounded down or up."""
        lr = images.read_picture(path).rgb
        lr_height, lr_width = lr.shape[:2]
        rows = height // self.upscale
        columns = width // self.upscale
        if not (
            rows <= lr_height <= -(-height // self.upscale)
            and columns <= lr_width <= -(-width // self.upscale)
        ):
            text = f"{path}: {lr_width}x{lr_height} pixels do not fit the HR image of "
            text += f"{width}x{height} at x{self.upscale}"
            scale = round(height / lr_height)
            if lr_height > height and lr_width > width:
                text += ": it is larger; are the folders swapped?"
            elif scale == round(width / lr_width) != self.upscale:
                text += ": it is as large" if scale == 1 else f": it is an LR image for x{scale}"
            raise cli.UserError(text)
        return lr[:rows, :columns]


class ImageStore:
    """The arrays of every image of a folder; made by `ImageStore.open`.

    They are read from a cache file or, without one, decoded at each access.
    """

    def __init__(
        self, layout: Layout, entries: list[Entry], cache_file: Path | None, skip_bad: bool
    ):
        self.layout = layout
        self.cache_file = cache_file
        self.bad = [entry for entry in entries if entry.error]
        if self.bad and not skip_bad:
            reasons = cli.listed([f"{entry.name}: {entry.error}" for entry in self.bad], "; ")
            count = cli.counted(len(self.bad), "image")
            raise cli.UserError(
                f"{layout.folder}: {count} cannot be read: {reasons}. "
                "Fix or remove them; train.py leaves them out with --skip-bad-images"
            )
        self.entries = [entry for entry in entries if not entry.error]
        self._arrays: list[list[np.ndarray]] | None = None
        self._checked: set[int] = set()  # indices of images whose pixels were verified
        self._damaged: set[int] = set()

    @classmethod
    def open(
        cls,
        layout: Layout,
        cache_folder: str | Path | None,
        skip_bad: bool = False,
        processes: int | None = None,
        headers_only: bool = False,
    ) -> Self:
        """Open a folder of images through its cache; build the cache if it is missing or damaged.

        Args:
            layout: what is decoded.
            cache_folder: where the cache is; None to decode images at each access, and once now to
                find damaged ones.
            skip_bad: leave out images that cannot be read.
            processes: how many decode; None for one per core.
            headers_only: without a cache, read only the images' headers now.

        Raises:
            UserError: no such folder, no image in it, or images that cannot be read or have no
                fitting LR image, unless `skip_bad`.
            OSError: the cache cannot be written, or there is too little space on the disk.
        """
        entries = _list_entries(layout)

        # Without a cache
        if cache_folder is None:
            if headers_only:
                entries = [_measure_one(layout, entry) for entry in entries]
            else:
                entries = _decode_all(layout, entries, None, processes)
            return cls(layout, entries, None, skip_bad)

        # Read the cache, or build it
        cache_folder = Path(cache_folder)
        path = cache_folder / _cache_name(layout, entries)
        cached = _read_entries(layout, path)
        if cached is None:
            with files.lock(files.make_folder(cache_folder) / "lock", wait=True):
                # Another process may have built it by now
                cached = _read_entries(layout, path, tell=True)
                if cached is None:
                    files.remove_leftovers(cache_folder)
                    for superseded in cache_folder.glob(path.name.rsplit("-", 1)[0] + "-*"):
                        with contextlib.suppress(PermissionError):  # on Windows: in use
                            superseded.unlink()
                    cached = _build_cache(layout, entries, path, processes)

        # Map it now: a later start with other images may delete the file, but not the mapping
        store = cls(layout, cached, path, skip_bad)
        store._arrays = store._map(path)
        return store

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """Return the uint8 arrays (H, W, 3) of image `index`, as `Layout.decode` does.

        Raises:
            UserError: the image is damaged in the cache and cannot be decoded again.
        """
        if self.cache_file is None:
            return self.layout.decode(self.entries[index])
        if self._arrays is None:
            self._arrays = self._map(self.cache_file)
        if index not in self._checked:
            self._checked.add(index)
            if _checksum(self._arrays[index]) != self.entries[index].checksum:
                self._damaged.add(index)
                if len(self._damaged) == 1:
                    print(
                        f"{self.cache_file}: {self.entries[index].name} has changed since it was "
                        "written; damaged images are decoded at each use. Delete the cache to "
                        "build it again",
                        file=sys.stderr,
                    )
        if index in self._damaged:
            return self._decode_again(index)
        return self._arrays[index]

    def _decode_again(self, index: int) -> list[np.ndarray]:
        """Decode an image that is damaged in the cache; raise UserError if its file has changed."""
        entry = self.entries[index]
        arrays = self.layout.decode(entry)
        if _checksum(arrays) != entry.checksum:
            raise cli.UserError(
                f"{self.cache_file}: {entry.name} is damaged, and its file no longer gives the "
                "same pixels; delete the cache to build it again"
            )
        return arrays

    def _map(self, cache_file: Path) -> list[list[np.ndarray]]:
        """Map the cache file, and slice it into the arrays of all images."""
        pixels = np.asarray(np.memmap(cache_file, mode="r"))
        all_arrays = []
        for entry in self.entries:
            arrays = []
            offset = entry.offset
            for shape in self.layout.shapes(entry):
                size = math.prod(shape)
                arrays.append(pixels[offset : offset + size].reshape(shape))
                offset += size
            all_arrays.append(arrays)
        return all_arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}  # a worker process maps the file itself

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Return (name, file bytes, pixel checksum or 0) of every image.

        A resumed run compares them with those it was started with.
        """
        return [(entry.name, entry.file_bytes, entry.checksum) for entry in self.entries]


def cache_folder_for(folder: str | Path, chosen: Path | None, fallback: Path) -> Path:
    """Return where the cache of an image folder goes.

    It is the chosen folder, or else one inside the image folder, or one in `fallback` if the image
    folder cannot be written.
    """
    if chosen is not None:
        return chosen
    own = Path(folder, CACHE_FOLDER)
    writable = os.access(own if own.exists() else folder, os.W_OK)
    return own if writable else fallback / CACHE_FOLDER


# --- what lies in the folders -------------------------------------------------------------------


def _list_entries(layout: Layout) -> list[Entry]:
    entries = [Entry(name) for name in images.list_image_names(layout.folder)]
    if layout.lr_folder is not None:
        _pair(entries, layout.lr_folder, layout.upscale)
    for entry in entries:
        paths = [os.path.join(layout.folder, entry.name)]
        if layout.lr_folder is not None and entry.lr_name is not None:
            paths.append(os.path.join(layout.lr_folder, entry.lr_name))
        with contextlib.suppress(OSError):  # a dangling link: decoding will report it
            states = [os.stat(path) for path in paths]
            entry.file_bytes = sum(state.st_size for state in states)
            entry.mtime_ns = max(state.st_mtime_ns for state in states)
    return entries


def _pair(entries: list[Entry], lr_folder: Path, upscale: int) -> None:
    """Find the LR image of every HR image: `0801.png` or `0801x4.png`, with any suffix.

    One in the same subfolder is preferred. An image without an LR image of its own gets an error.
    """
    # LR images by path and by name alone, both without suffix
    by_place: dict[Path, list[Path]] = {}
    by_name: dict[str, list[Path]] = {}
    for path in map(Path, images.list_image_names(lr_folder)):
        place = path.with_suffix("")
        by_place.setdefault(place, []).append(path)
        by_name.setdefault(place.name, []).append(path)

    # Candidates of every HR image
    candidates: list[list[Path]] = []
    for entry in entries:
        place = Path(entry.name).with_suffix("")
        names = (place.name, f"{place.name}x{upscale}")
        found: list[Path] = []
        for name in names:
            found = found or by_place.get(place.with_name(name), [])
        for name in names:
            found = found or by_name.get(name, [])
        candidates.append(found)

    # One for one
    uses = Counter(paths[0] for paths in candidates if len(paths) == 1)
    for entry, paths in zip(entries, candidates, strict=True):
        if len(paths) == 1 and uses[paths[0]] == 1:
            entry.lr_name = paths[0].as_posix()
        elif len(paths) == 1:
            count = uses[paths[0]]
            entry.error = f"{lr_folder / paths[0]} is the LR image of {count} HR images"
        else:
            problem = "no LR image"
            if paths:
                listed = ", ".join(str(lr_folder / path) for path in paths[:3])
                problem = f"several LR images ({listed})"
            stem = Path(entry.name).stem
            named_so = f"named {stem} or {stem}x{upscale} (with any suffix)"
            entry.error = f"{problem} {named_so} in {lr_folder}"


# --- the cache file -----------------------------------------------------------------------------


def _cache_name(layout: Layout, entries: list[Entry]) -> str:
    """Name the cache file by all that determines its content.

    The part before the last hyphen stays the same if the images or the number of the degradation's
    version change.
    """
    if isinstance(layout.lr, Path):
        name = "bicubic"
        version = "files-2"  # before, caches could hold LR files of another scale, cut to size
    else:
        name = layout.lr.name
        version = layout.lr.version
    kind = f"x{layout.upscale}"
    if layout.enlarged:
        kind += "-validation"
    kind += f"-{name}".removesuffix("-bicubic")
    lr_folder = layout.lr_folder and layout.lr_folder.resolve()
    place = _digest([str(layout.folder.resolve()), str(lr_folder)])
    states = [[entry.name, entry.lr_name, entry.file_bytes, entry.mtime_ns] for entry in entries]
    return f"{kind}-{place}-{_digest([version, states])}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _read_entries(layout: Layout, path: Path, tell: bool = False) -> list[Entry] | None:
    """Return the entries of a usable cache file, or None if it has to be built.

    With `tell`, print why it is built again.
    """
    if not path.exists():
        return None
    try:
        entries = _read_index(layout, path)
        if distributed.first_on_machine():
            _check_left_out(layout, entries)
    except ValueError as error:
        if tell:
            print(f"{path}: {error}; decoding the images again", file=sys.stderr)
        return None
    return entries


def _read_index(layout: Layout, path: Path) -> list[Entry]:
    """Return the entries at the end of a cache file.

    Raises:
        ValueError: it is damaged or of another version.
    """
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END) - _TAIL.size
        file.seek(max(0, end))
        tail = file.read()
        length, checksum, magic = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, 0, b"")
        if magic != _MAGIC or length > end:
            raise ValueError("cut short or of another version")
        file.seek(end - length)
        index = file.read(length)
    if zlib.crc32(index) != checksum:
        raise ValueError("damaged index")
    entries = [Entry(**entry) for entry in json.loads(index)]
    if sum(map(layout.size, entries)) != end - length:
        raise ValueError("its size is not what its index says")
    return entries


def _check_left_out(layout: Layout, entries: list[Entry]) -> None:
    """Raise ValueError if an image that could not be read when the cache was built now can."""
    for entry in entries:
        paired = layout.lr_folder is None or entry.lr_name is not None
        if entry.error and paired:
            again = _decode_one(layout, None, replace(entry, error=None))
            if not again.error:
                raise ValueError(
                    f"{entry.name} could not be read when the cache was built, and now can"
                )


def _build_cache(
    layout: Layout, entries: list[Entry], path: Path, processes: int | None
) -> list[Entry]:
    """Decode every image into a new cache file, which is whole or absent; return its entries."""
    entries = map_in_processes(
        partial(_measure_one, layout), entries, processes, f"sizes of {layout.folder.name}"
    )
    total = 0
    for entry in entries:
        entry.offset = total
        total += layout.size(entry)
    files.check_free_space(
        path.parent, total, "name a folder on another disk with --cache DIR, or pass --no-cache"
    )
    with files.write_atomic(path) as file:
        file.truncate(total)
        entries = _decode_all(layout, entries, file.name, processes)
        file.seek(total)
        index = json.dumps([asdict(entry) for entry in entries]).encode()
        file.write(index + _TAIL.pack(len(index), zlib.crc32(index), _MAGIC))
    return entries


def _measure_one(layout: Layout, entry: Entry) -> Entry:
    """Fill in the size of an image from its header alone, before any rotation by EXIF."""
    if entry.error:
        return entry
    try:
        sides = images.read_size(layout.folder / entry.name)
    except (OSError, ValueError) as error:
        entry.error = _reason(layout, entry, error)
        return entry
    height, width = (side - side % layout.upscale for side in sides)
    if height and width:
        entry.height = height
        entry.width = width
    return entry


def _decode_all(
    layout: Layout, entries: list[Entry], pixel_file: str | None, processes: int | None
) -> list[Entry]:
    """Decode every image, into the pixel file if there is one, and fill in the entries."""
    return map_in_processes(
        partial(_decode_one, layout, pixel_file),
        entries,
        processes,
        f"decoding {layout.folder.name}",
    )


def _decode_one(layout: Layout, pixel_file: str | None, entry: Entry) -> Entry:
    if entry.error:
        return entry
    try:
        arrays = layout.decode(entry)
        height, width = arrays[0].shape[:2] if arrays else (0, 0)
        if pixel_file is not None and {height, width} != {entry.height, entry.width}:
            raise ValueError("its header states a size that its pixels do not have")
    except (OSError, ValueError) as error:
        entry.error = _reason(layout, entry, error)
        return entry
    entry.height, entry.width = height, width
    if pixel_file is not None:
        entry.checksum = _write_pixels(pixel_file, entry.offset, arrays)
    return entry


def _write_pixels(pixel_file: str, offset: int, arrays: list[np.ndarray]) -> int:
    """Write an image's arrays and return their checksum."""
    with open(pixel_file, "r+b") as file:
        file.seek(offset)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
    return _checksum(arrays)


def _checksum(arrays: list[np.ndarray]) -> int:
    """Return the CRC-32 of the pixels of arrays."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum


def _reason(layout: Layout, entry: Entry, error: Exception) -> str:
    return cli.describe(error).removeprefix(f"{layout.folder / entry.name}: ")
