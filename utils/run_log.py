"""What a training run records: its progress, the statistics CSV, the line of an epoch, and config.json."""

import argparse
import json
import math
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils import cli, files, images
from utils.options import needs_vgg, plain_options

TERMS = ["Loss_D", "Loss_G", "Score_D", "Score_G", "Loss_Pixel", "Loss_Adversarial", "Loss_Perceptual", "Loss_TV"]
PIXEL_TERMS = ["Loss_G", "Loss_Pixel"]  # what a pixel-only epoch has
COLUMNS = [
    *("Epoch", "Loss_D", "Loss_G", "Score_D", "Score_G", "PSNR", "SSIM"),
    *("Loss_Pixel", "Loss_Adversarial", "Loss_Perceptual", "Loss_TV", "Bicubic_PSNR", "Bicubic_SSIM"),
    *("Learning_Rate", "Images_Per_Second", "Seconds", "LPIPS"),
]
# Charts that belong together share a page of TensorBoard.
_TENSORBOARD_GROUPS = {
    **{name: f"loss/{name}" for name in COLUMNS if name.startswith("Loss_")},
    **{name: f"score/{name}" for name in ("Score_D", "Score_G")},
    **{name: f"validation/{name}" for name in ("PSNR", "SSIM", "Bicubic_PSNR", "Bicubic_SSIM", "LPIPS")},
    **{name: f"run/{name}" for name in ("Learning_Rate", "Images_Per_Second", "Seconds")},
}
_SHOWN = {"Loss_D": "Loss_D", "Loss_G": "Loss_G", "Score_D": "D(x)", "Score_G": "D(G(z))"}
_WATCHED_EPOCHS = 3


@dataclass
class Progress:
    """How far a run has come: the epoch that is due or under way, its batches done, and what they summed to.

    Of several processes each has its own `sums`; all else is of all together.
    """

    epoch: int = 1  # from 1, the pixel-only epochs first
    batch: int = 0
    samples: int = 0
    seconds: float = 0.0
    sums: Tensor | None = None  # of the phase's terms, each batch weighted by its samples
    best_psnr: float = -math.inf  # of the phase

    def means(self, terms: list[str]) -> dict[str, float]:
        """Return the means of the epoch so far by name; RunError where one is not finite."""
        means = dict(zip(terms, (self.sums / max(1, self.samples)).tolist()))
        stop_unless_finite(means, self.epoch, self.batch)
        return means

    def check_weights(self, networks: dict[str, nn.Module]) -> None:
        """Raise RunError where a network has a weight that is not finite."""
        sums = {
            f"weights of the {name}": sum(tensor.cpu().double().sum().item() for tensor in network.state_dict().values())
            for name, network in networks.items()
        }
        stop_unless_finite(sums, self.epoch, self.batch)


def describe_plan(args: argparse.Namespace, networks: list[nn.Module], image_counts: list[int], loader: DataLoader) -> str:
    """Return every option and what is about to be done, as lines.

    `networks` are the generator and the discriminator; `image_counts` are those for training and for validation.
    """
    batches, sampler = len(loader), loader.batch_sampler
    g, d = (sum(p.numel() for p in network.parameters()) for network in networks)
    total = batches * (args.pretrain_epochs + args.epochs)
    lines = [
        "options: " + " ".join(f"{name}={value}" for name, value in plain_options(args).items() if value is not None),
        f"networks: generator {g:,} parameters, discriminator {d:,}; {args.device}, {args.precision}",
        f"images: {image_counts[0]} for training, {image_counts[1]} for validation",
        f"plan: {args.pretrain_epochs} pixel-only and {args.epochs} adversarial epochs of {batches:,} updates "
        f"with {args.batch_size} crops of {args.crop}x{args.crop}: {total:,} updates",
    ]
    if sampler.world_size > 1:
        lines.append(f"processes: {sampler.world_size}, each with its share of every batch")
    if sampler.left_out:
        lines.append(f"note: {sampler.left_out} samples of every epoch's last batch cannot be shared evenly and are left out")
    if needs_vgg(args) and args.vgg_weights == "random":
        lines.append("note: --vgg-weights random: the perceptual loss compares features of an UNTRAINED VGG16, not ImageNet's")
    return "\n".join(lines)


def new_row(
    progress: Progress,
    terms: list[str],
    missing: tuple[str, ...],
    rate: float,
    validation_seconds: float,
    scores: dict[str, float],
) -> dict[str, Any]:
    """Return the CSV row of a finished epoch; what does not apply to it, such as the `missing` terms, is None."""
    values = {
        "Epoch": progress.epoch,
        "Learning_Rate": rate,
        "Images_Per_Second": progress.samples / progress.seconds,
        "Seconds": progress.seconds + validation_seconds,
    }
    return dict.fromkeys(COLUMNS) | values | progress.means(terms) | dict.fromkeys(missing) | scores


def write_statistics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the CSV, whole or not at all; a value that does not apply to an epoch is None and stays empty."""
    files.write_text(path, pandas.DataFrame(rows, columns=COLUMNS).to_csv(index=False, float_format="%.7g"))


def read_statistics(path: Path) -> pandas.DataFrame:
    """Read the CSV of a run.

    Raises:
        OSError: the file cannot be opened.
        ValueError: not such a CSV, or one without epochs.
    """
    try:
        table = pandas.read_csv(path)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise cli.UserError(f"{path}: not a CSV file ({' '.join(str(error).split())})") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise cli.UserError(f"{path}: not the statistics of a run, no column {', '.join(missing)}")
    if table.empty:
        raise cli.UserError(f"{path}: no epoch is finished yet")
    text = [name for name in COLUMNS if not pandas.api.types.is_numeric_dtype(table[name])]
    if text:
        raise cli.UserError(f"{path}: column {text[0]} holds something that is not a number")
    return table


def describe_terms(means: dict[str, float]) -> str:
    """Return the losses and scores that people watch, for the bar and the line of an epoch."""
    return "  ".join(f"{_SHOWN[name]} {mean:.4g}" for name, mean in means.items() if name in _SHOWN and mean is not None)


def describe_epoch(rows: list[dict[str, Any]], total_epochs: int) -> str:
    """Return the line of the newest epoch, and what a discriminator that has won or lost means."""
    row = rows[-1]
    parts = [f"epoch {row['Epoch']}/{total_epochs}", describe_terms(row)]
    if row["PSNR"] is not None:
        parts.append(f"PSNR {row['PSNR']:.2f} dB (bicubic {row['Bicubic_PSNR']:.2f})")
        parts.append(f"SSIM {row['SSIM']:.4f} ({row['Bicubic_SSIM']:.4f})")
    parts.append(f"{row['Images_Per_Second']:.1f} images/s  {row['Seconds']:.0f} s")
    text = "  ".join(parts)
    gaps = [row["Score_D"] - row["Score_G"] for row in rows[-_WATCHED_EPOCHS:] if row["Score_D"] is not None]
    if len(gaps) == _WATCHED_EPOCHS and min(gaps) > 0.99:
        text += f"\nnote: D(x) - D(G(z)) above 0.99 for {_WATCHED_EPOCHS} epochs: D tells real from fake without fail, and G "
        text += "learns little from it; more --pretrain-epochs or a lower --learning-rate help"
    if len(gaps) == _WATCHED_EPOCHS and max(gaps) < 0.01:
        text += f"\nnote: D(x) - D(G(z)) below 0.01 for {_WATCHED_EPOCHS} epochs: D tells nothing apart, it has collapsed or G "
        text += "has won; look at the triplets, and start again with a lower --learning-rate if they are poor"
    return text


def describe_result(rows: list[dict[str, Any]]) -> str:
    """Return the best epoch of a run beside bicubic."""
    validated = [row for row in rows if row["PSNR"] is not None and not math.isnan(row["PSNR"])]
    best = max(validated, key=lambda row: row["PSNR"], default=None)
    if best is None:
        return "no epoch was validated"
    return (
        f"best PSNR {best['PSNR']:.2f} dB, SSIM {best['SSIM']:.4f} in epoch {best['Epoch']}; "
        f"bicubic {best['Bicubic_PSNR']:.2f} dB, {best['Bicubic_SSIM']:.4f}: {best['PSNR'] - best['Bicubic_PSNR']:+.2f} dB"
    )


def stop_unless_finite(values: dict[str, float], epoch: int, step: int) -> None:
    """Raise RunError naming the values that are not finite, the epoch, the step, and what to try."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise cli.RunError(
            f"{', '.join(wrong)} not finite in epoch {epoch}, by step {step}; the checkpoints are from before that. "
            "Try a lower --learning-rate, --warmup-steps, or --precision fp32, with another --out"
        )


class TensorBoard:
    """The rows of the CSV and the triplets as TensorBoard events, in a folder of their own.

    Raises:
        ValueError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, epochs_done: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise cli.UserError("--tensorboard: the package is missing; pip install tensorboard") from error
        # What a killed process wrote of epochs that are made again is not shown twice.
        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def write(self, row: dict[str, Any], triplets: Path) -> None:
        """Add a finished epoch: its row, and the pictures in the folder `triplets` where it is there."""
        for name, value in row.items():
            if name != "Epoch" and value is not None:
                self._writer.add_scalar(_TENSORBOARD_GROUPS[name], value, row["Epoch"])
        for path in images.list_images(triplets) if triplets.is_dir() else ():
            self._writer.add_image(f"validation/{path.stem}", images.read_picture(path).rgb, row["Epoch"], dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


def write_config(path: Path, options: dict[str, Any], device: torch.device) -> None:
    """Write what tells how a run was made: every option, library versions, git commit, device."""
    git = ["git", "-C", str(Path(__file__).parent.parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    packages = ("torch", "torchvision", "numpy", "pillow", "pandas", "pytorch-msssim")
    config = {
        "options": options,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "git_commit": commit,
        "device": {"type": device.type, "name": name, "threads": torch.get_num_threads()},
    }
    files.write_text(path, json.dumps(config, indent=2) + "\n")
