"""What the page does with pictures: read, preview, enlarge and save them."""

import argparse
import contextlib
import functools
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import inference
from page import visitors
from utils import cli, images, output_size
from utils.output_size import OutputSize
from utils.weights import Weights

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp"}  # of downloads
LARGEST_SIDE = images.LARGEST_SIDE["JPEG"]  # of a result, which the page shows as JPEG
ADVICE = "make it smaller, or enlarge it with test_image.py"
EXAMPLES = ("chelsea.png", "coffee.png", "rocket.jpg")  # scikit-image's photographs

_PREVIEW_SIDE = 800  # pixels
_EXAMPLE_HEIGHT = 120  # pixels


@dataclass(frozen=True)
class Purpose:
    """A kind of picture, as the page offers it.

    Attributes:
        label: what the page calls it.
        path: generator file for it.
        texture_path: generator file that a slider blends with the first, or None.
    """

    label: str
    path: Path
    texture_path: Path | None = None

    def weights(self, texture: float) -> Weights:
        """Return the generator file, or the two to blend, for a position of the slider (0 to 1)."""
        if self.texture_path is None or texture == 0:
            return Weights(self.path)
        if texture == 1:
            return Weights(self.texture_path)
        return Weights(self.path, self.texture_path, texture)


def parse_output_size(text: str) -> OutputSize:
    """Parse what test_image.py takes as `--outscale` (1.5) or as `--size` (1920x1080, 1920x).

    Raises:
        UserError: it is neither.
    """
    text = text.replace("×", "x").replace(" ", "")
    if re.fullmatch(r"x\d|\dx", text, re.IGNORECASE):
        number = text.lower().strip("x")
        side = "wide" if text.startswith(number) else "high"
        raise cli.UserError(
            f"Other size: {text} would be {number} pixels {side}; write {number} for {number} "
            "times as wide and high"
        )
    try:
        if "x" in text.lower():
            return OutputSize(size=output_size.picture_size(text))
        return OutputSize(outscale=output_size.scale(text))
    except argparse.ArgumentTypeError as error:
        raise cli.UserError(f"Other size: {error}") from error


@dataclass
class Result:
    """An enlarged picture.

    Attributes:
        picture: the picture itself.
        folder: folder of its files, whose name cannot be guessed.
        name: name of its files, without suffix.
        text: what the page says about it.
    """

    picture: images.Picture
    folder: Path
    name: str
    text: str

    @property
    def before_and_after(self) -> tuple[Path, Path]:
        """The bicubic enlargement and the result, as JPEG files of one size."""
        return self.folder / "before.jpg", self.folder / "after.jpg"


class Enlarger:
    """Reads, enlarges and saves pictures, each in a folder of its own."""

    def __init__(
        self,
        purposes: list[Purpose],
        folder: Path,
        device: str,
        backend: str,
        precision: str,
        tile: int | None,
        max_pixels: int,
    ):
        """Load a generator for every purpose, so that no unusable file is offered.

        Args:
            purposes: what can be chosen; at least one.
            folder: where the files of the page are written.
            device: auto, cpu, cuda or mps.
            backend: auto, torch or openvino.
            precision: auto, fp32, bf16, fp16 or int8.
            tile: as for `inference.upscale`.
            max_pixels: limit for the pictures that are read.

        Raises:
            UserError: as for `inference.open_engine`, or one cannot compute in this precision.
        """
        self.purposes = purposes
        self.folder = folder
        self.device = device
        self.backend = backend
        self.precision = precision
        self.tile = tile
        self.max_pixels = max_pixels
        # Opening a picture sets a limit of Pillow's that all threads share
        self._opening = threading.Lock()
        self.scales: dict[Purpose, int] = {}
        for purpose in purposes:
            for texture in (0, 1):
                engine = self.engine(purpose.weights(texture))
                engine.precision_of(precision)  # refuse one that cannot work before a visitor comes
            self.scales[purpose] = engine.upscale

    @functools.lru_cache(maxsize=8)  # noqa: B019 - the enlarger lives as long as the process
    def engine(self, chosen: Weights) -> inference.Engine:
        """Return the engine of one generator file, or of two blended."""
        return inference.open_engine(chosen, self.device, self.backend)

    def read(self, path: Path) -> images.Picture:
        """Decode a picture file, if it does not have too many pixels.

        Raises:
            UserError: it has, or as for `images.read_picture`; without the path of its folder.
        """
        with _named_without_folder(path), self._opening:
            height, width = images.read_size(path, sys.maxsize)
            if height * width > self.max_pixels:
                size = f"{width} × {height} pixels ({height * width / 1e6:.1f} million)"
                limit = f"this page takes up to {self.max_pixels / 1e6:g} million"
                raise cli.UserError(f"{path}: has {size}; {limit}: {ADVICE}")
            return images.read_picture(path, self.max_pixels, keep_depth=True)

    def preview(self, path: Path) -> tuple[Path, str]:
        """Return a small copy of a picture file that any browser shows, and a line about it.

        Raises:
            UserError: as for `read`.
        """
        picture = self.read(path)
        height, width = picture.rgb.shape[:2]
        shrink = max(1, height / _PREVIEW_SIDE, width / _PREVIEW_SIDE)
        small = images.resize_bicubic(
            images.on_white(picture),
            max(1, round(width / shrink)),
            max(1, round(height / shrink)),
        )
        copy = self._new_folder() / "picture.png"
        images.write_picture(copy, images.Picture(small, icc_profile=picture.icc_profile))
        return copy, "; ".join((f"{path.name}: {width} × {height} pixels", *picture.notes))

    def enlarge(
        self,
        path: Path,
        purpose: Purpose,
        texture: float,
        wanted: OutputSize,
        on_tile: Callable[[int, int], None],
    ) -> Result:
        """Enlarge a picture file, and write what the page shows of the result.

        Args:
            path: picture file.
            purpose: which generator to use.
            texture: share of the second generator, if the purpose blends two.
            wanted: the result's size.
            on_tile: as for `inference.upscale`.

        Raises:
            UserError: the picture cannot be read, the size is refused by `OutputSize.of`,
                or the result has too long a side.
            RunError: the generator cannot be read any more, or gives no picture.
        """
        began = time.monotonic()

        # Read
        picture = self.read(path)
        try:
            engine = self.engine(purpose.weights(texture))
        except cli.UserError as error:
            # It names a file of the server, and the visitor cannot mend it
            raise cli.RunError(str(error)) from error
        height, width = picture.rgb.shape[:2]
        size = wanted.of(path.name, width, height, engine.upscale)
        most = self.max_pixels * engine.upscale**2
        if max(size) > LARGEST_SIDE or size[0] * size[1] > most:
            pixels = f"{size[0]} × {size[1]} pixels"
            limit = f"up to {LARGEST_SIDE:,} per side and {most / 1e6:g} million in all"
            raise cli.UserError(
                f"{path.name}: the result would have {pixels}; this page shows {limit}: {ADVICE}"
            )

        # Enlarge
        sr = inference.upscale_picture(
            engine, picture, self.tile, self.precision, on_tile=on_tile, size=size
        )
        engine.release_memory()  # other visitors may need another generator
        seconds = time.monotonic() - began

        # Keep the result on disk
        folder = self._new_folder()
        rgb = _on_disk(folder / "rgb.npy", sr.rgb)
        alpha = None if sr.alpha is None else _on_disk(folder / "alpha.npy", sr.alpha)
        growth = "as wide and high"
        if size[0] != width:
            growth = f"{size[0] / width:.3g} times {growth}"
        suffix = wanted.suffix(engine.upscale)
        result = Result(
            picture=replace(sr, rgb=rgb, alpha=alpha),
            folder=folder,
            name=f"{images.fitting_name(path.stem, f'{suffix}_compare.png')}{suffix}",
            text=f"{size[0]} × {size[1]} pixels, {growth} as before. "
            f"This took {seconds:.1f} seconds.",
        )

        # Write what the page shows
        before = images.resize_bicubic(images.on_white(picture), *size)
        after = images.on_white(result.picture)
        for file, shown in zip(result.before_and_after, (before, after), strict=True):
            images.write_picture(
                file, images.Picture(shown, icc_profile=picture.icc_profile, gray=picture.gray)
            )
        return result

    def save(self, result: Result, format_name: str) -> tuple[Path, list[str]]:
        """Write a result in one of `FORMATS`, with the bytes of test_image.py.

        Returns:
            The file, and what its format cannot hold.

        Raises:
            UserError: the format cannot hold the result, or the result has been removed.
        """
        path = result.folder / f"{result.name}{FORMATS[format_name]}"
        with _named_without_folder(path):
            images.write_picture(path, result.picture)
        return path, images.what_is_lost(result.picture, path)

    def examples(self) -> list[Path]:
        """Write small copies of the examples, to choose from, and return their files."""
        folder = self.folder / visitors.PERMANENT
        folder.mkdir()
        copies = []
        for index, name in enumerate(EXAMPLES):
            rgb = images.read_picture(self.example_file(index)).rgb
            height, width = rgb.shape[:2]
            small = images.resize_bicubic(
                rgb, round(_EXAMPLE_HEIGHT * width / height), _EXAMPLE_HEIGHT
            )
            copies.append(folder / f"{Path(name).stem}.jpg")
            images.write_picture(copies[-1], images.Picture(small))
        return copies

    def example_file(self, index: int) -> Path:
        """Return the file of an example."""
        import skimage

        return Path(skimage.__file__).parent / "data" / EXAMPLES[index]

    def _new_folder(self) -> Path:
        folder = self.folder / secrets.token_urlsafe(24)
        folder.mkdir()
        return folder


def _on_disk(path: Path, array: np.ndarray) -> np.ndarray:
    """Move an array to a file, from which its values are read when they are needed."""
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@contextlib.contextmanager
def _named_without_folder(path: Path) -> Iterator[None]:
    """Have errors about a file of the server name it without its folder.

    A file that has been removed, as old ones are, is an error of the user's too.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise cli.UserError(
            f"{path.name} is no longer on the server; add the picture again"
        ) from error
    except cli.UserError as error:
        raise cli.UserError(str(error).replace(str(path), path.name)) from error
