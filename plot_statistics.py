"""Draw a run's statistics.csv as one PNG: PSNR and SSIM beside bicubic, losses, scores and speed.

python plot_statistics.py results/srgan_x4/statistics.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli, files, statistics

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

LOSSES = {
    "Loss_G": "total",
    "Loss_Pixel": "pixel",
    "Loss_Perceptual": "perceptual",
    "Loss_Adversarial": "adversarial",
}


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="plot_statistics.py", description=__doc__)
    parser.add_argument("statistics", type=Path, metavar="STATISTICS_CSV", help="the CSV of a run")
    parser.add_argument("--out", type=Path, help="the PNG to write (default: beside the CSV)")
    return parser


def plot(table: pandas.DataFrame, path: Path) -> None:
    """Draw a statistics table (see `statistics.COLUMNS`) against its epochs as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    psnr, ssim, scores, generator, discriminator, speed = axes.flat
    epochs = table["Epoch"]
    marker = "." if len(table) <= 60 else None

    def draw(panel: Axes, column: str, label: str, **style: Any) -> None:
        there = table[column].notna()
        if there.any():
            panel.plot(epochs[there], table[column][there], label=label, marker=marker, **style)

    # Image quality
    draw(psnr, "PSNR", "SR")
    draw(psnr, "Bicubic_PSNR", "bicubic", color="0.4", linestyle="--")
    psnr.set_title("PSNR, dB (RGB)")
    draw(ssim, "SSIM", "SR")
    draw(ssim, "Bicubic_SSIM", "bicubic", color="0.4", linestyle="--")
    ssim.set_title("SSIM (RGB)")

    # Training
    draw(scores, "Score_D", "D(x), real")
    draw(scores, "Score_G", "D(G(z)), fake")
    scores.set(title="discriminator's mean probability", ylim=(-0.02, 1.02))
    for column, label in LOSSES.items():
        if (table[column] > 0).any():
            draw(generator, column, label)
            generator.set_yscale("log")
    generator.set_title("generator's losses (terms unweighted)")
    draw(discriminator, "Loss_D", "Loss_D")
    discriminator.set_title("discriminator's loss")
    draw(speed, "Images_Per_Second", "images/s", color="tab:green")
    speed.set(title="training speed, images/s", ylim=(0, None))

    # Epoch axes, with a shade over the pixel-only epochs
    first = epochs.min() - 0.5
    pixel_only = table["Loss_D"].isna()
    for panel in axes.flat:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlim(first, epochs.max() + 0.5)
        if pixel_only.any():
            last = epochs[pixel_only].max() + 0.5
            panel.axvspan(first, last, color="tab:blue", alpha=0.07, label="pixel-only")
        if panel.lines:
            panel.legend()
        else:
            missing = "validated" if panel in (psnr, ssim) else "adversarial"
            panel.text(0.5, 0.5, f"no {missing} epoch", transform=panel.transAxes, ha="center")

    with files.write_atomic(path) as file:
        figure.savefig(file, format="png", dpi=100)
    plt.close(figure)


def main(args: argparse.Namespace) -> None:
    """Read the CSV and draw it."""
    path = args.out or args.statistics.with_suffix(".png")
    if path.resolve() == args.statistics.resolve():
        raise cli.UserError(f"{path} is the CSV itself; name the picture with --out")
    table = statistics.read_statistics(args.statistics)
    plot(table, path)
    print(f"{path}: {statistics.describe_result(table.to_dict('records'))}")


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
