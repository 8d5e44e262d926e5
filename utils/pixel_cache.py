"""Images decoded once into a memory-mapped file, so that reading a crop of one is a slice."""

import hashlib
import json
import math
import os
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from utils import cli, files, images

CACHE_FOLDER = ".srgan-cache"
_MAGIC = b"srgan-cache-2\n\0\0"
_TAIL = struct.Struct("<QI16s")  # of the file: the length of the index, its CRC-32, and the magic word


@dataclass
class Entry:
    """One image of a folder: its name there, the state of its file, and where its pixels lie in the cache."""

    name: str
    file_bytes: int
    mtime_ns: int
    lr_name: str | None = None
    height: int = 0  # of the HR image, a multiple of the scale; 0 where the file could not be read
    width: int = 0
    offset: int = 0
    checksum: int = 0  # CRC-32 of the HR pixels and then the LR pixels; 0 where nothing was cached
    error: str | None = None


@dataclass(frozen=True)
class Layout:
    """What is decoded for every image: HR and LR at a scale, and for validation the bicubic upscale of LR too."""

    folder: Path
    upscale: int
    lr_folder: Path | None = None
    bicubic: bool = False

    def __post_init__(self):
        for name in ("folder", "lr_folder"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))

    def shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return the shapes (H, W, 3) of HR, LR and, where it is kept, bicubic."""
        hr, lr = (height, width, 3), (height // self.upscale, width // self.upscale, 3)
        return [hr, lr, hr] if self.bicubic else [hr, lr]

    def decode(self, entry: Entry) -> list[np.ndarray]:
        """Decode an image to its uint8 arrays (H, W, 3), in the order of `shapes`; ValueError where it is damaged."""
        hr = images.crop_to_multiple(images.read_picture(self.folder / entry.name).rgb, self.upscale)
        if not hr.size:  # smaller than the scale
            return []
        if self.lr_folder is None:
            lr = images.downscale(hr, self.upscale)
        else:
            lr = images.read_picture(self.lr_folder / entry.lr_name).rgb
            lr = lr[: hr.shape[0] // self.upscale, : hr.shape[1] // self.upscale]
            if lr.shape != self.shapes(*hr.shape[:2])[1]:
                raise cli.UserError(
                    f"{self.lr_folder / entry.lr_name}: {lr.shape[1]}x{lr.shape[0]} pixels do not fit the HR image of "
                    f"{hr.shape[1]}x{hr.shape[0]} at x{self.upscale}"
                )
        return [hr, lr, images.upscale_bicubic(lr, self.upscale)] if self.bicubic else [hr, lr]


class ImageStore:
    """The HR and LR arrays (and bicubic ones) of every image of a folder, from a cache file or decoded at each call.

    Raises:
        ValueError: images that cannot be read, or whose LR image is missing or does not fit, unless `skip_bad`.
    """

    def __init__(self, layout: Layout, entries: list[Entry], cache_file: Path | None, skip_bad: bool):
        self.layout = layout
        self.cache_file = cache_file
        self.bad = [entry for entry in entries if entry.error]
        if self.bad and not skip_bad:
            raise cli.UserError(_name_bad(layout.folder, self.bad))
        self.entries = [entry for entry in entries if not entry.error]
        self._arrays: list[list[np.ndarray]] | None = None

    @classmethod
    def open(
        cls, layout: Layout, cache_folder: str | Path | None, skip_bad: bool = False, processes: int | None = None
    ) -> "ImageStore":
        """Open a folder through its cache in `cache_folder`, building that first where there is none or a damaged one.

        `cache_folder` None: without a cache, every image is decoded at each call.

        Raises:
            ValueError: no such folder, no image in it, or images that cannot be read (unless `skip_bad`).
            OSError: the cache cannot be written, or the disk has no room for it.
        """
        entries = _list_entries(layout)
        if cache_folder is None:
            return cls(layout, _decode_all(layout, entries, None, processes), None, skip_bad)
        cache_folder = Path(cache_folder)
        path = cache_folder / _cache_name(layout, entries)
        cached = _read_whole(layout, path)
        if cached is None:
            with files.lock(files.make_folder(cache_folder) / "lock", wait=True):
                cached = _read_whole(layout, path, tell=True)  # another process may have built it by now
                if cached is None:
                    files.remove_leftovers(cache_folder)
                    for superseded in cache_folder.glob(path.name.rsplit("-", 1)[0] + "-*"):
                        superseded.unlink()
                    _build_cache(layout, entries, path, processes)
                    cached = _read_index(path)
        store = cls(layout, cached, path, skip_bad)
        store._map()  # now: a later start with other images may remove the file under a run that has it open
        return store

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """Return the uint8 arrays (H, W, 3) of image `index`: HR, LR and, where it is kept, bicubic."""
        if self.cache_file is None:
            return self.layout.decode(self.entries[index])
        if self._arrays is None:
            self._map()
        return self._arrays[index]

    def _map(self) -> None:
        """Map the cache file and make the views of all images, so that to get one is to look it up."""
        pixels, self._arrays = np.asarray(np.memmap(self.cache_file, mode="r")), []
        for entry in self.entries:
            arrays, offset = [], entry.offset
            for shape in self.layout.shapes(entry.height, entry.width):
                size = math.prod(shape)
                arrays.append(pixels[offset : offset + size].reshape(shape))
                offset += size
            self._arrays.append(arrays)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_arrays": None}  # a worker process maps the file itself

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Return (name, bytes, pixel checksum or 0) of every image: what a resumed run compares."""
        return [(entry.name, entry.file_bytes, entry.checksum) for entry in self.entries]


def cache_folder_for(folder: str | Path, chosen: Path | None, fallback: Path) -> Path:
    """Return where the pixels of an image folder are kept: where the user chose, in the folder, or else in `fallback`."""
    if chosen is not None:
        return chosen
    own = Path(folder, CACHE_FOLDER)
    return own if os.access(own if own.exists() else folder, os.W_OK) else fallback / CACHE_FOLDER


def _list_entries(layout: Layout) -> list[Entry]:
    entries = []
    for name in images.list_image_names(layout.folder):
        try:
            status = os.stat(os.path.join(layout.folder, name))
        except OSError:  # a link to nothing
            entries.append(Entry(name, 0, 0))
            continue
        entries.append(Entry(name, status.st_size, status.st_mtime_ns))
    if layout.lr_folder is not None:
        _pair(layout, entries)
    return entries


def _pair(layout: Layout, entries: list[Entry]) -> None:
    """Give every HR image the LR image of its name: `0801.png` has `0801.png` or `0801x4.png`, of any suffix.

    One at the same place in the subfolders goes before one that lies elsewhere.
    """
    named: dict[Path | str, list[Path]] = {}  # by the path in the folder, and by the bare name, both without suffix
    for path in images.list_images(layout.lr_folder):
        place = path.relative_to(layout.lr_folder).with_suffix("")
        for key in (place, place.name):
            named.setdefault(key, []).append(path)
    for entry in entries:
        place = Path(entry.name).with_suffix("")
        ends = ("", f"x{layout.upscale}")
        keys = [*(place.with_name(place.name + end) for end in ends), *(place.name + end for end in ends)]
        partners = next((named[key] for key in keys if key in named), [])
        try:
            if len(partners) != 1:
                what = f"several LR images ({', '.join(map(str, partners[:3]))})" if partners else "no LR image"
                stem = place.name
                raise cli.UserError(f"{what} {stem} or {stem}x{layout.upscale} (of any suffix) in {layout.lr_folder}")
            status = partners[0].stat()
        except (OSError, ValueError) as error:
            entry.error = cli.describe(error)
            continue
        entry.lr_name = partners[0].relative_to(layout.lr_folder).as_posix()
        entry.file_bytes += status.st_size
        entry.mtime_ns = max(entry.mtime_ns, status.st_mtime_ns)


def _name_bad(folder: Path, bad: list[Entry]) -> str:
    named = cli.listed([f"{entry.name}: {entry.error}" for entry in bad], "; ")
    return f"{folder}: {len(bad)} image(s) cannot be read: {named}. Mend or remove them, or pass --skip-bad-images"


# --- the cache file: pixels, then the index as JSON, then its length, its CRC-32 and a magic word -------------------


def _cache_name(layout: Layout, entries: list[Entry]) -> str:
    """Name the cache after its folders and scale, and then after the files' names, sizes and times."""
    kind = f"x{layout.upscale}" + ("-validation" if layout.bicubic else "")
    place = _digest([str(layout.folder.resolve()), str(layout.lr_folder and layout.lr_folder.resolve())])
    return f"{kind}-{place}-{_digest([[entry.name, entry.lr_name, entry.file_bytes, entry.mtime_ns] for entry in entries])}"


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _read_index(path: Path) -> list[Entry]:
    """Return the entries at the end of a cache file; ValueError where it is damaged or of another version."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END) - _TAIL.size
        file.seek(max(0, end))
        tail = file.read()
        length, checksum, magic = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, 0, b"")
        if magic != _MAGIC or length > end:
            raise cli.UserError("cut short, or of another version")
        file.seek(end - length)
        index = file.read(length)
    if zlib.crc32(index) != checksum:
        raise cli.UserError("damaged index")
    return [Entry(**entry) for entry in json.loads(index)]


def _read_whole(layout: Layout, path: Path, tell: bool = False) -> list[Entry] | None:
    """Return the entries of a cache file whose every pixel is as it was written; None where it has to be made anew."""
    if not path.exists():
        return None
    try:
        entries = _read_index(path)
        if any(_can_be_read_now(layout, entry) for entry in entries if entry.error and (entry.lr_name or not layout.lr_folder)):
            raise cli.UserError("images could not be read when it was made, and now they can")
        pixels = np.asarray(np.memmap(path, mode="r"))

        def differs(entry: Entry) -> bool:
            size = sum(map(math.prod, layout.shapes(entry.height, entry.width)))
            return zlib.crc32(pixels[entry.offset : entry.offset + size]) != entry.checksum

        def first_damaged(some: list[Entry]) -> str | None:
            return next((entry.name for entry in some if not entry.error and differs(entry)), None)

        chunks = [entries[start : start + 8] for start in range(0, len(entries), 8)]
        with ThreadPoolExecutor() as pool:  # zlib lets other threads run
            options = {"total": len(chunks), "desc": f"checking {path.name}", "unit": "chunk"}
            for name in cli.progress_bar(pool.map(first_damaged, chunks), **options):
                if name is not None:
                    raise cli.UserError(f"{name} is not as it was written")
    except ValueError as error:
        if tell:
            print(f"{path}: {error}; decoding the images again", file=sys.stderr)
        return None
    return entries


def _can_be_read_now(layout: Layout, entry: Entry) -> bool:
    try:
        layout.decode(entry)
    except (OSError, ValueError):
        return False
    return True


def _build_cache(layout: Layout, entries: list[Entry], path: Path, processes: int | None) -> None:
    """Decode every image into a new cache file; the file appears under its name only when it is whole."""
    entries = cli.map_in_processes(partial(_measure_one, layout), entries, processes, f"sizes of {layout.folder.name}")
    total = 0
    for entry in entries:
        entry.offset = total
        total += sum(map(math.prod, layout.shapes(entry.height, entry.width)))
    files.check_free_space(path.parent, total, "name a folder on another disk by --cache DIR, or pass --no-cache")
    with files.write_atomic(path) as file:
        file.truncate(total)
        entries = _decode_all(layout, entries, file.name, processes)
        file.seek(total)
        index = json.dumps([asdict(entry) for entry in entries]).encode()
        file.write(index + _TAIL.pack(len(index), zlib.crc32(index), _MAGIC))


def _decode_all(layout: Layout, entries: list[Entry], pixel_file: str | None, processes: int | None) -> list[Entry]:
    """Decode every image, into the pixel file where there is one, and fill in the entries."""
    return cli.map_in_processes(partial(_decode_one, layout, pixel_file), entries, processes, f"decoding {layout.folder.name}")


def _measure_one(layout: Layout, entry: Entry) -> Entry:
    if not entry.error:
        try:
            entry.height, entry.width = (side - side % layout.upscale for side in images.read_size(layout.folder / entry.name))
        except (OSError, ValueError) as error:
            entry.error = _reason(error, layout.folder / entry.name)
    return entry


def _decode_one(layout: Layout, pixel_file: str | None, entry: Entry) -> Entry:
    if entry.error:
        return entry
    try:
        arrays = layout.decode(entry)
        height, width = arrays[0].shape[:2] if arrays else (0, 0)
        if pixel_file is not None and arrays and {height, width} != {entry.height, entry.width}:  # EXIF may turn it
            raise cli.UserError("its header tells another size than its pixels have")
    except (ValueError, OSError) as error:
        entry.error = _reason(error, layout.folder / entry.name)
        return entry
    entry.height, entry.width = height, width
    if pixel_file is not None:
        entry.checksum = _write_pixels(pixel_file, entry.offset, arrays)
    return entry


def _write_pixels(pixel_file: str, offset: int, arrays: list[np.ndarray]) -> int:
    checksum = 0
    with open(pixel_file, "r+b") as file:
        file.seek(offset)
        for array in arrays:
            data = np.ascontiguousarray(array).data
            checksum = zlib.crc32(data, checksum)
            file.write(data)
    return checksum


def _reason(error: Exception, path: Path) -> str:
    return (getattr(error, "strerror", None) or str(error)).removeprefix(f"{path}: ")
