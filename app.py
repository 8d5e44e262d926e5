"""Enlarge pictures in a browser, on a page that this computer serves.

python app.py                      serves http://127.0.0.1:7860, for this computer only
python app.py --host 0.0.0.0       lets other computers use the page, without a password
python app.py --port 8000 --weights results/srgan/checkpoints/generator_last.pth

Needs: pip install gradio. The results are identical to those of test_image.py with the same
generator, backend, precision and tile size.
"""

import argparse
from pathlib import Path

from page import server, visitors
from page.enlarger import Enlarger, Purpose
from utils import cli, machine, weights

# The first one is chosen at the start
PURPOSES = (
    Purpose("JPEG photographs: removes blocks and noise", weights.PHOTO_PIXEL, weights.PHOTO),
    Purpose("Clean pictures, faithful: the smallest error, a little soft", weights.FAITHFUL),
    Purpose(
        "Clean pictures, sharper: more texture, some of it invented",
        weights.FAITHFUL,
        weights.TEXTURED,
    ),
)
# LR pixels: minutes on a CPU, and a result of 64 million, which browsers still show
MAX_PIXELS = 4_000_000
# LR pixels: a second or two on two CPU cores, during which nothing can be cancelled
TILE = 192
MAX_FILE_SIZE = "100mb"


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="app.py", description=__doc__)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: all addresses of this computer",
    )
    parser.add_argument(
        "--port",
        type=cli.non_negative_int,
        default=7860,
        help="port to listen on; 0: any free one",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        type=weights.weights_file,
        metavar="NAME_OR_FILE",
        help="more generators to choose from on the page",
    )
    parser.add_argument(
        "--max-pixels",
        type=cli.positive_int,
        default=MAX_PIXELS,
        help="refuse pictures with more pixels",
    )
    parser.add_argument(
        "--tile",
        type=cli.tile_side,
        default=TILE,
        metavar="auto|N|0",
        help="side of a tile in LR pixels; auto: as large as memory allows; 0: no tiles",
    )
    machine.add_options(parser, backend=True)
    return parser


def available_purposes(weights_files: list[Path], precision: str = "auto") -> list[Purpose]:
    """Return what the page offers: the project's purposes, and the user's generator files by name.

    Purposes whose files are missing are left out. With int8, which cannot compute blends, each
    blend is replaced by the generator that has the texture.

    Raises:
        UserError: none is left.
    """
    purposes = []
    for purpose in PURPOSES:
        if precision == "int8" and purpose.texture_path:
            purpose = Purpose(purpose.label, purpose.texture_path)
        if all(path.exists() for path in (purpose.path, purpose.texture_path) if path):
            purposes.append(purpose)
    for name, path in names_of(weights_files).items():
        purposes.append(Purpose(name, path))
    if not purposes:
        raise cli.UserError(
            f"{weights.WEIGHTS_FOLDER}: no generator file is here; name one with --weights"
        )
    return purposes


def names_of(paths: list[Path]) -> dict[str, Path]:
    """Return files by their names without folder and suffix; repeated names are numbered."""
    named: dict[str, Path] = {}
    for path in paths:
        count = sum(other.stem == path.stem for other in named.values())
        name = f"{path.stem} ({count + 1})" if count else path.stem
        named[name] = path
    return named


def main(args: argparse.Namespace) -> None:
    """Serve the page until a signal ends it."""
    with server.listen(args.host, args.port) as listening, visitors.temporary_folder() as folder:
        enlarger = Enlarger(
            available_purposes(args.weights or [], args.precision),
            folder,
            args.device,
            args.backend,
            args.precision,
            args.tile,
            args.max_pixels,
        )
        sessions = visitors.Sessions()
        server.prepare_gradio(folder)
        from page import controls  # imports Gradio, which reads its settings then

        page = controls.Page(enlarger, sessions).build()
        server.serve(page, listening, folder, sessions.stop_all, MAX_FILE_SIZE, controls.looks())


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
