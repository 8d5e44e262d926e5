"""Compare a generator, or images enlarged elsewhere, with bicubic on HR images such as Set5.

python test_benchmark.py --hr Set5/HR --lr Set5/LR
python test_benchmark.py --hr Set5/HR --sr Set5/SR
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import choices
import inference
from utils import cli, files, images, machine, weights

if TYPE_CHECKING:  # large packages are imported after the command line is parsed
    import pandas
    import torch
    from torch import Tensor

    from dataloader import TestDatasetFromFolder

SRSource = Callable[[str, np.ndarray], np.ndarray]  # (name, LR) -> SR, both (H, W, 3) uint8

# The figures and their decimals on screen. Some need a network or a larger image.
FIGURES = {
    "Y_PSNR": 2,
    "Y_SSIM": 4,
    "RGB_PSNR": 2,
    "LPIPS": 4,
    "Distance": 3,
    "Distance_VGG19": 3,
    "Detail": 2,
    "Colour": 2,
    "Grid": 2,
}


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="test_benchmark.py", description=__doc__)
    parser.add_argument("--hr", type=Path, required=True, help="folder of HR images")
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--lr", type=Path, help="folder of LR images, paired by name (default: bicubic from HR)"
    )
    given.add_argument(
        "--sr",
        type=Path,
        help="folder of images enlarged elsewhere, as NAME or NAME_x<scale>, any suffix",
    )
    parser.add_argument(
        "--upscale",
        type=int,
        choices=choices.UPSCALES,
        help="the scale (default: the generator file's; 4 with --sr)",
    )
    weights.add_weights_option(parser, default=weights.FAITHFUL)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results (default: results/benchmark_<weights or sr>_<hr>)",
    )
    parser.add_argument(
        "--perceptual-weights",
        nargs="+",
        default=[],
        metavar="imagenet|FILE",
        help="one or two networks' weights: SqueezeNet's give Distance, VGG19's give "
        "Distance_VGG19; imagenet: torchvision's SqueezeNet, downloaded once, 5 MB (default: that "
        "one if already downloaded, else none)",
    )
    parser.add_argument(
        "--lpips",
        action="store_true",
        help="also measure LPIPS (pip install lpips; downloads AlexNet's weights once)",
    )
    machine.add_options(parser, precision="fp32", backend=True)
    return parser


def generated(engine: inference.Engine, precision: str, out: Path) -> SRSource:
    """Return a function that enlarges an LR image and writes the SR image to `out`."""

    def sr_of(name: str, lr: np.ndarray) -> np.ndarray:
        sr = inference.upscale(engine, lr, precision=precision)
        images.write_picture(out / f"{name}_x{engine.upscale}.png", images.Picture(sr))
        return sr

    return sr_of


def made_elsewhere(folder: Path, names: list[str], upscale: int) -> SRSource:
    """Return a function that reads an SR image by name, cropped to a multiple of the scale.

    Raises:
        UserError: a name has no SR image or several; from the returned function: an SR image is
            damaged or does not fit.
    """
    # Pair the names with files
    files_of: dict[str, list[Path]] = {}
    for path in images.list_images(folder):
        stem = "_".join(path.relative_to(folder).with_suffix("").parts)
        files_of.setdefault(stem, []).append(path)
    partners = {}
    for name in names:
        paths = files_of.get(name, []) + files_of.get(f"{name}_x{upscale}", [])
        if len(paths) != 1:
            what = f"several SR images ({cli.listed(paths, most=3)})" if paths else "no SR image"
            raise cli.UserError(
                f"{name}: {what} named {name} or {name}_x{upscale} (with any suffix) in {folder}"
            )
        partners[name] = paths[0]

    def sr_of(name: str, lr: np.ndarray) -> np.ndarray:
        sr = images.crop_to_multiple(images.read_picture(partners[name]).rgb, upscale)
        height, width = (side * upscale for side in lr.shape[:2])
        if sr.shape[:2] != (height, width):
            raise cli.UserError(
                f"{partners[name]}: {sr.shape[1]}x{sr.shape[0]} pixels do not fit HR's "
                f"{width}x{height} (both cropped to multiples of {upscale}); was it enlarged with "
                "another --upscale?"
            )
        return sr

    return sr_of


def measure(
    image: Tensor, hr: Tensor, upscale: int, networks: torch.nn.ModuleDict
) -> dict[str, float]:
    """Return the `FIGURES` of an image (1, 3, H, W) uint8, of SR or bicubic.

    Args:
        networks: of `metrics.distance_networks`.
    """
    import metrics

    unit = images.uint8_to_unit(image)
    y_psnr, y_ssim = metrics.psnr_ssim_y(unit, images.uint8_to_unit(hr), upscale)
    rgb_psnr, _rgb_ssim = metrics.psnr_ssim_rgb(image, hr)
    return {
        "Y_PSNR": y_psnr.item(),
        "Y_SSIM": y_ssim.item(),
        "RGB_PSNR": rgb_psnr,
        **metrics.beyond_psnr(image, hr, upscale, networks),
    }


def measure_folder(
    dataset: TestDatasetFromFolder,
    sr_of: SRSource,
    upscale: int,
    device: torch.device,
    networks: torch.nn.ModuleDict,
) -> pandas.DataFrame:
    """Return one row per image with the values of bicubic and SR, and a last row of means."""
    import pandas

    rows = []
    for index in cli.progress_bar(range(len(dataset)), desc="images", unit="image"):
        name, lr, hr = dataset[index]
        if min(hr.shape[-2:]) <= 2 * upscale:
            raise cli.UserError(
                f"{name}: too small: the papers' protocol leaves out a border of {upscale} pixels"
            )
        lr_array = images.to_array(lr)
        results = {
            "Bicubic": images.upscale_bicubic(lr_array, upscale),
            "SR": sr_of(name, lr_array),
        }
        row: dict[str, str | float] = {"Image": name}
        for what, result in results.items():
            values = measure(images.to_tensor(result).to(device), hr.to(device), upscale, networks)
            row |= {f"{what}_{column}": value for column, value in values.items()}
        rows.append(row)
    table = pandas.DataFrame(rows)
    means = table.drop(columns="Image").mean().to_dict()
    return pandas.concat([table, pandas.DataFrame([{"Image": "mean", **means}])], ignore_index=True)


def print_table(table: pandas.DataFrame) -> None:
    """Print SR below bicubic, with the papers' decimals and a dash for what an image lacks."""
    widths = {name: max(8, len(name)) for name in FIGURES if f"SR_{name}" in table}
    names = max(len(name) for name in table["Image"])
    print(f"{'':{names}}  {'':7}" + "".join(f"  {name:>{n}}" for name, n in widths.items()))
    for _, row in table.iterrows():
        for name, what in ((row["Image"], "Bicubic"), ("", "SR")):
            line = f"{name:{names}}  {what:7}"
            for column, width in widths.items():
                value = row[f"{what}_{column}"]
                text = "-" if math.isnan(value) else f"{value:.{FIGURES[column]}f}"
                line += f"  {text:>{width}}"
            print(line)


def main(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    import torch

    import metrics
    from dataloader import TestDatasetFromFolder
    from utils import pretrained
    from utils.device import resolve_device

    generator_options = (args.weights, args.texture_weights, args.backend != "auto")
    if args.sr and (any(generator_options) or args.texture is not None):
        raise cli.UserError(
            "--weights cannot be combined with --sr, which measures images that are already "
            "enlarged; nor can --texture or --backend"
        )
    if "random" in args.perceptual_weights:
        raise cli.UserError(
            "--perceptual-weights random: Distance between untrained features means nothing; pass "
            "imagenet or a file"
        )

    # Open what makes SR, the images and the networks that measure distances
    device = resolve_device(args.device)
    if args.sr:
        upscale = args.upscale or 4
        measured = args.sr.resolve().name
    else:
        chosen = weights.chosen_weights(args)
        engine = inference.open_engine(chosen, args.device, args.backend)
        upscale = engine.upscale
        measured = chosen.stem
        if args.upscale not in (None, upscale):
            raise cli.UserError(f"--upscale {args.upscale}: {chosen} holds an x{upscale} generator")
    if upscale == 1 and args.lr is None:
        raise cli.UserError(
            "at x1, bicubic would leave HR as it is; measure a generator (--weights) with degraded "
            "images (--lr), such as those of prepare_data.py degraded --upscale 1"
        )
    dataset = TestDatasetFromFolder(args.lr, args.hr, upscale)
    out = args.out or Path("results", f"benchmark_{measured}_{args.hr.resolve().name}")
    if args.sr:
        sr_of = made_elsewhere(args.sr, dataset.names, upscale)
    else:
        sr_of = generated(engine, engine.precision_of(args.precision), out)
    perceptual = [pretrained.load_to_measure(source) for source in args.perceptual_weights]
    if len({one.network for one in perceptual}) < len(perceptual):
        raise cli.UserError("--perceptual-weights: name one file of each network at most")
    networks = metrics.distance_networks(args.lpips, perceptual).to(device)
    files.make_folder(out)

    # Measure and report
    with torch.inference_mode():
        table = measure_folder(dataset, sr_of, upscale, device, networks)
    files.write_text(out / "benchmark.csv", table.to_csv(index=False, float_format="%.6g"))
    print_table(table)
    print(f"{out / 'benchmark.csv'}{'' if args.sr else ', and the SR images beside it'}")
    if "Distance" not in networks:
        print(
            "Distance was not measured: --perceptual-weights imagenet downloads SqueezeNet's "
            "weights once, 5 MB"
        )


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
