"""Enlarge pictures in a browser, on a page that this computer serves.

python app.py                                   serves http://127.0.0.1:7860, for this computer only
python app.py --port 8000 --weights results/srgan/checkpoints/generator_last.pth
python app.py --host 0.0.0.0                    lets other computers use the page, without a password

Needs: pip install gradio. The results are the files that test_image.py writes with the same generator, precision and tile.
"""

import argparse
import contextlib
import functools
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

import inference
from page import controls, server, visitors
from utils import cli, images, weights
from utils.device import add_options, resolve_device, resolve_precision


@dataclass(frozen=True)
class Purpose:
    """What a picture needs, as the page says it, and the generator file for it; a slider blends it with a second file."""

    label: str
    path: Path
    texture_path: Path | None = None


PURPOSES = (  # the first is chosen at the start
    Purpose("JPEG photographs: removes blocks and noise", weights.PHOTO),
    Purpose("Clean pictures, faithful: the smallest error, a little soft", weights.FAITHFUL),
    Purpose(
        "Clean pictures, sharper: more texture, some of it invented",
        weights.FAITHFUL,
        weights.TEXTURED,
    ),
)
MAX_PIXELS = (
    4_000_000  # LR; minutes on a CPU, and a result of 64 million, which browsers still show
)
TILE = 192  # LR pixels: a second or two on two CPU cores, in which nothing can be cancelled
MAX_FILE_SIZE = "100mb"
LARGEST_SIDE = images.LARGEST_SIDE["JPEG"]  # of a result, which is shown as JPEG
ADVICE = "make it smaller, or enlarge it with test_image.py"
EXAMPLES = ("chelsea.png", "coffee.png", "rocket.jpg")  # scikit-image's photographs


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="app.py", description=__doc__)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve; 0.0.0.0: all addresses of this computer",
    )
    parser.add_argument(
        "--port", type=cli.non_negative_int, default=7860, help="port to serve; 0: any free one"
    )
    parser.add_argument(
        "--weights", nargs="+", type=weights.weights_file, default=[], metavar="FILE",
        help="generator files to offer by name, besides those in weights/",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", type=cli.positive_int, default=MAX_PIXELS, help="refuse larger pictures"
    )
    parser.add_argument(
        "--tile",
        type=cli.tile_side,
        default=TILE,
        metavar="auto|N|0",
        help="side of a tile in LR pixels; 0: no tiles",
    )
    add_options(parser)
    return parser


@dataclass
class Result:
    """An enlarged picture, and the files that show it; they lie in a folder whose name cannot be guessed."""

    picture: images.Picture
    folder: Path
    name: str
    text: str

    @property
    def before_and_after(self) -> tuple[Path, Path]:
        """The bicubic enlargement and the result, as JPEG files of one size."""
        return self.folder / "before.jpg", self.folder / "after.jpg"


class Enlarger:
    """Reads, enlarges and saves pictures with the options of the command line."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.device = args, folder, resolve_device(args.device)
        own = [
            one
            for one in PURPOSES
            if one.path.exists() and (one.texture_path is None or one.texture_path.exists())
        ]
        self.purposes = [*own, *(Purpose(name, path) for name, path in named(args.weights).items())]
        if not self.purposes:
            raise cli.UserError(
                f"{weights.WEIGHTS_FOLDER}: no generator file is here; name one with --weights"
            )
        for purpose in self.purposes:
            self.generator(
                purpose, 0.0
            )  # a file that cannot be used is reported before anything is served
        self._reading = (
            threading.Lock()
        )  # opening a picture changes a limit of Pillow's that all threads share

    @functools.lru_cache(maxsize=8)  # noqa: B019 - the one enlarger lives as long as the process
    def generator(self, purpose: Purpose, texture: float) -> nn.Module:
        """Return the generator for a purpose; `texture` is for those that blend two files, and 0 for others."""
        return inference.open_generator(purpose.path, self.device, purpose.texture_path, texture)

    def read(self, path: Path) -> images.Picture:
        """Count the pixels of a picture file, then decode it.

        Raises:
            UserError: there are too many, or as for `images.read_picture`; with the name of the file, not its path.
        """
        most = self.args.max_pixels
        with named_without_folder(path), self._reading:
            height, width = images.read_size(path, sys.maxsize)
            if height * width > most:
                size = f"{width} × {height} pixels, {height * width / 1e6:.1f} million"
                raise cli.UserError(
                    f"{path}: has {size}; this page takes up to {most / 1e6:g} million: {ADVICE}"
                )
            return images.read_picture(path, most)

    def preview(self, path: Path) -> tuple[Path, str]:
        """Decode a picture file as a trial; return a small copy that any browser shows, and a line about the picture."""
        picture = self.read(path)
        height, width = picture.rgb.shape[:2]
        shrink = max(1, height / 800, width / 800)
        small = images.resize_bicubic(
            images.on_white(picture), max(1, round(height / shrink)), max(1, round(width / shrink))
        )
        copy = self._new_folder() / "picture.png"
        images.write_picture(copy, images.Picture(small, icc_profile=picture.icc_profile))
        return copy, "; ".join((f"{path.name}: {width} × {height} pixels", *picture.notes))

    def enlarge(
        self, path: Path, purpose: Purpose, texture: float, on_tile: Callable[[int, int], None]
    ) -> Result:
        """Enlarge a picture file, and write what the page shows of it; `on_tile` is that of `inference.upscale`.

        Raises:
            UserError: the picture cannot be read, or the result has too long a side.
            RunError: the generator cannot be read any more, or gives no picture.
        """
        begin, picture = time.monotonic(), self.read(path)
        try:
            generator = self.generator(purpose, texture if purpose.texture_path else 0.0)
        except cli.UserError as error:  # which names a file of the server
            raise cli.RunError(str(error)) from error
        scale = generator.upscale
        height, width = (side * scale for side in picture.rgb.shape[:2])
        if max(height, width) > LARGEST_SIDE:
            size = f"{width} × {height} pixels; this page shows up to {LARGEST_SIDE:,} per side"
            raise cli.UserError(f"{path.name}: the result would have {size}: {ADVICE}")
        precision = resolve_precision(self.args.precision, self.device, generator)
        sr = inference.upscale_picture(
            generator, picture, self.args.tile, precision, on_tile=on_tile
        )
        seconds = time.monotonic() - begin
        folder = self._new_folder()
        sr = replace(
            sr,
            rgb=on_disk(folder / "rgb.npy", sr.rgb),
            alpha=on_disk(folder / "alpha.npy", sr.alpha),
        )
        text = f"{width} × {height} pixels, {scale} times as wide and high as before. This took {seconds:.1f} seconds."
        result = Result(sr, folder, images.fitting_name(path.stem) + f"_x{scale}", text)
        bicubic = images.upscale_bicubic(images.on_white(picture), scale)
        for file, rgb in zip(result.before_and_after, (bicubic, images.on_white(sr)), strict=True):
            images.write_picture(
                file, images.Picture(rgb, icc_profile=picture.icc_profile, gray=picture.gray)
            )
        return result

    def save(self, result: Result, kind: str) -> Path:
        """Write a result in one of `controls.FORMATS`, with the bytes that test_image.py gives it; return the file."""
        path = result.folder / f"{result.name}{controls.FORMATS[kind]}"
        with named_without_folder(path):
            images.write_picture(path, result.picture)
        return path

    def examples(self) -> list[Path]:
        """Write small copies of the examples, to choose from, and return them."""
        folder = self.folder / visitors.PERMANENT
        folder.mkdir()
        copies = [folder / f"{Path(name).stem}.jpg" for name in EXAMPLES]
        for index, copy in enumerate(copies):
            picture = images.read_picture(self.example_file(index))
            height, width = picture.rgb.shape[:2]
            images.write_picture(
                copy,
                images.Picture(
                    images.resize_bicubic(picture.rgb, 120, round(120 * width / height))
                ),
            )
        return copies

    def example_file(self, index: int) -> Path:
        """Return the file of an example."""
        import skimage

        return Path(skimage.__file__).parent / "data" / EXAMPLES[index]

    def _new_folder(self) -> Path:
        folder = self.folder / secrets.token_urlsafe(24)
        folder.mkdir()
        return folder


@contextlib.contextmanager
def named_without_folder(path: Path) -> Iterator[None]:
    """Have the user's errors name a file of the server without its folder, and say so if it has been removed."""
    try:
        yield
    except FileNotFoundError as error:
        raise cli.UserError(
            f"{path.name} is no longer on the server; add the picture again"
        ) from error
    except cli.UserError as error:
        raise cli.UserError(str(error).replace(str(path), path.name)) from error


def on_disk(path: Path, array: np.ndarray | None) -> np.ndarray | None:
    """Move an array to a file, from which it is read when it is needed; there may be none."""
    if array is None:
        return None
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def named(paths: list[Path]) -> dict[str, Path]:
    """Return generator files by their names, without folders; a name that occurs again is numbered."""
    found: dict[str, Path] = {}
    for path in paths:
        count = sum(other.stem == path.stem for other in found.values())
        found[f"{path.stem} ({count + 1})" if count else path.stem] = path
    return found


def main(args: argparse.Namespace) -> None:
    """Serve the page until a signal ends it."""
    with server.listen(args.host, args.port) as listening, visitors.temporary_folder() as folder:
        enlarger, stops = Enlarger(args, folder), visitors.Stops()
        gr = controls.import_gradio(folder)
        built = controls.build_page(gr, enlarger, stops)
        server.serve(
            built,
            listening,
            folder,
            stops.stop_all,
            max_file_size=MAX_FILE_SIZE,
            **controls.looks(gr),
        )


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
