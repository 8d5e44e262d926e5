"""Measure a generator beside bicubic on a folder of HR images, as the papers do: Set5, Set14, BSD100 and their like.

python test_benchmark.py --hr Set5/HR --lr Set5/LR
"""

import argparse
import sys
from pathlib import Path

import pandas
import torch

import inference
import metrics
from dataloader import TestDatasetFromFolder
from model import UPSCALES
from utils import cli, files, images
from utils.device import add_options, resolve_device, resolve_precision

FIGURES = {"Y_PSNR": 2, "Y_SSIM": 4, "RGB_PSNR": 2, "LPIPS": 4}  # and their digits on screen


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="test_benchmark.py", description=__doc__)
    parser.add_argument("--hr", type=Path, required=True, help="folder of HR images")
    parser.add_argument("--lr", type=Path, help="folder of LR images, paired by name (default: HR made smaller by bicubic)")
    parser.add_argument("--upscale", type=int, choices=UPSCALES, help="the scale (default: that of the generator file)")
    inference.add_weights_option(parser)
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/benchmark_<weights>_<hr>)")
    add_options(parser, precision="fp32")
    return parser


def measure(image: torch.Tensor, hr: torch.Tensor, upscale: int, lpips: metrics.LPIPS | None) -> dict[str, float]:
    """Return the values of `FIGURES` for one image (1, 3, H, W) uint8; LPIPS only where it can be measured."""
    y_psnr, y_ssim = metrics.psnr_ssim_y(images.uint8_to_unit(image), images.uint8_to_unit(hr), upscale)
    values = {"Y_PSNR": y_psnr.item(), "Y_SSIM": y_ssim.item(), "RGB_PSNR": metrics.psnr_ssim_rgb(image, hr)[0]}
    if lpips is not None and min(hr.shape[-2:]) >= metrics.LPIPS_LEAST_SIDE:
        values["LPIPS"] = lpips(images.uint8_to_signed(image), images.uint8_to_signed(hr)).item()
    return values


@torch.inference_mode()
def measure_folder(generator, dataset: TestDatasetFromFolder, precision: str, lpips, out: Path) -> pandas.DataFrame:
    """Return a row for each image and their mean, with bicubic's and SR's values; write the SR images to `out`."""
    rows = []
    for name, lr, hr in cli.progress_bar(dataset, total=len(dataset), desc="images", unit="image"):
        if min(hr.shape[-2:]) <= 2 * generator.upscale:
            raise cli.UserError(f"{name}: too small, the papers' protocol leaves a border of {generator.upscale} pixels out")
        lr_array = images.to_array(lr)
        pictures = {
            "Bicubic": images.upscale_bicubic(lr_array, generator.upscale),
            "SR": inference.upscale(generator, lr_array, precision=precision),
        }
        images.write_picture(out / f"{name}_x{generator.upscale}.png", images.Picture(pictures["SR"]))
        device = next(generator.parameters()).device
        row = {"Image": name}
        for what, picture in pictures.items():
            values = measure(images.to_tensor(picture).to(device), hr.to(device), generator.upscale, lpips)
            row |= {f"{what}_{column}": value for column, value in values.items()}
        rows.append(row)
    table = pandas.DataFrame(rows)
    mean = table.drop(columns="Image").mean().to_dict()
    return pandas.concat([table, pandas.DataFrame([{"Image": "mean", **mean}])], ignore_index=True)


def print_table(table: pandas.DataFrame) -> None:
    """Print bicubic beside SR, in the papers' number of digits."""
    columns = [column for column in FIGURES if f"SR_{column}" in table]
    width = max(len(name) for name in table["Image"])
    print(" " * width + "".join(f"  {column:>17}" for column in columns))
    print(" " * width + "  {:>8} {:>8}".format("bicubic", "SR") * len(columns))
    for _, row in table.iterrows():
        cells = (f"  {row[f'Bicubic_{c}']:8.{FIGURES[c]}f} {row[f'SR_{c}']:8.{FIGURES[c]}f}" for c in columns)
        print(f"{row['Image']:<{width}}" + "".join(cells))


def main(args: argparse.Namespace) -> None:
    """Measure, print, and write."""
    device = resolve_device(args.device)
    generator = inference.open_generator(args.weights, device)
    if args.upscale not in (None, generator.upscale):
        raise cli.UserError(f"--upscale {args.upscale}: {args.weights} holds a generator of x{generator.upscale}")
    dataset = TestDatasetFromFolder(args.lr, args.hr, generator.upscale)
    out = files.make_folder(args.out or Path("results", f"benchmark_{args.weights.stem}_{args.hr.resolve().name}"))
    try:
        lpips = metrics.LPIPS().to(device)
    except ValueError as error:
        lpips = None
        print(error, file=sys.stderr)
    table = measure_folder(generator, dataset, resolve_precision(args.precision, device), lpips, out)
    files.write_text(out / "benchmark.csv", table.to_csv(index=False, float_format="%.6g"))
    print_table(table)
    print(f"{out / 'benchmark.csv'}, and the SR images beside it")


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
