"""Enlarge pictures in a browser, on a page that this computer serves.

python app.py                                   serves http://127.0.0.1:7860, for this computer only
python app.py --port 8000 --weights results/srgan/checkpoints/generator_last.pth
python app.py --host 0.0.0.0                    lets other computers use the page, without a password

Needs: pip install gradio. The results are the files that test_image.py writes with the same generator, precision and tile.
"""

import argparse
import functools
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

import inference
from utils import cli, images, web, weights
from utils import page as pages
from utils.device import add_options, resolve_device, resolve_precision

if TYPE_CHECKING:
    import gradio


@dataclass(frozen=True)
class Purpose:
    """What a picture needs, as the page says it, and the generator file for it; a slider blends it with a second file."""

    label: str
    path: Path
    texture_path: Path | None = None


PURPOSES = (  # the first is chosen at the start
    Purpose("JPEG photographs: removes blocks and noise", weights.PHOTO),
    Purpose("Clean pictures, faithful: the smallest error, a little soft", weights.FAITHFUL),
    Purpose("Clean pictures, sharper: more texture, some of it invented", weights.FAITHFUL, weights.TEXTURED),
)
TEXTURE = 1.0  # where the slider from faithful (0) to detailed (1) starts
MAX_PIXELS = 4_000_000  # LR; minutes on a CPU, and a result of 64 million, which browsers still show
TILE = 192  # LR pixels: a second or two on two CPU cores, in which nothing can be cancelled
MAX_FILE_SIZE = "100mb"
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp"}
EXAMPLES = ("chelsea.png", "coffee.png", "rocket.jpg")  # scikit-image's photographs
TITLE = "Enlarge a picture"
INTRODUCTION = "Pictures stay on the computer that serves this page, and are removed from it after an hour."
NO_PICTURE = "PNG, JPEG, WebP, TIFF, GIF and other formats, up to {:g} million pixels"
NO_RESULT = "The result will be shown here."
HINT = "Drag the line, or press the arrow keys on it. Zoom with the mouse wheel, two fingers, or + and −."


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="app.py", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve; 0.0.0.0: all addresses of this computer")
    parser.add_argument("--port", type=cli.non_negative_int, default=7860, help="port to serve; 0: any free one")
    parser.add_argument(
        "--weights", nargs="+", type=weights.weights_file, default=[], metavar="FILE",
        help="generator files to offer by name, besides those in weights/",
    )  # fmt: skip
    parser.add_argument("--max-pixels", type=cli.positive_int, default=MAX_PIXELS, help="refuse larger pictures")
    parser.add_argument(
        "--tile", type=cli.tile_side, default=TILE, metavar="auto|N|0", help="side of a tile in LR pixels; 0: no tiles"
    )
    add_options(parser)
    return parser


# --- pictures, without Gradio ---------------------------------------------------------------------------------------


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
        own = [purpose for purpose in PURPOSES if purpose.path.exists()]
        self.purposes = [*own, *(Purpose(name, path) for name, path in named(args.weights).items())]
        for purpose in self.purposes:
            self.generator(purpose)  # a file that cannot be used is reported before anything is served
        self._reading = threading.Lock()  # opening a picture changes a limit of Pillow's that all threads share

    @functools.lru_cache(maxsize=8)  # noqa: B019 - the one enlarger lives as long as the process
    def generator(self, purpose: Purpose, texture: float = 0.0) -> nn.Module:
        """Return the generator for a purpose; `texture` is for those that blend two files."""
        return inference.open_generator(purpose.path, self.device, purpose.texture_path, texture)

    def read(self, path: Path) -> images.Picture:
        """Count the pixels of a picture file, then decode it.

        Raises:
            UserError: there are too many, or as for `images.read_picture`; with the name of the file, not its path.
        """
        most = self.args.max_pixels
        try:
            with self._reading:
                height, width = images.read_size(path, sys.maxsize)
                if height * width > most:
                    size = f"{width} × {height} pixels, {height * width / 1e6:.1f} million"
                    advice = "make it smaller, or enlarge it with test_image.py"
                    raise cli.UserError(f"{path}: has {size}; this page takes up to {most / 1e6:g} million: {advice}")
                return images.read_picture(path, most)
        except FileNotFoundError as error:
            raise cli.UserError(f"{path.name} is no longer on the server; add it again") from error
        except cli.UserError as error:
            raise cli.UserError(str(error).replace(str(path), path.name)) from error

    def preview(self, path: Path) -> tuple[Path, str]:
        """Decode a picture file as a trial; return a small copy that any browser shows, and a line about the picture."""
        picture = self.read(path)
        height, width = picture.rgb.shape[:2]
        shrink = max(1, height / 800, width / 800)
        small = images.resize_bicubic(images.on_white(picture), max(1, round(height / shrink)), max(1, round(width / shrink)))
        copy = self._new_folder() / "picture.png"
        images.write_picture(copy, images.Picture(small, icc_profile=picture.icc_profile))
        return copy, "; ".join((f"{path.name}: {width} × {height} pixels", *picture.notes))

    def enlarge(self, path: Path, purpose: Purpose, texture: float, on_tile: Callable[[int, int], None]) -> Result:
        """Enlarge a picture file, and write what the page shows of it; `on_tile` is that of `inference.upscale`."""
        begin = time.monotonic()
        picture, generator = self.read(path), self.generator(purpose, texture if purpose.texture_path else 0.0)
        scale = generator.upscale
        height, width = (side * scale for side in picture.rgb.shape[:2])
        images.check_output_path("before.jpg", width, height)
        precision = resolve_precision(self.args.precision, self.device, generator)
        sr = inference.upscale_picture(generator, picture, self.args.tile, precision, on_tile=on_tile)
        seconds = time.monotonic() - begin
        folder = self._new_folder()
        np.save(folder / "pixels.npy", sr.rgb)
        sr = replace(sr, rgb=np.load(folder / "pixels.npy", mmap_mode="r"))  # until it is downloaded, it takes no memory
        text = f"{width} × {height} pixels, {scale} times as wide and high as before. This took {seconds:.1f} seconds."
        result = Result(sr, folder, images.fitting_name(path.stem) + f"_x{scale}", text)
        bicubic = images.upscale_bicubic(images.on_white(picture), scale)
        for file, rgb in zip(result.before_and_after, (bicubic, images.on_white(sr)), strict=True):
            images.write_picture(file, images.Picture(rgb, icc_profile=picture.icc_profile, gray=picture.gray))
        return result

    def save(self, result: Result, kind: str) -> Path:
        """Write a result in one of FORMATS, with the bytes that test_image.py gives it; return the file."""
        path = result.folder / f"{result.name}{FORMATS[kind]}"
        try:
            images.write_picture(path, result.picture)
        except cli.UserError as error:
            raise cli.UserError(str(error).replace(str(path), path.name)) from error
        return path

    def examples(self) -> list[Path]:
        """Write small copies of the examples, to choose from, and return them."""
        folder = self.folder / pages.PERMANENT
        folder.mkdir()
        copies = [folder / f"{Path(name).stem}.jpg" for name in EXAMPLES]
        for index, copy in enumerate(copies):
            picture = images.read_picture(example_file(index))
            height, width = picture.rgb.shape[:2]
            images.write_picture(copy, images.Picture(images.resize_bicubic(picture.rgb, 120, round(120 * width / height))))
        return copies

    def _new_folder(self) -> Path:
        folder = self.folder / secrets.token_urlsafe(24)
        folder.mkdir()
        return folder


def named(paths: list[Path]) -> dict[str, Path]:
    """Return generator files by their names, without folders; a name that occurs again is numbered."""
    found: dict[str, Path] = {}
    for path in paths:
        count = sum(other.stem == path.stem for other in found.values())
        found[f"{path.stem} ({count + 1})" if count else path.stem] = path
    return found


# --- the page -------------------------------------------------------------------------------------------------------


def build_page(gr: ModuleType, enlarger: Enlarger, stops: pages.Stops) -> "gradio.Blocks":
    """Return the page: its controls and what they do."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>{INTRODUCTION}</p>", elem_id="heading")
        state = functools.partial(gr.State, time_to_live=pages.KEPT_SECONDS)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                inputs = input_controls(gr, enlarger)
            with gr.Column(scale=3, min_width=300):
                outputs = output_controls(gr)
        connect(gr, enlarger, stops, SimpleNamespace(page=page, source=state(), result=state(), **inputs, **outputs))
    return page.queue(max_size=32, default_concurrency_limit=4)


def input_controls(gr: ModuleType, enlarger: Enlarger) -> dict[str, "gradio.components.Component"]:
    """Add the left half of the page: the picture and how to enlarge it."""
    picture = gr.Image(
        label="Picture", sources=["upload"], type="filepath", buttons=[], height=260, elem_id="picture",
        placeholder="Drop or paste a picture\nor click to choose one",
    )  # fmt: skip
    about = gr.HTML(pages.message(NO_PICTURE.format(enlarger.args.max_pixels / 1e6)), elem_id="about")
    examples = gr.Dataset(
        label="Or take an example", components=["image"], samples=[[path] for path in enlarger.examples()],
        type="index", layout="gallery", elem_id="examples",
    )  # fmt: skip
    choices = [(purpose.label, index) for index, purpose in enumerate(enlarger.purposes)]
    purpose = gr.Radio(choices, value=0, label="What the picture needs", elem_id="purpose")
    texture = gr.Slider(
        0, 1, TEXTURE, step=0.05, label="Faithful – detailed", visible=enlarger.purposes[0].texture_path is not None,
        info="0 is faithful and a little soft; 1 has the most detail, but invents it", elem_id="texture",
    )  # fmt: skip
    with gr.Row():
        go = gr.Button("Enlarge", variant="primary", interactive=False, elem_id="go", min_width=100)
        cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", min_width=100)
    return dict(picture=picture, about=about, examples=examples, purpose=purpose, texture=texture, go=go, cancel=cancel)


def output_controls(gr: ModuleType) -> dict[str, "gradio.components.Component"]:
    """Add the right half of the page: the result and its download."""
    note = gr.HTML(pages.message(NO_RESULT), elem_id="note")
    comparison = gr.ImageSlider(
        label="Bicubic (left) and enlarged (right)", type="filepath", interactive=False, max_height=640,
        buttons=["fullscreen"], elem_id="comparison",
    )  # fmt: skip
    gr.HTML(f"<p>{HINT}</p>", elem_id="hint")
    with gr.Row(equal_height=True):
        kind = gr.Radio(list(FORMATS), value="PNG", label="File format", elem_id="kind", min_width=300)
        download = gr.DownloadButton("Download", interactive=False, elem_id="download", min_width=200)
    return dict(note=note, comparison=comparison, kind=kind, download=download)


def connect(gr: ModuleType, enlarger: Enlarger, stops: pages.Stops, on: SimpleNamespace) -> None:
    """Say what happens when the controls `on` the page are used."""
    waiting, no_picture = [on.go, on.cancel], pages.message(NO_PICTURE.format(enlarger.args.max_pixels / 1e6))
    idle, working = ((gr.update(interactive=not busy), gr.update(interactive=busy)) for busy in (False, True))

    def take(path):
        try:
            copy, text = enlarger.preview(path)
        except Exception as error:
            return None, None, gr.update(interactive=False), pages.message(pages.explained(error), alert=True)
        return copy, path, gr.update(interactive=True), pages.message(text)

    def upload(file):
        return take(Path(file["path"]))  # in the temporary folder, or Gradio would have refused it

    def take_example(index):
        return take(example_file(index))

    def remove():
        return None, gr.update(interactive=False), no_picture

    def blends(index):
        return gr.update(visible=enlarger.purposes[index].texture_path is not None)

    def start(request: gr.Request):
        stops.start(request.session_hash)
        return *working, pages.message("Working …")

    def enlarge(path, index, texture, kind, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        unchanged = (gr.skip(), gr.skip(), gr.skip())
        check, begin = stops.check(request.session_hash), time.monotonic()

        def on_tile(done, total):
            check()
            left = (time.monotonic() - begin) / done * (total - done)
            progress((done, total), desc=f"Enlarging, about {left:.0f} s left", unit="tiles")

        try:
            check()
            if path is None:
                raise cli.UserError("The picture is no longer on the server; add it again.")
            result = enlarger.enlarge(path, enlarger.purposes[index], texture, on_tile)
            file = downloadable(result, kind)
        except pages.Cancelled:
            return *unchanged, pages.message("Cancelled.")
        except Exception as error:
            return *unchanged, pages.message(pages.explained(error), alert=True)
        return result, result.before_and_after, file, pages.message(result.text)

    def downloadable(result, kind):
        file = enlarger.save(result, kind)
        return gr.update(value=file, label=f"Download {kind} ({file.stat().st_size / 1e6:.1f} MB)", interactive=True)

    def save(result, kind):
        try:
            return (downloadable(result, kind) if result else gr.skip()), gr.skip()
        except Exception as error:
            return gr.update(interactive=False), pages.message(pages.explained(error), alert=True)

    def cancel(request: gr.Request):
        stops.stop(request.session_hash)
        return *idle, pages.message("Cancelled.")

    def leave(request: gr.Request):
        stops.forget(request.session_hash)

    private = {"api_visibility": "private"}
    taken = {"outputs": [on.picture, on.source, on.go, on.about], "show_progress": "minimal", **private}
    on.picture.upload(upload, on.picture, preprocess=False, show_progress_on=on.picture, **taken)
    on.examples.click(take_example, on.examples, show_progress_on=on.picture, **taken)
    on.picture.clear(remove, None, [on.source, on.go, on.about], queue=False, **private)
    on.purpose.change(blends, on.purpose, on.texture, queue=False, show_progress="hidden", **private)
    started = on.go.click(start, None, [*waiting, on.note], queue=False, show_progress="hidden", **private)
    run = started.then(
        enlarge, [on.source, on.purpose, on.texture, on.kind], [on.result, on.comparison, on.download, on.note],
        show_progress_on=on.comparison, scroll_to_output=True, concurrency_limit=1, **private,
    )  # fmt: skip
    run.then(lambda: idle, None, waiting, queue=False, show_progress="hidden", **private)
    on.cancel.click(cancel, None, [*waiting, on.note], cancels=run, queue=False, show_progress="hidden", **private)
    on.kind.change(save, [on.result, on.kind], [on.download, on.note], show_progress_on=on.download, **private)
    on.page.unload(leave)


def example_file(index: int) -> Path:
    """Return the file of an example."""
    import skimage

    return Path(skimage.__file__).parent / "data" / EXAMPLES[index]


def main(args: argparse.Namespace) -> None:
    """Serve the page until a signal ends it."""
    with web.listen(args.host, args.port) as listening, pages.temporary_folder() as folder:
        enlarger, stops = Enlarger(args, folder), pages.Stops()
        gr = pages.import_gradio(folder)
        page = build_page(gr, enlarger, stops)
        web.serve(page, listening, folder, stops.stop_all, max_file_size=MAX_FILE_SIZE, **pages.looks(gr))


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
