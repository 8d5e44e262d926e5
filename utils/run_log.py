"""What a training run records: a line per epoch, the statistics CSV, TensorBoard events and config.json."""

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from options import needs_perceptual, plain_options
from utils import cli, distributed, files, images, pretrained
from utils.checkpoint import Progress
from utils.statistics import COLUMNS, describe_result, write_statistics

_SHOWN = {"Loss_D": "Loss_D", "Loss_G": "Loss_G", "Score_D": "D(x)", "Score_G": "D(G(z))"}
_WATCHED_EPOCHS = 3


def describe_plan(
    args: argparse.Namespace,
    generator: nn.Module,
    discriminator: nn.Module,
    train_set,
    val_set,
    loader: DataLoader,
) -> str:
    """Return every option and the plan of the run, as lines."""
    batches, sampler = len(loader), loader.batch_sampler
    g, d = (sum(p.numel() for p in network.parameters()) for network in (generator, discriminator))
    total = batches * (args.pretrain_epochs + args.epochs)
    lines = [
        "options: "
        + " ".join(
            f"{name}={value}" for name, value in plain_options(args).items() if value is not None
        ),
        f"networks: generator {g:,} parameters, discriminator {d:,}; {args.device}, {args.precision}",
        f"images: {len(train_set.usable)} for training, {len(val_set)} for validation",
        f"plan: {args.pretrain_epochs} pixel-only and {args.epochs} adversarial epochs of {batches:,} updates "
        f"with {args.batch_size} crops of {args.crop}x{args.crop}: {total:,} updates in total",
    ]
    if sampler.world_size > 1:
        lines.append(f"processes: {sampler.world_size}, each with its share of every batch")
    if sampler.left_out:
        lines.append(
            f"note: {sampler.left_out} samples of every epoch's last batch cannot be shared evenly and are left out"
        )
    if needs_perceptual(args) and args.perceptual_weights == "random":
        lines.append(
            "note: --perceptual-weights random: the perceptual loss compares features of an UNTRAINED network"
        )
    return "\n".join(lines)


def describe_run(args: argparse.Namespace, train_set, val_set) -> dict[str, Any]:
    """Return what checkpoints store for a restart to compare: options, images, perceptual network and machine.

    Raises:
        UserError: the perceptual network's weights are missing or damaged; fails early, before the pixel-only epochs.
    """
    if needs_perceptual(args) and args.perceptual_weights != "random":
        pretrained.state_dict(args.perceptual, args.perceptual_weights)
    machine = {name: getattr(args, name) for name in ("device", "precision", "compile")}
    return {
        "options": plain_options(args),
        "images": {
            "training": train_set.store.fingerprint(),
            "validation": val_set.store.fingerprint(),
        },
        "degradation": train_set.recipe,
        "perceptual": pretrained.fingerprint(args.perceptual, args.perceptual_weights)
        if needs_perceptual(args)
        else None,
        "machine": machine
        | {"threads": torch.get_num_threads(), "processes": distributed.world_size()},
    }


class RunLog:
    """Context manager that records each epoch: on the screen, in statistics.csv and, with `--tensorboard`, in TensorBoard.

    With several processes, only the first one writes.

    Args:
        out: the run's folder; its subfolders are made and config.json is written.
        facts: from `describe_run`.
        rows: the CSV rows of the finished epochs; new ones are added to this list.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, out: Path, facts: dict[str, Any], rows: list[dict[str, Any]]):
        self.out, self.rows, self.board, self.leader = out, rows, None, distributed.rank() == 0
        self.recipe = facts["degradation"]["version"]
        if not self.leader:
            return
        for name in ("checkpoints", "validation"):
            files.make_folder(out / name)
        if facts["options"]["tensorboard"]:
            self.board = TensorBoard(out / "tensorboard", len(rows))
        write_config(out / "config.json", facts)
        write_statistics(out / "statistics.csv", rows)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_error) -> None:
        if self.board:
            self.board.close()

    def add(self, progress: Progress, learning_rate: float, scores: dict[str, float]) -> None:
        """Record a finished epoch; `scores` come from its validation."""
        progress.sums = {name: distributed.mean(value) for name, value in progress.sums.items()}
        self.rows.append(new_row(progress, learning_rate, scores))
        if self.leader:
            write_statistics(self.out / "statistics.csv", self.rows)
        if self.board:
            self.board.write(self.rows[-1], self.out / "validation" / f"epoch_{progress.epoch:03d}")

    def close(self, progress: Progress, stopped: int | None) -> int:
        """Print how the run ended and return the exit status; `stopped` is the signal that stopped it, or None."""
        if not stopped:
            print(f"finished: {describe_result(self.rows)}; everything is in {self.out}")
            return 0
        if self.leader:
            done = f"stopped in epoch {progress.epoch} after step {progress.batch}"
            print(f"{done}; run the same command again to resume", file=sys.stderr)
        return 128 + stopped


def new_row(progress: Progress, learning_rate: float, scores: dict[str, float]) -> dict[str, Any]:
    """Return the CSV row of a finished epoch."""
    run = {
        "Learning_Rate": learning_rate,
        "Images_Per_Second": progress.samples / progress.seconds,
        "Seconds": progress.seconds + progress.validation_seconds,
    }
    return dict.fromkeys(COLUMNS) | {"Epoch": progress.epoch, **progress.means(), **scores, **run}


def describe_terms(means: dict[str, float]) -> str:
    """Return the main losses and scores as text, for the progress bar and the line of an epoch."""
    return "  ".join(
        f"{_SHOWN[name]} {mean:.4g}"
        for name, mean in means.items()
        if name in _SHOWN and mean is not None
    )


def describe_epoch(rows: list[dict[str, Any]], total_epochs: int) -> str:
    """Return the line of the newest epoch, with a note if the discriminator has won or collapsed."""
    row = rows[-1]
    parts = [f"epoch {row['Epoch']}/{total_epochs}", describe_terms(row)]
    if row["PSNR"] is not None:
        parts.append(f"PSNR {row['PSNR']:.2f} dB (bicubic {row['Bicubic_PSNR']:.2f})")
        parts.append(f"SSIM {row['SSIM']:.4f} ({row['Bicubic_SSIM']:.4f})")
    if row["Distance"] is not None:
        parts.append(f"distance {row['Distance']:.3f}")
    parts.append(f"{row['Images_Per_Second']:.1f} images/s  {row['Seconds']:.0f} s")
    text = "  ".join(parts)
    gaps = [
        row["Score_D"] - row["Score_G"]
        for row in rows[-_WATCHED_EPOCHS:]
        if row["Score_D"] is not None
    ]
    if len(gaps) == _WATCHED_EPOCHS and min(gaps) > 0.99:
        text += f"\nnote: D(x) - D(G(z)) above 0.99 for {_WATCHED_EPOCHS} epochs: D always tells real from fake, so G "
        text += "learns little from it; use more --pretrain-epochs or a lower --learning-rate"
    if len(gaps) == _WATCHED_EPOCHS and max(gaps) < 0.01:
        text += f"\nnote: D(x) - D(G(z)) below 0.01 for {_WATCHED_EPOCHS} epochs: D cannot tell real from fake: it has collapsed, "
        text += "or G has won; look at the validation pictures, and start again with a lower --learning-rate if they are poor"
    return text


class TensorBoard:
    """The rows of the CSV and the triplets as TensorBoard events, in a folder of their own.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, epochs_done: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise cli.UserError(
                "--tensorboard: the package is missing; pip install tensorboard"
            ) from error
        # Epochs that a killed process had logged and that are repeated now are not shown twice.
        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def write(self, row: dict[str, Any], triplets: Path) -> None:
        """Add a finished epoch: its row, and the pictures in the folder `triplets` if it exists."""
        for name, value in row.items():
            if name != "Epoch" and value is not None:
                self._writer.add_scalar(f"{COLUMNS[name]}/{name}", value, row["Epoch"])
        for path in images.list_images(triplets) if triplets.is_dir() else ():
            self._writer.add_image(
                f"validation/{path.stem}",
                images.read_picture(path).rgb,
                row["Epoch"],
                dataformats="HWC",
            )
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def write_config(path: Path, facts: dict[str, Any]) -> None:
    """Record how a run was made: every option, the degradation's ranges, library versions, git commit, device."""
    machine = facts["machine"]
    gpu = machine["device"] == "cuda"
    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    packages = ("torch", "torchvision", "numpy", "pillow", "pandas", "pytorch-msssim")
    config = {
        "options": facts["options"],
        "degradation": facts["degradation"],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        **_git_state(),
        "device": {"type": machine["device"], "name": name, "threads": machine["threads"]},
    }
    files.write_text(path, json.dumps(config, indent=2) + "\n")


def _git_state() -> dict[str, str | bool | None]:
    """Return the commit of this repository, and whether the files differ from it; None if git cannot tell."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}
