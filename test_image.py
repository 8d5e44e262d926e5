"""Enlarge images by a generator file, whatever their size and mode.

python test_image.py photo.jpg
python test_image.py photos/ --out enlarged/ --compare
"""

import argparse
import sys
from pathlib import Path

import inference
from utils import cli, images
from utils.device import add_options, resolve_device, resolve_precision


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="test_image.py", description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help="images, or folders of images")
    inference.add_weights_option(parser)
    parser.add_argument("--out", type=Path, help="file or folder (default: <name>_x<scale>.png beside the input)")
    parser.add_argument("--tile", type=tile, default="auto", metavar="auto|N|0", help="LR side of a tile; 0: no tiles")
    add_options(parser)
    parser.add_argument("--compare", action="store_true", help="also write bicubic | SR as <name>_x<scale>_compare.png")
    parser.add_argument("--overwrite", action="store_true", help="write over results that are there already")
    parser.add_argument("--max-pixels", type=cli.positive_int, default=images.MAX_PIXELS, help="refuse inputs of more pixels")
    return parser


def tile(text: str) -> int | str:
    """Parse `auto` or a tile's side; 0 means the whole image."""
    return text if text == "auto" else cli.non_negative_int(text)


def plan_outputs(inputs: list[Path], out: Path | None, upscale: int, compare: bool = False) -> dict[Path, Path]:
    """Return the output path of every input image.

    Raises:
        ValueError: no such input, a folder without images, an output that is an input, or two inputs with one output.
    """
    suffix = f"_x{upscale}"
    own = (f"{suffix}.png", f"{suffix}_compare.png")
    paths = []
    for path in inputs:
        if path.is_dir():
            paths += [image for image in images.list_images(path, recursive=False) if not image.name.endswith(own)]
        elif path.exists():
            paths.append(path)
        else:
            raise cli.UserError(f"{path}: no such image or folder")
    if not paths:
        raise cli.UserError(f"{inputs[0]}: no image in this folder that is not a result already")
    if out is not None and not out.is_dir() and out.suffix.lower() in images.SUFFIXES:
        images.check_output_path(out)  # an image, but of a kind that is not written
    into_file = out is not None and not out.is_dir() and out.suffix.lower() in images.OUTPUT_SUFFIXES
    if into_file and (len(paths) > 1 or inputs[0].is_dir()):
        raise cli.UserError(f"--out {out}: one file cannot take the results of a folder or of several images; name a folder")
    plan: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for path in paths:
        target = out if into_file else (out or path.parent) / f"{images.fitting_name(path.stem)}{suffix}.png"
        if target.resolve() in taken:
            raise cli.UserError(f"{taken[target.resolve()]} and {path} would both be written to {target}; do them one by one")
        taken[target.resolve()] = path
        plan[path] = target
    if compare:
        taken |= {comparison_path(target).resolve(): path for path, target in plan.items()}
    for path in paths:
        if path.resolve() in taken:
            raise cli.UserError(f"{path}: is an input and would be written over; name another --out")
    return plan


def enlarge(generator, source: Path, target: Path, args: argparse.Namespace, precision: str) -> None:
    """Read, enlarge and write one image, with its comparison where that is asked for."""
    picture = images.read_picture(source, args.max_pixels)
    height, width = (side * generator.upscale for side in picture.rgb.shape[:2])
    images.check_output_path(target, width, height)
    tile_side = None if args.tile == "auto" else args.tile
    sr = inference.upscale(generator, picture.rgb, tile_side, precision, progress=True)
    alpha = None if picture.alpha is None else images.upscale_bicubic(picture.alpha, generator.upscale)
    images.write_picture(target, images.Picture(sr, alpha, picture.icc_profile))
    print(target)
    if args.compare:
        pair = images.side_by_side([("bicubic", images.upscale_bicubic(picture.rgb, generator.upscale)), ("SR", sr)])
        images.write_picture(comparison_path(target), images.Picture(pair, None, picture.icc_profile))
        print(comparison_path(target))


def comparison_path(target: Path) -> Path:
    """Return where the comparison of a result goes."""
    return target.with_name(f"{target.stem}_compare.png")


def main(args: argparse.Namespace) -> int:
    """Enlarge every input; go on past images that cannot be read, and tell so by the exit status."""
    device = resolve_device(args.device)
    generator = inference.open_generator(args.weights, device)
    precision = resolve_precision(args.precision, device, generator)
    plan = plan_outputs(args.inputs, args.out, generator.upscale, args.compare)
    for target in plan.values():
        for path in (target, comparison_path(target)) if args.compare else (target,):
            if path.exists() and not args.overwrite:
                raise cli.UserError(f"{path}: exists already; pass --overwrite, or name another --out")
        images.prepare_output(target)
    failed = 0
    for source, target in plan.items():
        try:
            enlarge(generator, source, target, args, precision)
        except (ValueError, OSError) as error:
            if len(plan) == 1:
                raise
            print(f"test_image.py: error: {cli.describe(error)}", file=sys.stderr)
            failed += 1
    if failed:
        print(f"test_image.py: error: {failed} of {len(plan)} images were not enlarged", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
