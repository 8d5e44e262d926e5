"""Compare a generator, or images enlarged elsewhere, with bicubic on a folder of HR images such as Set5 or BSD100.

python test_benchmark.py --hr Set5/HR --lr Set5/LR
python test_benchmark.py --hr Set5/HR --sr Set5/SR
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import torch

import inference
import metrics
from dataloader import TestDatasetFromFolder
from model import UPSCALES
from utils import cli, files, images, weights
from utils.device import add_options, resolve_device, resolve_precision

# The figures and their decimals on screen; some need a network or a larger image
FIGURES = {
    "Y_PSNR": 2,
    "Y_SSIM": 4,
    "RGB_PSNR": 2,
    "LPIPS": 4,
    "Distance": 3,
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
        choices=UPSCALES,
        help="the scale (default: that of the generator file; 4 with --sr)",
    )
    weights.add_weights_option(parser, default=weights.FAITHFUL)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results (default: results/benchmark_<weights or sr>_<hr>)",
    )
    parser.add_argument(
        "--perceptual-weights", metavar="imagenet|FILE",
        help="SqueezeNet's weights, for Distance; imagenet downloads torchvision's once, 5 MB (default: torchvision's if "
        "already downloaded, else no Distance)",
    )  # fmt: skip
    parser.add_argument(
        "--lpips",
        action="store_true",
        help="also measure LPIPS (pip install lpips; downloads AlexNet's weights once)",
    )
    add_options(parser, precision="fp32")
    return parser


def generated(
    generator: torch.nn.Module, precision: str, out: Path
) -> Callable[[str, np.ndarray], np.ndarray]:
    """Return a function (name, LR) -> SR that enlarges LR with the generator and writes the SR image to `out`."""

    def sr_of(name: str, lr: np.ndarray) -> np.ndarray:
        sr = inference.upscale(generator, lr, precision=precision)
        images.write_picture(out / f"{name}_x{generator.upscale}.png", images.Picture(sr))
        return sr

    return sr_of


def made_elsewhere(
    folder: Path, names: list[str], upscale: int
) -> Callable[[str, np.ndarray], np.ndarray]:
    """Return a function (name, LR) -> SR that reads the SR image named `name`, cropped to a multiple of the scale.

    Raises:
        UserError: a name has no SR image or several; from the returned function: an SR image is damaged or does not fit.
    """
    found: dict[str, list[Path]] = {}
    for path in images.list_images(folder):
        found.setdefault("_".join(path.relative_to(folder).with_suffix("").parts), []).append(path)
    partners = {
        name: [*found.get(name, []), *found.get(f"{name}_x{upscale}", [])] for name in names
    }
    for name, paths in partners.items():
        if len(paths) != 1:
            what = f"several SR images ({cli.listed(paths, most=3)})" if paths else "no SR image"
            raise cli.UserError(
                f"{name}: {what} named {name} or {name}_x{upscale} (with any suffix) in {folder}"
            )

    def sr_of(name: str, lr: np.ndarray) -> np.ndarray:
        sr = images.crop_to_multiple(images.read_picture(partners[name][0]).rgb, upscale)
        expected = [side * upscale for side in lr.shape[:2]]
        if list(sr.shape[:2]) != expected:
            raise cli.UserError(
                f"{partners[name][0]}: {sr.shape[1]}x{sr.shape[0]} pixels do not fit HR's {expected[1]}x{expected[0]} "
                f"(both cropped to multiples of {upscale}); was it enlarged with another --upscale?"
            )
        return sr

    return sr_of


def measure(
    image: torch.Tensor, hr: torch.Tensor, upscale: int, networks: torch.nn.ModuleDict
) -> dict[str, float]:
    """Return the values of `FIGURES` that one image (1, 3, H, W) uint8 has with these networks (see `metrics.beyond_psnr`)."""
    y_psnr, y_ssim = metrics.psnr_ssim_y(
        images.uint8_to_unit(image), images.uint8_to_unit(hr), upscale
    )
    values = {
        "Y_PSNR": y_psnr.item(),
        "Y_SSIM": y_ssim.item(),
        "RGB_PSNR": metrics.psnr_ssim_rgb(image, hr)[0],
    }
    return values | metrics.beyond_psnr(image, hr, upscale, networks)


@torch.inference_mode()
def measure_folder(
    dataset: TestDatasetFromFolder,
    sr_of: Callable[[str, np.ndarray], np.ndarray],
    upscale: int,
    device: torch.device,
    networks: torch.nn.ModuleDict,
) -> pandas.DataFrame:
    """Return one row per image with the values of bicubic and SR, and a last row with their means."""
    rows = []
    for name, lr, hr in cli.progress_bar(dataset, total=len(dataset), desc="images", unit="image"):
        if min(hr.shape[-2:]) <= 2 * upscale:
            raise cli.UserError(
                f"{name}: too small: the papers' protocol leaves out a border of {upscale} pixels"
            )
        lr_array, row = images.to_array(lr), {"Image": name}
        pictures = {
            "Bicubic": images.upscale_bicubic(lr_array, upscale),
            "SR": sr_of(name, lr_array),
        }
        for what, picture in pictures.items():
            values = measure(images.to_tensor(picture).to(device), hr.to(device), upscale, networks)
            row |= {f"{what}_{column}": value for column, value in values.items()}
        rows.append(row)
    table = pandas.DataFrame(rows)
    mean = table.drop(columns="Image").mean().to_dict()
    return pandas.concat([table, pandas.DataFrame([{"Image": "mean", **mean}])], ignore_index=True)


def print_table(table: pandas.DataFrame) -> None:
    """Print SR below bicubic, with as many decimals as the papers, and a dash for what an image does not have."""
    columns = [column for column in FIGURES if f"SR_{column}" in table]
    width = max(len(name) for name in table["Image"])
    print(f"{'':{width}}  {'':7}" + "".join(f"  {column:>8}" for column in columns))
    for _, row in table.iterrows():
        for name, what in ((row["Image"], "Bicubic"), ("", "SR")):
            values = [(row[f"{what}_{column}"], FIGURES[column]) for column in columns]
            cells = [
                "-" if math.isnan(value) else f"{value:.{decimals}f}" for value, decimals in values
            ]
            print(f"{name:{width}}  {what:7}" + "".join(f"  {cell:>8}" for cell in cells))


def main(args: argparse.Namespace) -> None:
    """Measure, print, and write."""
    if args.sr and (args.weights or args.texture_weights or args.texture is not None):
        raise cli.UserError(
            "--weights cannot be combined with --sr, which measures images that are already enlarged; nor can --texture"
        )
    if args.perceptual_weights == "random":
        raise cli.UserError(
            "--perceptual-weights random: Distance between untrained features means nothing; pass imagenet or a file"
        )
    device = resolve_device(args.device)
    if args.sr:
        upscale, measured = args.upscale or 4, args.sr.resolve().name
    else:
        chosen = weights.chosen_weights(args)
        generator = inference.open_generator(device=device, **vars(chosen))
        upscale, measured = generator.upscale, chosen.stem
        if args.upscale not in (None, upscale):
            raise cli.UserError(f"--upscale {args.upscale}: {chosen} holds an x{upscale} generator")
    dataset = TestDatasetFromFolder(args.lr, args.hr, upscale)
    out = args.out or Path("results", f"benchmark_{measured}_{args.hr.resolve().name}")
    if args.sr:
        sr_of = made_elsewhere(args.sr, dataset.names, upscale)
    else:
        sr_of = generated(generator, resolve_precision(args.precision, device, generator), out)
    networks = metrics.open_networks(args.lpips, args.perceptual_weights).to(device)
    files.make_folder(out)
    table = measure_folder(dataset, sr_of, upscale, device, networks)
    files.write_text(out / "benchmark.csv", table.to_csv(index=False, float_format="%.6g"))
    print_table(table)
    print(f"{out / 'benchmark.csv'}{'' if args.sr else ', and the SR images beside it'}")
    if "Distance" not in networks:
        print(
            "Distance was not measured: --perceptual-weights imagenet downloads SqueezeNet's weights once, 5 MB"
        )


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
