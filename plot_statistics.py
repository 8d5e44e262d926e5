"""Draw a run's statistics.csv as one PNG: losses, scores, speed, and PSNR and SSIM compared with bicubic.

python plot_statistics.py results/srgan_x4/statistics.csv
"""

import argparse
from pathlib import Path

from utils import cli, files, statistics

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


def plot(table, path: Path) -> None:
    """Draw the columns of a statistics table (see `statistics.COLUMNS`) against its epochs and write the picture as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    panels = dict(zip(("psnr", "ssim", "scores", "generator", "discriminator", "speed"), axes.flat))
    marker = "." if len(table) <= 60 else None

    def line(panel: str, column: str, label: str, **style) -> None:
        there = table[column].notna()
        if there.any():
            panels[panel].plot(
                table["Epoch"][there], table[column][there], label=label, marker=marker, **style
            )

    for panel, column, title in (
        ("psnr", "PSNR", "PSNR, dB (RGB)"),
        ("ssim", "SSIM", "SSIM (RGB)"),
    ):
        line(panel, column, "SR")
        line(panel, f"Bicubic_{column}", "bicubic", color="0.4", linestyle="--")
        panels[panel].set_title(title)
    line("scores", "Score_D", "D(x), real")
    line("scores", "Score_G", "D(G(z)), fake")
    panels["scores"].set(title="discriminator's mean probability", ylim=(-0.02, 1.02))
    for column, label in LOSSES.items():
        if (table[column] > 0).any():
            line("generator", column, label)
            panels["generator"].set_yscale("log")
    panels["generator"].set_title("generator's losses (terms unweighted)")
    line("discriminator", "Loss_D", "Loss_D")
    panels["discriminator"].set_title("discriminator's loss")
    line("speed", "Images_Per_Second", "images/s", color="tab:green")
    panels["speed"].set(title="training speed, images/s", ylim=(0, None))
    for axis in axes.flat:
        _finish(axis, table)
    with files.write_atomic(path) as file:
        figure.savefig(file, format="png", dpi=100)
    plt.close(figure)


def _finish(axis, table) -> None:
    """Add the epoch axis, a shade over the pixel-only epochs and a legend to a panel."""
    epochs, pixel_only = table["Epoch"], table["Loss_D"].isna()
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    if pixel_only.any():
        axis.axvspan(
            epochs.min() - 0.5,
            epochs[pixel_only].max() + 0.5,
            color="tab:blue",
            alpha=0.07,
            label="pixel-only",
        )
    if axis.has_data() and axis.lines:
        axis.legend()
    else:
        axis.text(0.5, 0.5, "no adversarial epoch", transform=axis.transAxes, ha="center")


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
