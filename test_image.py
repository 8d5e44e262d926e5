"""Enlarge images of any size and colour mode with a generator file.

python test_image.py photo.jpg                            writes photo_x4.png beside it
python test_image.py photo.jpg --weights srgan_x4 --out big.tif
python test_image.py render.png --texture 0.5             halfway from srresnet_x4 to srgan_x4
python test_image.py photo.jpg --size 3840x               3840 pixels wide (no detail beyond x4)
python test_image.py photos/ --out enlarged/ --recursive --skip-existing --format jpg

The default generator is weights/photo_x4.pth. Results are PNG files unless --format or --out names
another format. Grayscale stays grayscale; CMYK becomes sRGB; 16 bits per channel (in PNG and TIFF),
transparency, RGB profiles, EXIF, XMP, IPTC, texts and DPI are kept. Only the first of several
frames or pages is enlarged. If results would share a name, the formats are added: a.png and a.jpg
give a_png_x4.png and a_jpg_x4.png.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import inference
from utils import cli, images, machine, output_size, outputs, plugins, weights
from utils.output_size import OutputSize

IMAGES = outputs.Kind(
    script="test_image.py",
    noun="image",
    sort=images.sorted_by_kind,
    suffixes=images.OUTPUT_SUFFIXES,
    ending="_compare.png",
    advice=plugins.advice_for,
)


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="test_image.py", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IMAGE_OR_FOLDER",
        help="images, or folders of images",
    )
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="also read subfolders, and mirror them in the folder given with --out",
    )
    weights.add_weights_option(parser, default=weights.PHOTO)
    parser.add_argument(
        "--out",
        type=Path,
        help="file or folder for the results (default: beside each image)",
    )
    parser.add_argument(
        "--suffix",
        type=name_suffix,
        help="text added to each name (default: the scale or the size, as in _x4 or _3840x)",
    )
    output_size.add_options(parser)
    parser.add_argument(
        "--format",
        choices=images.FORMATS,
        help="format of the results (default: png, or what --out names)",
    )
    parser.add_argument(
        "--quality",
        type=cli.whole_number_between(1, 100),
        metavar="Q",
        help="quality from 1 to 100 (default: 95 for JPEG and AVIF; WebP and JPEG XL: lossless)",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="average the results for eight orientations of the picture: slightly nearer to the "
        "original, in eight times the time",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also write bicubic | SR as <result>_compare.png",
    )
    parser.add_argument(
        "--compare-with",
        type=weights.weights_file,
        metavar="NAME_OR_FILE",
        help="also enlarge with this generator and compare: bicubic | its result | SR",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing results")
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip images that already have a result, to continue an interrupted run",
    )
    parser.add_argument(
        "--part",
        type=cli.part,
        metavar="K/N",
        help="enlarge only every N-th image, from the K-th on, so that N machines can share a "
        "folder; under torchrun or srun, the processes divide it without this option",
    )
    parser.add_argument(
        "--tile",
        type=cli.tile_side,
        default="auto",
        metavar="auto|N|0",
        help="side of a tile in input pixels; auto: as large as memory allows; 0: no tiles",
    )
    machine.add_options(parser, backend=True)
    parser.add_argument(
        "--max-pixels",
        type=cli.positive_int,
        default=images.MAX_PIXELS,
        metavar="N",
        help="refuse images with more than N pixels",
    )
    return parser


def name_suffix(text: str) -> str:
    """Parse a suffix for file names, short enough to leave room for the name itself."""
    if "/" in text or "\\" in text or len(os.fsencode(text)) > 50:
        raise argparse.ArgumentTypeError(
            f"{text!r} must not contain / or \\ or exceed 50 bytes; name a folder with --out"
        )
    return text


def check_quality(quality: int | None, targets: Iterable[Path]) -> None:
    """Raise UserError if a format that stores every pixel exactly is given a quality."""
    for target in targets:
        if quality is not None and images.output_format(target) not in images.LOSSY_FORMATS:
            raise cli.UserError(
                f"--quality {quality} is for JPEG, WebP, AVIF and JPEG XL, not for {target.name}; "
                "choose --format jpg, webp, avif or jxl, or an --out that ends so"
            )


# --- names of results ---------------------------------------------------------------------------


def plan_outputs(
    inputs: list[Path],
    out: Path | None,
    suffix: str,
    recursive: bool = False,
    compare: bool = False,
    file_format: str | None = None,
) -> dict[Path, Path]:
    """Return the output path of every input image.

    Raises:
        UserError: as for `outputs.find`, `only_input` and `check_apart`, or `out` is a file that
            cannot be written.
    """
    found = outputs.find(IMAGES, inputs, out, suffix, recursive)
    if out is not None and not out.is_dir() and images.names_a_picture(out):
        images.output_format(out)  # refuses formats that cannot be written
        if file_format and not _is_format(out, file_format):
            raise cli.UserError(
                f"--out {out} contradicts --format {file_format}; leave out one of them"
            )
        plan = {outputs.only_input(found, inputs, out): out}
    else:
        form = f".{file_format or 'png'}"
        plan = outputs.name_results(IMAGES, found, suffix, lambda path: form)
    outputs.check_apart(plan, partial(result_files, compare=compare))
    return plan


def _is_format(path: Path, file_format: str) -> bool:
    return images.OUTPUT_SUFFIXES[path.suffix.lower()] == images.OUTPUT_SUFFIXES[f".{file_format}"]


def part_of(plan: dict[Path, Path], number: int, count: int) -> dict[Path, Path]:
    """Return one of several parts of a plan, counted from 1: every `count`-th image."""
    return dict(list(plan.items())[number - 1 :: count])


def result_files(target: Path, compare: bool) -> list[Path]:
    """Return the files written for an image: the result and, with `compare`, the comparison."""
    if not compare:
        return [target]
    return [target, target.with_name(f"{target.stem}_compare.png")]


# --- enlarging ----------------------------------------------------------------------------------


@dataclass
class Engines:
    """What enlarges: the generator, and with `--compare-with` another one.

    Attributes:
        engine: makes the result.
        label: the result's label in a comparison.
        other: makes the picture in the middle of a comparison, or None.
        other_label: its label.
    """

    engine: inference.Engine
    label: str = "SR"
    other: inference.Engine | None = None
    other_label: str = ""


def open_engines(args: argparse.Namespace) -> Engines:
    """Open the generators that the options name.

    Raises:
        UserError: they have different scales, cannot compute in `--precision`, or as for
            `inference.open_engine`.
    """
    # Refuse a precision that cannot work before any image is read
    chosen = weights.chosen_weights(args)
    engine = inference.open_engine(chosen, args.device, args.backend)
    engine.precision_of(args.precision)
    engines = Engines(inference.Ensemble(engine) if args.ensemble else engine)

    if args.compare_with:
        other = inference.open_engine(weights.Weights(args.compare_with), args.device, args.backend)
        other.precision_of(args.precision)
        if other.upscale != engine.upscale:
            raise cli.UserError(
                f"--compare-with {args.compare_with}: an x{other.upscale} generator, "
                f"but {chosen} is not"
            )
        engines.label = f"{chosen.stem} (SR)"
        engines.other = inference.Ensemble(other) if args.ensemble else other
        engines.other_label = args.compare_with.stem
    return engines


def enlarge(
    engines: Engines,
    source: Path,
    target: Path,
    args: argparse.Namespace,
) -> None:
    """Read, enlarge and write one image, and its comparison with `--compare`.

    Args:
        engines: the generators.
        source, target: the image's path and the result's.
        args: the options.
    """
    # Read
    picture = images.read_picture(source, args.max_pixels, keep_depth=True)
    for note in picture.notes:
        print(f"{source}: {note}", file=sys.stderr)

    # Size of the result
    height, width = picture.rgb.shape[:2]
    wanted = OutputSize(args.outscale, args.size)
    size = wanted.of(source, width, height, engines.engine.upscale, args.max_pixels)
    images.output_format(target, *size, 1 if picture.gray else 3)  # refuses sizes it cannot hold

    def enlarged(engine: inference.Engine) -> images.Picture:
        return inference.upscale_picture(
            engine, picture, args.tile, args.precision, progress=True, size=size
        )

    # Enlarge
    panels = []
    if args.compare:
        panels.append(("bicubic", images.resize_bicubic(images.on_white(picture), *size)))
    if engines.other is not None:
        panels.append((engines.other_label, images.on_white(enlarged(engines.other))))
        engines.other.release_memory()
    sr = enlarged(engines.engine)
    if args.compare:
        panels.append((engines.label, images.on_white(sr)))
    if engines.other is not None:
        engines.engine.release_memory()  # for the other one, in the next image

    # Write the result, whole or not at all; the picture's metadata come with it
    for loss in images.what_is_lost(sr, target):
        print(f"{target}: {loss}", file=sys.stderr)
    written = result_files(target, args.compare)
    images.write_picture(target, sr, args.quality)
    if args.compare:
        row = images.side_by_side(panels)
        colours = images.Metadata(colours=picture.metadata.colours)
        compared = images.Picture(row, icc_profile=picture.icc_profile, metadata=colours)
        images.write_picture(written[1], compared)
    print(*written, sep="\n")


def main(args: argparse.Namespace) -> int:
    """Enlarge every input; report those that fail and continue; return 2 if there were any."""
    # Plan
    args.compare = args.compare or args.compare_with is not None
    engines = open_engines(args)
    suffix = args.suffix
    if suffix is None:
        suffix = OutputSize(args.outscale, args.size).suffix(engines.engine.upscale)
    plan = plan_outputs(args.inputs, args.out, suffix, args.recursive, args.compare, args.format)
    check_quality(args.quality, plan.values())
    number, parts = args.part or machine.process_part()
    if parts > 1:
        total = len(plan)
        plan = part_of(plan, number, parts)
        print(f"part {number}/{parts}: {len(plan)} of {cli.counted(total, 'image')}")

    # Existing results
    files_of = partial(result_files, compare=args.compare)
    if args.skip_existing:
        plan = outputs.unfinished(IMAGES, plan, files_of)
    elif not args.overwrite:
        outputs.refuse_existing(plan.values(), files_of)
    for target in plan.values():
        images.prepare_output(target)

    def enlarge_one(source: Path, target: Path) -> None:
        enlarge(engines, source, target, args)

    return outputs.enlarge_each(IMAGES, plan, enlarge_one)


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
