"""Get images to train on: DIV2K, a few photographs, smaller copies of your own, or drawings.

Also make degraded LR images to test on, and download the weights of a perceptual network.

python prepare_data.py div2k
python prepare_data.py demo
python prepare_data.py perceptual
python prepare_data.py smaller my_photos/train --out my_photos/train_sizes
python prepare_data.py drawings --out my_photos/train/drawings
python prepare_data.py degraded my_photos/valid --out my_photos/valid_degraded
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import choices
from utils import cli, downloads, drawings, files, images, machine
from utils.processes import map_in_processes

if TYPE_CHECKING:
    from degradations import Degradation

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

    # Images to train on
    div2k = commands.add_parser("div2k", help="download, check and unpack DIV2K")
    div2k.add_argument(
        "--parts",
        nargs="+",
        choices=DIV2K,
        default=["train_HR", "valid_HR"],
        help="archives to download",
    )
    div2k.add_argument(
        "--url", default=DIV2K_URL, help="URL of the folder with the archives, such as a mirror"
    )
    demo = commands.add_parser("demo", help="copy scikit-image's photographs into two folders")
    for command in (div2k, demo):
        command.add_argument(
            "--data", type=Path, default=Path("data"), help="folder for the images"
        )

    # Perceptual weights
    perceptual = commands.add_parser(
        "perceptual",
        help="download the ImageNet weights of a perceptual network, once, and print the value "
        "for --perceptual-weights",
    )
    perceptual.add_argument(
        "--network",
        choices=choices.PERCEPTUAL_NETWORKS,
        default="squeezenet",
        help="the network; name it with train.py --perceptual too, whose default is vgg16",
    )

    # Copies
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

    # Drawings
    drawn = commands.add_parser(
        "drawings",
        help="draw pictures of shapes and words in pure colours, which a generator that has seen "
        "only photographs would shift",
    )
    drawn.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    drawn.add_argument("--count", type=cli.positive_int, default=24, help="how many to draw")
    drawn.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the drawings")

    # LR
    degraded = commands.add_parser(
        "degraded",
        help="write the LR image of every HR image in a folder, for benchmarks; by default "
        "degraded as with train.py --degradation photo",
    )
    degraded.add_argument("folder", type=Path, help="folder of HR images; subfolders are included")
    degraded.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the LR images, PNG files with the same names",
    )
    degraded.add_argument(
        "--degradation",
        choices=choices.DEGRADATIONS,
        default="photo",
        help="how LR is made from HR",
    )
    degraded.add_argument(
        "--seed", type=cli.non_negative_int, default=0, help="seed of the degradation"
    )
    degraded.add_argument(
        "--upscale",
        type=int,
        choices=choices.UPSCALES,
        default=4,
        help="how many times smaller LR is; 1: as large as HR",
    )
    degraded.add_argument(
        "--sheet",
        type=Path,
        help="also write an overview to this picture: several LR versions of each of the first six "
        "HR images",
    )
    return parser


def factor(text: str) -> float:
    """Parse a relative size, above 0 and up to 1."""
    value = cli.non_negative_float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return value


# --- DIV2K --------------------------------------------------------------------------------------


def prepare_div2k(data: Path, part: str, url: str) -> None:
    """Download, check and unpack an archive of DIV2K into `data`, unless it is there already.

    Raises:
        UserError: the server does not answer, or sends something other than the archive.
        OSError: the disk is full or cannot be written.
    """
    name = f"DIV2K_{part}"
    archive = DIV2K[part]
    folder = data / name
    if folder.exists():
        print(f"{folder}: already there")
        return
    zip_path = data / f"{name}.zip"
    advice = "name a folder on another disk with --data DIR"
    if zip_path.exists():
        downloads.check_archive(zip_path, archive, f"delete {zip_path} and run this again")
    else:
        files.check_free_space(data, 2 * archive.size, advice)
        downloads.download(url.rstrip("/") + f"/{name}.zip", zip_path, archive)
    files.check_free_space(data, archive.size, advice)
    downloads.unpack(zip_path, folder)
    zip_path.unlink()
    print(f"{folder}: {cli.counted(len(images.list_images(folder)), 'image')}")


# --- the demo -----------------------------------------------------------------------------------


def prepare_demo(data: Path) -> None:
    """Copy scikit-image's photographs to `data`/demo/train and `data`/demo/valid (held out)."""
    skimage = importlib.util.find_spec("skimage")
    if skimage is None or skimage.origin is None:
        raise cli.UserError("scikit-image is not installed: pip install -r requirements.txt")
    photographs = Path(skimage.origin).parent / "data"
    for part, names in DEMO_PHOTOGRAPHS.items():
        folder = files.make_folder(data / "demo" / part)
        for name in names:
            with open(photographs / name, "rb") as photograph:
                with files.write_atomic(folder / name) as copy:
                    shutil.copyfileobj(photograph, copy)
        print(f"{folder}: {len(names)} photographs")


# --- copies -------------------------------------------------------------------------------------


def check_outside(out: Path, folder: Path) -> None:
    """Raise UserError if the copies of a folder's images would be written into the folder."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise cli.UserError(
            f"--out {out} lies inside {folder}, whose images are copied; name another folder"
        )


def prepare_smaller(folder: Path, out: Path, factors: list[float]) -> None:
    """Write the images of a folder to `out` at several sizes (bicubic), as `<name>_<percent>.png`.

    A smaller copy has more detail per pixel, and less of the camera's blur, noise and compression.

    Raises:
        UserError: the folder does not exist, has no image or one that cannot be read, or `out` lies
            inside it.
        OSError: the disk is full or cannot be written.
    """
    check_outside(out, folder)
    sizes = {_percent(factor): factor for factor in factors}
    names = images.list_image_names(folder)
    files.make_folder(out)
    jobs = list(zip(names, images.result_names(names), strict=True))
    write = functools.partial(_write_smaller, folder, out, sizes)
    map_in_processes(write, jobs, None, f"copying {folder.name}")
    print(f"{out}: {cli.counted(len(jobs) * len(sizes), 'image')}")


def _percent(factor: float) -> str:
    """Return a relative size in percent, for a file name: `70`, `33_33`."""
    return f"{factor:.2%}".removesuffix("%").removesuffix(".00").replace(".", "_")


def _write_smaller(folder: Path, out: Path, sizes: dict[str, float], job: tuple[str, str]) -> None:
    name, result_name = job
    rgb = images.read_picture(folder / name).rgb
    for percent, size in sizes.items():
        height, width = (max(1, round(side * size)) for side in rgb.shape[:2])
        smaller = images.resize_bicubic(rgb, width, height)
        images.write_picture(out / f"{result_name}_{percent}.png", images.Picture(smaller))


# --- drawings -----------------------------------------------------------------------------------


def prepare_drawings(out: Path, count: int, seed: int) -> None:
    """Write drawings to `out` as `drawing_<number>.png`; a larger count keeps the first ones.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    files.make_folder(out)
    for number in cli.progress_bar(range(count), desc="drawing"):
        drawing = drawings.draw(np.random.default_rng([seed, number]))
        images.write_picture(out / f"drawing_{number:03}.png", images.Picture(drawing))
    print(f"{out}: {cli.counted(count, 'drawing')}")


# --- LR -----------------------------------------------------------------------------------------


def prepare_degraded(
    folder: Path, out: Path, degradation: Degradation, seed: int, upscale: int
) -> None:
    """Write the LR image of every HR image of a folder, the same on every machine, as `<name>.png`.

    Raises:
        UserError: the folder does not exist, has no image, one that cannot be read or two of one
            name, or `out` lies inside it.
        OSError: the disk is full or cannot be written.
    """
    check_outside(out, folder)
    names = images.list_image_names(folder)
    targets = [Path(name).with_suffix(".png") for name in names]
    for target, uses in Counter(targets).items():
        if uses > 1:
            raise cli.UserError(
                f"{folder}: several images are named {target.with_suffix('')}, and LR files "
                "are found by name; rename them"
            )
    for place in {target.parent for target in targets}:
        files.make_folder(out / place)
    write = functools.partial(_write_degraded, folder, out, degradation, seed, upscale)
    processes = _processes_for_memory(folder, names)
    done = map_in_processes(write, names, processes, f"degrading {folder.name}")
    written = sum(done)
    left_out = len(names) - written
    note = f", {left_out} left out (too small)" if left_out else ""
    print(f"{out}: {cli.counted(written, 'image')}{note}")


def _processes_for_memory(folder: Path, names: list[str]) -> int | None:
    """Return how many processes can degrade a folder's largest image at once in the free memory.

    None if the free memory is not known.
    """
    from degradations import FILE_BYTES_PER_PIXEL

    free = machine.free_system_memory()
    if free is None:
        return None
    largest = max(math.prod(images.read_size(folder / name)) for name in names)
    fitting = int(free // (FILE_BYTES_PER_PIXEL * largest))
    return min(machine.cores(), max(1, fitting))


def _write_degraded(
    folder: Path, out: Path, degradation: Degradation, seed: int, upscale: int, name: str
) -> bool:
    """Write one LR image; return False if the HR image is too small."""
    hr = images.crop_to_multiple(images.read_picture(folder / name).rgb, upscale)
    if not hr.size:
        return False
    lr = degradation.degrade_image(hr, upscale, name, seed)
    images.write_picture((out / name).with_suffix(".png"), images.Picture(lr))
    return True


def draw_sheet(
    folder: Path,
    path: Path,
    degradation: Degradation,
    seed: int,
    upscale: int,
    rows: int = 6,
    side: int = 48,
) -> None:
    """Draw the LR of the first images' centres, three times as large: bicubic, then examples.

    Raises:
        UserError: no image is large enough.
    """
    panels: list[np.ndarray] = []
    for name in images.list_image_names(folder):
        if len(panels) == rows:
            break
        hr = images.crop_to_multiple(images.read_picture(folder / name).rgb, upscale)
        if min(hr.shape[:2]) < side * upscale:
            continue
        hr = np.ascontiguousarray(images.crop_centre(hr, side * upscale))
        rng = np.random.default_rng([seed, len(panels)])
        examples = degradation.examples(hr, upscale, rng)
        panels.append(np.concatenate([images.downscale(hr, upscale), *examples], axis=1))
    if not panels:
        size = f"{side * upscale}x{side * upscale}"
        raise cli.UserError(f"{folder}: no image is as large as {size}, which --sheet needs")
    sheet = np.concatenate(panels).repeat(3, axis=0).repeat(3, axis=1)
    images.write_picture(path, images.Picture(sheet))
    print(f"{path}: in each row, bicubic and then six LR images of {degradation.version}")


def main(args: argparse.Namespace) -> None:
    """Run the chosen command."""
    if args.command == "perceptual":
        from utils import pretrained

        pretrained.weights_file(args.network, "imagenet")
        print("imagenet")
    elif args.command == "smaller":
        prepare_smaller(args.folder, args.out, args.factors)
    elif args.command == "drawings":
        prepare_drawings(args.out, args.count, args.seed)
    elif args.command == "degraded":
        from degradations import DEGRADATIONS

        if args.upscale == 1 and args.degradation == "bicubic":
            raise cli.UserError(
                "--upscale 1 with --degradation bicubic would only copy the images; choose another "
                "--degradation"
            )
        degradation = DEGRADATIONS[args.degradation]
        if args.sheet:
            images.prepare_output(args.sheet)
            draw_sheet(args.folder, args.sheet, degradation, args.seed, args.upscale)
        prepare_degraded(args.folder, args.out, degradation, args.seed, args.upscale)
    elif args.command == "demo":
        prepare_demo(files.make_folder(args.data))
    else:
        data = files.make_folder(args.data)
        with files.lock(data / ".lock"):
            files.remove_leftovers(data)
            for part in args.parts:
                prepare_div2k(data, part, args.url)


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
