"""Enlarge images of any size and mode with a generator file.

python test_image.py photo.jpg                            writes photo_x4.png beside it
python test_image.py photo.jpg --weights srgan_x4 --out big.tif
python test_image.py render.png --texture 0.5             between srresnet_x4 and srgan_x4, for clean pictures
python test_image.py photos/ --out enlarged/ --recursive --skip-existing

Results are 8-bit PNG files unless --out names a file of another format (.jpg .webp .tif .bmp). Gray stays gray; CMYK becomes
sRGB; transparency, an RGB profile, EXIF, XMP and DPI are kept. Of several frames or pages, only the first is enlarged.
Images whose results would share a name, such as a.png and a.jpg, give a_png_x4.png and a_jpg_x4.png.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import torch

import inference
from utils import cli, images, weights
from utils.device import add_options, resolve_device, resolve_precision


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
        "--recursive", action="store_true", help="also read subfolders, which --out then mirrors"
    )
    weights.add_weights_option(parser)
    parser.add_argument(
        "--out", type=Path, help="file or folder for the results (default: beside each image)"
    )
    parser.add_argument(
        "--suffix",
        type=name_suffix,
        help="text to add to each name (default: _x and the scale, as in _x4)",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also write bicubic | SR as <result>_compare.png"
    )
    parser.add_argument(
        "--compare-with", type=weights.weights_file, metavar="NAME_OR_FILE",
        help="also enlarge with this generator, for the comparison: bicubic | its result | SR",
    )  # fmt: skip
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing results")
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip images that already have a result, to continue an interrupted folder",
    )
    parser.add_argument(
        "--tile",
        type=cli.tile_side,
        default="auto",
        metavar="auto|N|0",
        help="side of a tile in LR pixels; 0: no tiles",
    )
    add_options(parser)
    parser.add_argument(
        "--max-pixels",
        type=cli.positive_int,
        default=images.MAX_PIXELS,
        help="refuse larger images",
    )
    return parser


def name_suffix(text: str) -> str:
    """Parse a suffix for file names, short enough to leave room for the name itself."""
    if "/" in text or "\\" in text or len(os.fsencode(text)) > 50:
        raise argparse.ArgumentTypeError(
            f"{text!r} must not contain / or \\ or exceed 50 bytes; name a folder with --out"
        )
    return text


def find_images(
    inputs: list[Path], out: Path | None, suffix: str, recursive: bool
) -> list[tuple[Path, Path]]:
    """Return every input image with the folder for its result; `out` mirrors the subfolders of an input folder.

    Results of earlier runs, recognised by their names, are left out, and so is an `out` inside an input folder.

    Raises:
        UserError: an input does not exist, or there is no image.
    """
    own = tuple(f"{ending}.png" for ending in (suffix, f"{suffix}_compare") if ending)
    found = []
    for path in inputs:
        if path.is_dir():
            inside = out is not None and path.resolve() in out.resolve().parents
            for name in images.list_image_names(path, recursive):
                image = path / name
                if not name.endswith(own) and not (
                    inside and out.resolve() in image.resolve().parents
                ):
                    found.append((image, (out or path) / Path(name).parent))
        elif path.exists():
            found.append((path, out or path.parent))
        else:
            raise cli.UserError(f"{path}: no such image or folder")
    if not found:
        raise cli.UserError(f"{inputs[0]}: no image in this folder, other than earlier results")
    return found


def plan_outputs(
    inputs: list[Path],
    out: Path | None,
    suffix: str,
    recursive: bool = False,
    compare: bool = False,
) -> dict[Path, Path]:
    """Return the output path of every input image.

    Names are compared without regard to case, as many file systems do. If results would share a name, their images'
    formats are added: `a_png_x4.png`, `a_jpg_x4.png`.

    Raises:
        UserError: an input does not exist, there is no image, an output is also an input, or two inputs share an output.
    """
    found = find_images(inputs, out, suffix, recursive)
    if out is not None and not out.is_dir() and out.suffix.lower() in images.SUFFIXES:
        images.check_output_path(out)  # refuses formats that cannot be written
        if len(found) > 1 or inputs[0].is_dir():
            raise cli.UserError(
                f"--out {out}: one file cannot hold several results, or those of a folder; name a folder"
            )
        plan = {found[0][0]: out}
    else:
        ending = f"{suffix}_compare.png"
        plan = {
            path: folder / f"{images.fitting_name(path.stem, ending)}{suffix}.png"
            for path, folder in found
        }
        shared = Counter(map(as_compared, plan.values()))
        for path, folder in found:
            if shared[as_compared(plan[path])] > 1:
                stem = images.fitting_name(f"{path.stem}_{path.suffix[1:].lower()}", ending)
                plan[path] = folder / f"{stem}{suffix}.png"
    taken: dict[str, Path] = {}
    for path, target in plan.items():
        for result in results(target, compare):
            other = taken.setdefault(as_compared(result), path)
            if other != path:
                raise cli.UserError(
                    f"{other} and {path} would both be written to {result}; enlarge them one by one"
                )
    for path in plan:
        if as_compared(path) in taken:
            raise cli.UserError(
                f"{path} is an input and would be overwritten; choose another --out or --suffix"
            )
    return plan


def as_compared(path: Path) -> str:
    """Return a path as text that is equal for any two paths that a file system may treat as the same."""
    return str(path.resolve()).casefold()


def results(target: Path, compare: bool) -> list[Path]:
    """Return the files written for an image: the result and, with `compare`, the comparison."""
    return [target, target.with_name(f"{target.stem}_compare.png")] if compare else [target]


def open_generators(args: argparse.Namespace, device: torch.device) -> dict[str, torch.nn.Module]:
    """Return the generators by their labels in a comparison; the last one makes the result.

    Raises:
        UserError: they have different scales, or as for `inference.open_generator`.
    """
    chosen = weights.chosen_weights(args)
    if not args.compare_with:
        return {"SR": inference.open_generator(device=device, **vars(chosen))}
    opened = [
        inference.open_generator(args.compare_with, device),
        inference.open_generator(device=device, **vars(chosen)),
    ]
    if opened[0].upscale != opened[1].upscale:
        raise cli.UserError(
            f"--compare-with {args.compare_with}: an x{opened[0].upscale} generator, but {chosen} is not"
        )
    return dict(zip((args.compare_with.stem, f"{chosen.stem} (SR)"), opened, strict=True))


def enlarge(
    generators, source: Path, target: Path, args: argparse.Namespace, precision: str
) -> None:
    """Read, enlarge and write one image, and its comparison with `--compare`."""
    picture = images.read_picture(source, args.max_pixels)
    for note in picture.notes:
        print(f"{source}: {note}", file=sys.stderr)
    scale = next(iter(generators.values())).upscale
    height, width = (side * scale for side in picture.rgb.shape[:2])
    images.check_output_path(target, width, height, 1 if picture.gray else 3)
    panels = (
        [("bicubic", images.upscale_bicubic(images.on_white(picture), scale))]
        if args.compare
        else []
    )
    for label, generator in generators.items():
        enlarged = inference.upscale_picture(
            generator, picture, args.tile, precision, progress=True
        )
        if args.compare:
            panels.append((label, images.on_white(enlarged)))
    images.write_picture(target, enlarged)
    if args.compare:
        comparison = images.Picture(images.side_by_side(panels), icc_profile=picture.icc_profile)
        images.write_picture(results(target, True)[1], comparison)
    print(*results(target, args.compare), sep="\n")


def main(args: argparse.Namespace) -> int:
    """Enlarge every input; report those that cannot be read or written and continue; return 2 if there were any."""
    device, args.compare = resolve_device(args.device), args.compare or bool(args.compare_with)
    generators = open_generators(args, device)
    generator = list(generators.values())[-1]
    precision = resolve_precision(args.precision, device, generator)
    suffix = f"_x{generator.upscale}" if args.suffix is None else args.suffix
    plan = plan_outputs(args.inputs, args.out, suffix, args.recursive, args.compare)
    if args.skip_existing:
        rest = {
            path: target
            for path, target in plan.items()
            if not all(map(Path.exists, results(target, args.compare)))
        }
        print(f"{len(plan) - len(rest)} of {len(plan)} images skipped: their results exist")
        plan = rest
    for target in plan.values():
        for path in results(target, args.compare):
            if path.exists() and not args.overwrite and not args.skip_existing:
                raise cli.UserError(
                    f"{path}: already exists; pass --overwrite or --skip-existing, or choose another --out"
                )
        images.prepare_output(target)
    failed = 0
    for source, target in plan.items():
        try:
            enlarge(generators, source, target, args, precision)
        except (cli.UserError, OSError) as error:
            if len(plan) == 1 or isinstance(error, BrokenPipeError):
                raise
            print(f"test_image.py: error: {cli.describe(error)}", file=sys.stderr)
            failed += 1
    if failed:
        print(
            f"test_image.py: error: {failed} of {len(plan)} images were not enlarged",
            file=sys.stderr,
        )
    return 2 if failed else 0


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
