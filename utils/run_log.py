"""What a training run records: a line per epoch, statistics.csv, TensorBoard and config.json."""

import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from utils import cli, distributed, files, images
from utils.checkpoint import Progress
from utils.statistics import COLUMNS, describe_result, write_statistics

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pandas", "opencv-python-headless")
_SHOWN = {"Loss_D": "Loss_D", "Loss_G": "Loss_G", "Score_D": "D(x)", "Score_G": "D(G(z))"}
_WATCHED_EPOCHS = 3


class RunLog:
    """Context manager that records each epoch in statistics.csv and, if wanted, in TensorBoard.

    With several processes, only the first one writes.

    Args:
        out: the run's folder; its subfolders are made and config.json is written.
        record: what checkpoints hold of the run (`options.run_record`).
        rows: the CSV rows of the finished epochs; new ones are added to this list.
    """

    def __init__(self, out: Path, record: dict[str, Any], rows: list[dict[str, Any]]):
        self.out = out
        self.rows = rows
        self.board: TensorBoard | None = None
        self.leader = distributed.rank() == 0
        self.seconds = {"training": 0.0, "validation": 0.0, "checkpoints": 0.0}
        if not self.leader:
            return
        for name in ("checkpoints", "validation"):
            files.make_folder(out / name)
        if record["options"]["tensorboard"]:
            self.board = TensorBoard(out / "tensorboard", len(rows))
        write_config(out / "config.json", record)
        self.write_rows()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self.board:
            self.board.close()

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Context manager that counts its time as training, validation or checkpoints."""
        began = time.monotonic()
        yield
        self.seconds[part] += time.monotonic() - began

    def add(self, progress: Progress, learning_rate: float, scores: dict[str, float]) -> None:
        """Record a finished epoch; `scores` come from its validation."""
        progress.sums = {name: distributed.mean(value) for name, value in progress.sums.items()}
        row = new_row(progress, learning_rate, scores)
        self.rows.append(row)
        if self.leader:
            self.write_rows()
        if self.board:
            self.board.write(row, self.out / "validation" / f"epoch_{progress.epoch:03d}")

    def write_rows(self) -> None:
        """Write all rows to statistics.csv; they are in the checkpoint too."""
        try:
            write_statistics(self.out / "statistics.csv", self.rows)
        except PermissionError as error:  # on Windows, while a spreadsheet has it open
            print(f"warning: {cli.describe(error)}; it is written again after the next epoch")

    def report_end(self, progress: Progress, stopped: int | None) -> int:
        """Print how the run ended and where its time went; return the exit status.

        Args:
            progress: at the end.
            stopped: the signal that stopped the run, or None.
        """
        if any(self.seconds.values()):
            print(time_text(self.seconds))
        if not stopped:
            print(f"finished: {describe_result(self.rows)}; everything is in {self.out}")
            return 0
        if self.leader:
            print(
                f"stopped in epoch {progress.epoch} after step {progress.batch}; "
                "run the same command again to resume",
                file=sys.stderr,
            )
        return 128 + stopped


def new_row(progress: Progress, learning_rate: float, scores: dict[str, float]) -> dict[str, Any]:
    """Return the CSV row of a finished epoch."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["Epoch"] = progress.epoch
    row |= progress.means()
    row |= scores
    row["Learning_Rate"] = learning_rate
    row["Images_Per_Second"] = progress.samples / progress.seconds
    row["Seconds"] = progress.seconds + progress.validation_seconds
    return row


# --- on the screen ------------------------------------------------------------------------------


def terms_text(means: dict[str, Any]) -> str:
    """Return the main losses and scores as text, for the progress bar and an epoch's line."""
    shown = []
    for name, mean in means.items():
        if name in _SHOWN and mean is not None:
            shown.append(f"{_SHOWN[name]} {mean:.4g}")
    return "  ".join(shown)


def epoch_text(rows: list[dict[str, Any]], total_epochs: int) -> str:
    """Return the newest epoch's line, with a note if the discriminator has won or collapsed."""
    row = rows[-1]
    parts = [f"epoch {row['Epoch']}/{total_epochs}", terms_text(row)]
    if row["PSNR"] is not None:
        parts.append(f"PSNR {row['PSNR']:.2f} dB (bicubic {row['Bicubic_PSNR']:.2f})")
        parts.append(f"SSIM {row['SSIM']:.4f} ({row['Bicubic_SSIM']:.4f})")
    if row["Distance"] is not None:
        parts.append(f"distance {row['Distance']:.3f}")
    parts.append(f"{row['Images_Per_Second']:.1f} images/s  {row['Seconds']:.0f} s")
    return "  ".join(parts) + _discriminator_note(rows[-_WATCHED_EPOCHS:])


def time_text(seconds: dict[str, float]) -> str:
    """Return which share of the time each part of a run took, as a line."""
    shares = {part: spent / sum(seconds.values()) for part, spent in seconds.items()}
    text = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    if shares["training"] < 0.5:
        text += (
            "; a larger --val-every or --crops-per-image (with another --out) leaves more time for "
            "training"
        )
    return f"time: {text}"


def _discriminator_note(rows: list[dict[str, Any]]) -> str:
    gaps = [row["Score_D"] - row["Score_G"] for row in rows if row["Score_D"] is not None]
    if len(gaps) < _WATCHED_EPOCHS:
        return ""
    if min(gaps) > 0.99:
        return (
            f"\nnote: D(x) - D(G(z)) was above 0.99 for {_WATCHED_EPOCHS} epochs: D always tells "
            "real from fake, so G learns little from it; use more --pretrain-epochs or a lower "
            "--learning-rate-d"
        )
    if max(gaps) < 0.01:
        return (
            f"\nnote: D(x) - D(G(z)) was below 0.01 for {_WATCHED_EPOCHS} epochs: D cannot tell "
            "real from fake. Either it has collapsed, or G has won: look at the validation "
            "pictures. If they are poor, start again with a lower --learning-rate-d"
        )
    return ""


# --- TensorBoard --------------------------------------------------------------------------------


class TensorBoard:
    """The rows of the CSV and the triplets as TensorBoard events, in a folder of their own."""

    def __init__(self, folder: Path, epochs_done: int):
        from torch.utils.tensorboard import SummaryWriter  # only with --tensorboard

        # An epoch that a killed process had logged and that is repeated now is not shown twice
        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def write(self, row: dict[str, Any], triplets: Path) -> None:
        """Add a finished epoch: its row, and the pictures in the folder `triplets`, if any."""
        epoch = row["Epoch"]
        for name, value in row.items():
            if name != "Epoch" and value is not None:
                self._writer.add_scalar(f"{COLUMNS[name]}/{name}", value, epoch)
        if triplets.is_dir():
            for path in images.list_images(triplets):
                rgb = images.read_picture(path).rgb
                self._writer.add_image(f"validation/{path.stem}", rgb, epoch, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


# --- config.json --------------------------------------------------------------------------------


def write_config(path: Path, record: dict[str, Any]) -> None:
    """Record how a run was made: options, degradation, library versions, git commit, device."""
    machine = record["machine"]
    if machine["device"] == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = platform.processor() or platform.machine()
    config = {
        "options": record["options"],
        "degradation": record["degradation"],
        "versions": {"python": platform.python_version(), **_package_versions()},
        **_git_state(),
        "device": {"type": machine["device"], "name": name, "threads": machine["threads"]},
    }
    files.write_text(path, json.dumps(config, indent=2) + "\n")


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # installed some other way: no reason to end a run
            versions[package] = None
    return versions


def _git_state() -> dict[str, str | bool | None]:
    """Return the commit, and whether the files differ from it; None where git cannot tell."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    dirty = None if changes is None else bool(changes)
    return {"git_commit": commit, "git_dirty": dirty}


def _git(*words: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
