"""The generator files that a command line names: by path, by name in weights/, or two to blend."""

import argparse
import os.path
from dataclasses import dataclass
from pathlib import Path

from utils import cli

WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights"
PHOTO = WEIGHTS_FOLDER / "photo_x4.pth"
PHOTO_PIXEL = WEIGHTS_FOLDER / "photo_x4_pixel.pth"
FAITHFUL = WEIGHTS_FOLDER / "srresnet_x4.pth"
TEXTURED = WEIGHTS_FOLDER / "srgan_x4.pth"
# For --texture: a pixel-only generator, and one that adversarial training gave texture
PAIRS = ((FAITHFUL, TEXTURED), (PHOTO_PIXEL, PHOTO))


@dataclass(frozen=True)
class Weights:
    """A generator file, or two to blend: the arguments of `inference.open_generator`."""

    path: Path
    texture_path: Path | None = None
    texture: float = 0.0

    @property
    def stem(self) -> str:
        """A name for results: `srresnet_x4`, or `srresnet_x4_srgan_x4_0.5` for a blend."""
        if self.texture_path is None:
            return self.path.stem
        return f"{self.path.stem}_{self.texture_path.stem}_{self.texture}"

    def __str__(self) -> str:
        if self.texture_path is None:
            return str(self.path)
        return f"{self.path} blended with {self.texture_path} (--texture {self.texture})"


def add_weights_option(parser: argparse.ArgumentParser, default: Path = PHOTO) -> None:
    """Add `--weights`, `--texture` and `--texture-weights` to a script that enlarges images.

    The default suits the JPEGs and photographs that people have. A benchmark's LR images are clean,
    so its script names another.
    """
    parser.set_defaults(default_weights=default)
    parser.add_argument(
        "--weights",
        type=weights_file,
        metavar="NAME_OR_FILE",
        help=f"generator file, or the name of one in weights/: {PHOTO.stem} for JPEGs, noise and "
        f"blur; {FAITHFUL.stem} for clean pictures and the lowest error; {TEXTURED.stem} for clean "
        f"pictures and more texture (default: {default.stem})",
    )
    parser.add_argument(
        "--texture",
        type=cli.number_between(0, 1),
        metavar="T",
        help=f"blend two generators, with T from 0 ({FAITHFUL.stem} alone) to 1 ({TEXTURED.stem} "
        f"alone); with --weights {PHOTO.stem}, from {PHOTO_PIXEL.stem} to {PHOTO.stem}; with "
        f"another file, from that one to {TEXTURED.stem}",
    )
    parser.add_argument(
        "--texture-weights",
        type=weights_file,
        metavar="NAME_OR_FILE",
        help="second generator for --texture, trained from that of --weights (default of the "
        f"latter: {FAITHFUL.stem})",
    )


def chosen_weights(args: argparse.Namespace) -> Weights:
    """Return what the options of `add_weights_option` name, with their defaults filled in.

    Raises:
        UserError: `--texture-weights` was given without `--texture`.
    """
    if args.texture is None:
        if args.texture_weights:
            raise cli.UserError(
                "--texture-weights needs --texture T, the share of that file from 0 to 1"
            )
        return Weights(args.weights or args.default_weights)
    if args.texture_weights:
        return Weights(args.weights or FAITHFUL, args.texture_weights, args.texture)
    return Weights(*pair_with(args.weights or FAITHFUL), args.texture)


def pair_with(path: Path) -> tuple[Path, Path]:
    """Return the files that `--texture` blends if `--weights` names `path`, either of a pair.

    Any other file is blended with srgan_x4.
    """
    for pair in PAIRS:
        if os.path.realpath(path) in map(os.path.realpath, pair):
            return pair
    return path, TEXTURED


def known() -> list[str]:
    """Return the names of the generator files in weights/."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.pth"))


def weights_file(name: str) -> Path:
    """Return the path of a generator file that is given by its path or by its name in weights/."""
    path = Path(name)
    in_folder = WEIGHTS_FOLDER / f"{name}.pth"
    if not path.exists() and in_folder.exists():
        return in_folder
    return path
