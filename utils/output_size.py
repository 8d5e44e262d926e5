"""The size that a result is to have: the generator's scale, another one, or a size in pixels."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from utils import cli

scale = cli.number_between(0.01, 64)


@dataclass(frozen=True)
class OutputSize:
    """What a result's size is to be; if both are None, the generator's scale decides.

    Attributes:
        outscale: the final scale, whole or not.
        size: (width, height) in pixels; one may be None and follows from the other.
    """

    outscale: float | None = None
    size: tuple[int | None, int | None] | None = None

    def suffix(self, upscale: int) -> str:
        """Return what is added to the names of results: `_x4`, `_x1.5` or `_1920x`."""
        if self.size is not None:
            width, height = (side or "" for side in self.size)
            return f"_{width}x{height}"
        return f"_x{self.outscale or upscale:g}"

    def of(
        self, name: str | Path, width: int, height: int, upscale: int, max_pixels: int | None = None
    ) -> tuple[int, int]:
        """Return the (width, height) of an enlarged picture.

        Args:
            name: what messages call the picture.
            width, height: of the picture.
            upscale: the generator's scale.
            max_pixels: limit for pictures; results may have `upscale`² times as many. None: no
                limit.

        Raises:
            UserError: the size has not the picture's proportions, or the result too many pixels.
        """
        if self.size is None:
            factor = self.outscale or upscale
            result = max(1, round(width * factor)), max(1, round(height * factor))
        else:
            result = _completed(name, width, height, self.size)
        most = None if max_pixels is None else max_pixels * upscale**2
        if most is not None and result[0] * result[1] > most:
            raise cli.UserError(
                f"{name}: a result of {result[0]}x{result[1]} pixels is too large; at most "
                f"{most:,} are allowed, {upscale**2} times --max-pixels"
            )
        return result


def _completed(
    name: str | Path, width: int, height: int, size: tuple[int | None, int | None]
) -> tuple[int, int]:
    """Complete a size of which one side may be None, and refuse one that would distort."""
    wanted_width, wanted_height = size
    if wanted_width is None:
        assert wanted_height is not None
        return max(1, round(width * wanted_height / height)), wanted_height
    fitting_height = max(1, round(height * wanted_width / width))
    if wanted_height is None:
        return wanted_width, fitting_height
    fitting_width = max(1, round(width * wanted_height / height))
    if abs(wanted_width - fitting_width) > 1 and abs(wanted_height - fitting_height) > 1:
        raise cli.UserError(
            f"{name}: a size of {wanted_width}x{wanted_height} would distort {width}x{height} "
            f"pixels; {wanted_width}x or x{wanted_height} keeps the proportions"
        )
    return wanted_width, wanted_height


# --- the command line ---------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--outscale` and `--size`, at most one of which may be given, for an `OutputSize`."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--outscale",
        type=scale,
        metavar="S",
        help="final scale, such as 1.5: the result is resized by Lanczos (default: the "
        "generator's scale)",
    )
    size.add_argument(
        "--size",
        type=picture_size,
        metavar="WxH",
        help="final width and height in pixels; either may be left out, as in 1920x or x1080",
    )


def picture_size(text: str) -> tuple[int | None, int | None]:
    """Parse WIDTHxHEIGHT in pixels, where one of the two may be left out (None)."""
    match = re.fullmatch(r"(\d*)x(\d*)", text.lower())
    sides = [int(digits) if digits else None for digits in match.groups()] if match else []
    if not any(sides) or 0 in sides:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT in pixels, such as 1920x1080, 1920x or x1080"
        )
    width, height = sides
    return width, height
