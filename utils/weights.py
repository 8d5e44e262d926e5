"""The generator files that a command line names: by path, by their names in weights/, or two to blend."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from utils import cli

WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights"
PHOTO, FAITHFUL, TEXTURED = (
    WEIGHTS_FOLDER / f"{name}_x4.pth" for name in ("photo", "srresnet", "srgan")
)


def add_weights_option(parser: argparse.ArgumentParser, default: Path = PHOTO) -> None:
    """Add `--weights`, `--texture` and `--texture-weights`, which every script that enlarges images has.

    The default suits the JPEGs and photographs that people bring; a benchmark's LR is clean, so its script names another.
    """
    parser.set_defaults(default_weights=default)
    parser.add_argument(
        "--weights", type=weights_file, metavar="NAME_OR_FILE",
        help=f"generator file, or the name of one in weights/: {PHOTO.stem}, for JPEGs, noise and blur; {FAITHFUL.stem}, for "
        f"clean pictures, the smallest error; {TEXTURED.stem}, for clean pictures, with texture (default: {default.stem})",
    )  # fmt: skip
    parser.add_argument(
        "--texture", type=cli.number_between(0, 1), metavar="T",
        help=f"blend two generators: (1 - T) of --weights (here {FAITHFUL.stem} by default) and T of --texture-weights; "
        "T is from 0 to 1",
    )  # fmt: skip
    parser.add_argument(
        "--texture-weights", type=weights_file, metavar="NAME_OR_FILE",
        help=f"the second generator of --texture, which should have been trained from the first (default: {TEXTURED.stem})",
    )  # fmt: skip


def known() -> list[str]:
    """Return the names of the files in weights/."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.pth"))


def weights_file(name: str) -> Path:
    """Return the path of a generator file given by its path, or by its stem in weights/."""
    ours = WEIGHTS_FOLDER / f"{name}.pth"
    return ours if not Path(name).exists() and ours.exists() else Path(name)


@dataclass(frozen=True)
class Weights:
    """A generator file, or two to blend: the arguments of `inference.open_generator`."""

    path: Path
    texture_path: Path | None = None
    texture: float = 0.0

    @property
    def stem(self) -> str:
        """A name for results: `srresnet_x4`, or `srresnet_x4_srgan_x4_0.5` for a blend."""
        return (
            self.path.stem
            if self.texture_path is None
            else f"{self.path.stem}_{self.texture_path.stem}_{self.texture}"
        )

    def __str__(self) -> str:
        blend = (
            ""
            if self.texture_path is None
            else f" blended with {self.texture_path} (--texture {self.texture})"
        )
        return f"{self.path}{blend}"


def chosen_weights(args: argparse.Namespace) -> Weights:
    """Return what the options of `add_weights_option` name, with their defaults filled in.

    Raises:
        UserError: `--texture-weights` was given without `--texture`.
    """
    if args.texture is not None:
        return Weights(args.weights or FAITHFUL, args.texture_weights or TEXTURED, args.texture)
    if args.texture_weights:
        raise cli.UserError(
            "--texture-weights needs --texture T, a number from 0 to 1 that says how much of that file to take"
        )
    return Weights(args.weights or args.default_weights)
