"""Get images to train on (DIV2K, scikit-image's photographs, smaller copies of your own), and degraded ones to test on.

python prepare_data.py div2k
python prepare_data.py demo
python prepare_data.py perceptual
python prepare_data.py smaller my_photos/train --out my_photos/train_sizes
python prepare_data.py degraded my_photos/valid --out my_photos/valid_degraded
"""

import argparse
import functools
import importlib.util
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np

import degradations
from model import UPSCALES
from utils import cli, downloads, files, images, pretrained
from utils.device import free_system_memory

DIV2K_URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K/"


DIV2K = {
    "train_HR": downloads.Archive(
        3530603713, "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335"
    ),
    "valid_HR": downloads.Archive(
        448993893, "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc"
    ),
    "train_LR_bicubic_X4": downloads.Archive(
        246914039, "f006b837f4eb52b82909aa01478e6d6d199eefce932179491d0c9dbb706dde3a"
    ),
    "valid_LR_bicubic_X4": downloads.Archive(
        31505881, "a50a5d1c4b88de4e8d300d8fb2b904c52fe93b2b298a4899697760d7cbb6d553"
    ),
}
DEMO_PHOTOGRAPHS = {
    "train": [
        *("astronaut.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png"),
        *("camera.png", "brick.png", "grass.png", "gravel.png", "coins.png"),
    ],
    "valid": ["chelsea.png", "coffee.png"],
}


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="prepare_data.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    div2k = commands.add_parser("div2k", help="download, check and unpack DIV2K")
    div2k.add_argument(
        "--parts",
        nargs="+",
        choices=DIV2K,
        default=["train_HR", "valid_HR"],
        help="archives to download",
    )
    div2k.add_argument(
        "--url", default=DIV2K_URL, help="URL of the folder with the archives, to use a mirror"
    )
    demo = commands.add_parser("demo", help="copy scikit-image's photographs into two folders")
    for command in (div2k, demo):
        command.add_argument(
            "--data", type=Path, default=Path("data"), help="folder for the images"
        )
    perceptual = commands.add_parser(
        "perceptual",
        help="download the ImageNet weights of a perceptual network, once; print the value of --perceptual-weights",
    )
    perceptual.add_argument(
        "--network",
        choices=pretrained.LEAST_SIDES,
        default="squeezenet",
        help="as train.py's --perceptual",
    )
    perceptual.add_argument(
        "--within",
        type=cli.non_negative_float,
        metavar="SECONDS",
        help="give up after this time, and print `random`",
    )
    smaller = commands.add_parser("smaller", help="write smaller copies of a folder of images")
    smaller.add_argument("folder", type=Path, help="folder of images; subfolders are included")
    smaller.add_argument(
        "--out", type=Path, required=True, help="folder for the copies, which are PNG files"
    )
    smaller.add_argument(
        "--factors",
        type=factor,
        nargs="+",
        default=[1, 0.7, 0.5],
        help="relative sizes of the copies, above 0 and up to 1",
    )
    degraded = commands.add_parser(
        "degraded",
        help="write LR files of a folder of HR images as train.py --degradation photo makes them, to measure on",
    )
    degraded.add_argument("folder", type=Path, help="folder of HR images; subfolders are included")
    degraded.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the LR images, PNG files of the same names",
    )
    degraded.add_argument(
        "--seed", type=cli.non_negative_int, default=0, help="another seed gives other degradations"
    )
    degraded.add_argument(
        "--upscale", type=int, choices=UPSCALES, default=4, help="how many times smaller LR is"
    )
    degraded.add_argument(
        "--sheet",
        type=Path,
        help="also draw some degradations of the first images, to look at, as this file",
    )
    return parser


def factor(text: str) -> float:
    """Parse a relative size, above 0 and up to 1."""
    value = cli.non_negative_float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


# --- DIV2K --------------------------------------------------------------------------------------------------------


def prepare_div2k(data: Path, part: str, url: str) -> None:
    """Download, check and unpack one archive of DIV2K into `data`, unless it is there already.

    Raises:
        UserError: the server does not answer, or sends something other than the archive.
        OSError: the disk is full or cannot be written.
    """
    name = f"DIV2K_{part}"
    folder, archive = data / name, DIV2K[part]
    if folder.exists():
        print(f"{folder}: already there")
        return
    zip_path = data / f"{name}.zip"
    if zip_path.exists():
        downloads.check_archive(zip_path, archive, f"delete {zip_path} and run this again")
    else:
        files.check_free_space(
            data, 2 * archive.size, "name a folder on another disk with --data DIR"
        )
        downloads.download(url.rstrip("/") + f"/{name}.zip", zip_path, archive)
    files.check_free_space(data, archive.size, "name a folder on another disk with --data DIR")
    downloads.unpack(zip_path, folder)
    zip_path.unlink()
    print(f"{folder}: {len(images.list_images(folder))} images")


# --- the demo's photographs ---------------------------------------------------------------------------------------


def prepare_demo(data: Path) -> None:
    """Copy scikit-image's photographs to `data`/demo/train and `data`/demo/valid (held out)."""
    source = importlib.util.find_spec("skimage")
    if source is None:
        raise cli.UserError("scikit-image is not installed: pip install -r requirements.txt")
    for part, names in DEMO_PHOTOGRAPHS.items():
        folder = files.make_folder(data / "demo" / part)
        for name in names:
            with (
                open(Path(source.origin).parent / "data" / name, "rb") as photograph,
                files.write_atomic(folder / name) as copy,
            ):
                shutil.copyfileobj(photograph, copy)
        print(f"{folder}: {len(names)} photographs")


def prepare_perceptual(network: str, seconds: float | None) -> None:
    """Download a perceptual network's weights if they are missing; print the source that train.py is to use."""
    if seconds is None:
        pretrained.weights_file(network, "imagenet")
    elif not pretrained.download_within(network, seconds):
        missing = pretrained.missing_download(network, "imagenet")
        print(
            f"could not download {missing} within {seconds:g} seconds: using untrained features",
            file=sys.stderr,
        )
        print("random")
        return
    print("imagenet")


def check_outside(out: Path, folder: Path) -> None:
    """Raise UserError if the copies of a folder's images would be written into the folder itself."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise cli.UserError(
            f"--out {out} lies inside {folder}, whose images are copied; name another folder"
        )


# --- copies at several sizes --------------------------------------------------------------------------------------


def prepare_smaller(folder: Path, out: Path, factors: list[float]) -> None:
    """Write the images of a folder to `out` at several sizes (bicubic), as `<name>_<percent>.png`.

    A smaller copy has more detail per pixel, and less of the camera's blur, noise and compression.

    Raises:
        UserError: the folder does not exist, has no image or one that cannot be read, or `out` lies inside it.
        OSError: the disk is full or cannot be written.
    """
    labels = [
        f"{size:.2%}".replace(".00%", "").replace(".", "_").replace("%", "") for size in factors
    ]
    check_outside(out, folder)
    names = images.list_image_names(folder)
    files.make_folder(out)
    jobs = list(zip((folder / name for name in names), images.result_names(names), strict=True))
    cli.map_in_processes(
        functools.partial(_write_smaller, out, dict(zip(labels, factors))),
        jobs,
        None,
        f"copying {folder.name}",
    )
    print(f"{out}: {len(jobs) * len(set(labels))} images")


def _write_smaller(out: Path, sizes: dict[str, float], job: tuple[Path, str]) -> None:
    source, name = job
    rgb = images.read_picture(source).rgb
    for label, size in sizes.items():
        height, width = (max(1, round(side * size)) for side in rgb.shape[:2])
        smaller = images.resize_bicubic(rgb, height, width)
        images.write_picture(out / f"{name}_{label}.png", images.Picture(smaller))


# --- degraded copies ----------------------------------------------------------------------------------------------


def prepare_degraded(folder: Path, out: Path, seed: int, upscale: int) -> None:
    """Write the degraded LR image of every HR image of a folder, the same on every machine, as `<name>.png`.

    Raises:
        UserError: the folder does not exist, has no image, one that cannot be read or two of one name, or `out` lies inside
            it.
        OSError: the disk is full or cannot be written.
    """
    check_outside(out, folder)
    names = images.list_image_names(folder)
    targets = [Path(name).with_suffix(".png") for name in names]
    if len(set(targets)) < len(names):
        twice = next(str(target.with_suffix("")) for target in targets if targets.count(target) > 1)
        raise cli.UserError(
            f"{folder}: several images are named {twice}, and LR is found by its name; rename them"
        )
    for place in {target.parent for target in targets}:
        files.make_folder(out / place)
    job = functools.partial(_write_degraded, folder, out, seed, upscale)
    written = sum(
        cli.map_in_processes(
            job, names, _processes_for_memory(folder, names), f"degrading {folder.name}"
        )
    )
    print(
        f"{out}: {written} images"
        + (f", {len(names) - written} left out (too small)" if written < len(names) else "")
    )


def _processes_for_memory(folder: Path, names: list[str]) -> int | None:
    """Return how many processes can degrade a folder's largest image at once in the free memory; None if that is unknown."""
    free, largest = (
        free_system_memory(),
        max(math.prod(images.read_size(folder / name)) for name in names),
    )
    if free is None:
        return None
    return min(
        os.cpu_count() or 1, max(1, int(free // (degradations.FILE_BYTES_PER_PIXEL * largest)))
    )


def _write_degraded(folder: Path, out: Path, seed: int, upscale: int, name: str) -> bool:
    hr = images.crop_to_multiple(images.read_picture(folder / name).rgb, upscale)
    if hr.size:
        lr = degradations.degrade_file(hr, upscale, name, seed)
        images.write_picture((out / name).with_suffix(".png"), images.Picture(lr))
    return bool(hr.size)


def draw_sheet(
    folder: Path, path: Path, seed: int, upscale: int, rows: int = 6, side: int = 48
) -> None:
    """Draw the LR of the first images' centres, three times as large: bicubic, three light and three full degradations."""
    panels = []
    for name in images.list_image_names(folder):
        hr = images.crop_to_multiple(images.read_picture(folder / name).rgb, upscale)
        if min(hr.shape[:2]) < side * upscale or len(panels) == rows:
            continue
        hr = np.ascontiguousarray(images.crop_centre(hr, side * upscale))
        rng = np.random.default_rng([seed, len(panels)])
        kinds = ["clean", *3 * ["light"], *3 * ["full"]]
        panels.append(
            np.concatenate([degradations.degrade(hr, upscale, rng, kind=kind) for kind in kinds], 1)
        )
    if not panels:
        raise cli.UserError(
            f"{folder}: no image is as large as {side * upscale}x{side * upscale}, which --sheet needs"
        )
    images.write_picture(path, images.Picture(np.concatenate(panels).repeat(3, 0).repeat(3, 1)))
    print(f"{path}: in each row, bicubic, three light and three full degradations")


def main(args: argparse.Namespace) -> None:
    """Run the chosen command."""
    if args.command == "degraded":
        if args.sheet:
            images.prepare_output(args.sheet)
            draw_sheet(args.folder, args.sheet, args.seed, args.upscale)
        prepare_degraded(args.folder, args.out, args.seed, args.upscale)
        return
    if args.command == "smaller":
        prepare_smaller(args.folder, args.out, args.factors)
        return
    if args.command == "perceptual":
        prepare_perceptual(args.network, args.within)
        return
    data = files.make_folder(args.data)
    if args.command == "demo":
        prepare_demo(data)
    else:
        with files.lock(data / ".lock"):
            files.remove_leftovers(data)
            for part in args.parts:
                prepare_div2k(data, part, args.url)


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
