"""The exact state from which a training run resumes."""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import cli, distributed, files
from utils.files import CHECKPOINT_FORMAT

LAST = "last.pth"
PREVIOUS = "previous.pth"

# --- files --------------------------------------------------------------------------------------


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `last.pth` and keep the one before it as `previous.pth`; one is intact at any moment.

    Raises:
        RunError: a tensor is not finite; nothing is written.
        OSError: the file cannot be written; the older ones are untouched.
    """
    state = {"format": CHECKPOINT_FORMAT, **state}
    files.save_tensors(Path(folder, LAST), state, backup=Path(folder, PREVIOUS))


def load_checkpoint(folder: str | Path) -> tuple[dict[str, Any] | None, str]:
    """Return the newest intact state in a folder, if any, and what is wrong with a newer one.

    Raises:
        UserError: there are checkpoints, but none of them is intact.
    """
    problems = []
    for path in (Path(folder, LAST), Path(folder, PREVIOUS)):
        if not path.exists():
            continue
        try:
            state = files.load_tensors(path)
        except cli.UserError as error:
            problems.append(str(error))
            continue
        if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
            # It is intact, so it must not be replaced
            raise cli.UserError(
                f"{path}: not a training checkpoint of this version; use another --out"
            )
        return state, "; ".join(problems)
    if problems:
        raise cli.UserError(
            f"{'; '.join(problems)}. Start a new run with another --out, or delete these files"
        )
    return None, ""


# --- comparing a start with the first one -------------------------------------------------------


def check_same_images(what: str, saved: list, current: list) -> None:
    """Check that no image was added, removed or changed since a run began.

    Args:
        what: "training" or "validation".
        saved, current: of `ImageStore.fingerprint()`: (name, bytes, checksum) of every image; a
            checksum of 0 is unknown.

    Raises:
        UserError: it names the images.
    """
    before = {name: (size, checksum) for name, size, checksum in saved}
    now = {name: (size, checksum) for name, size, checksum in current}
    changes = [f"{name} is gone" for name in before.keys() - now.keys()]
    changes += [f"{name} is new" for name in now.keys() - before.keys()]
    for name in before.keys() & now.keys():
        old_size, old_checksum = before[name]
        size, checksum = now[name]
        known = checksum and old_checksum
        if (checksum != old_checksum) if known else (size != old_size):
            changes.append(f"{name} has changed")
    if changes:
        raise cli.UserError(
            f"the {what} images are not those that the run started with: "
            f"{cli.listed(sorted(changes))}; restore them, or use another --out"
        )


# --- the state of a run -------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run has got: the current epoch, the batches done in it, and their sums.

    With several processes, each has its own `sums`; everything else is for all of them together.
    """

    epoch: int = 1  # from 1, the pixel-only epochs first
    batch: int = 0
    samples: int = 0
    seconds: float = 0.0  # of training
    validation_seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)  # by column, weighted by samples
    best_psnr: float = -math.inf  # of the current phase

    def add(self, values: dict[str, Tensor], samples: int) -> None:
        """Add a batch: its losses and scores, which stay on the device, and its samples.

        A column that only some of the epoch's batches have stays empty until the next epoch: an
        older version, which began this epoch, may have had other columns.
        """
        self.sums = {
            name: self.sums.get(name, 0) + value * samples
            for name, value in values.items()
            if self.batch == 0 or name in self.sums
        }
        self.batch += 1
        self.samples += samples

    def means(self) -> dict[str, float]:
        """Return the epoch's means so far, by column; this waits for the device."""
        stacked = torch.stack(list(self.sums.values())) / max(1, self.samples)
        return dict(zip(self.sums, stacked.tolist(), strict=True))

    def check_finite(self, values: dict[str, float]) -> None:
        """Stop the run if a value is not finite in any of the processes, which all call this.

        Raises:
            RunError: the same in all processes; it names the values, the epoch, the step and what
                to try.
        """
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        found = {name: None for names in distributed.gather(wrong) for name in names}
        if found:
            raise cli.RunError(
                f"{', '.join(found)} not finite in epoch {self.epoch}, by step {self.batch}; the "
                "checkpoints are from before that. Try a lower --learning-rate, more "
                "--warmup-steps or --precision fp32, with another --out"
            )

    def check_weights(self, **networks: nn.Module) -> None:
        """Stop the run as `check_finite` does if a network, given by its name, is not finite."""
        sums = {}
        for name, network in networks.items():
            tensors = network.state_dict().values()
            sums[f"weights of the {name}"] = sum(
                tensor.cpu().double().sum().item() for tensor in tensors
            )
        self.check_finite(sums)


def open_run(out: Path) -> dict[str, Any] | None:
    """Return the saved state of the run in `out`, or None if it has not started.

    A damaged file is reported, and the one before it is used.

    Raises:
        UserError: no checkpoint is intact, or the processes do not see the same folder.
    """
    folder = out / "checkpoints"
    leader = distributed.rank() == 0
    if leader:
        files.remove_leftovers(out, folder, *(out / "validation").glob("epoch_*"))
    saved, problem = load_checkpoint(folder)
    place = None
    if saved:
        place = (saved["progress"]["epoch"], saved["progress"]["batch"])
    if set(distributed.gather(place)) != {place}:
        raise cli.UserError(
            f"--out {out} is not the same folder for all processes; "
            "put it where all machines can see it"
        )
    if problem and leader:
        print(f"warning: {problem}; resuming from {PREVIOUS}", file=sys.stderr)
        (folder / LAST).unlink()  # or the next save would replace the intact one with it
    return saved


def restore(
    saved: dict[str, Any], parts: dict[str, Any], record: dict[str, Any], device: torch.device
) -> tuple[Progress, list[dict[str, Any]]]:
    """Load a saved state into the networks and optimisers.

    Args:
        saved: from `open_run`.
        parts: objects with `load_state_dict`, by name.
        record: of this start, as checkpoints hold it (`options.run_record`).
        device: where the sums of an unfinished epoch go.

    Returns:
        The progress, and the CSV rows of the finished epochs.

    Raises:
        UserError: the images, the degradation or the perceptual network differ from the first
            start's.
    """
    # Is it still the same run?
    for what, seen in record["images"].items():
        check_same_images(what, saved["images"][what], seen)
    started_with = saved.get("perceptual")  # None: not needed at that start, or an old checkpoint
    if started_with and record["perceptual"] and started_with != record["perceptual"]:
        raise cli.UserError(
            "--perceptual-weights: not the weights that the run started with; "
            "use those, or another --out"
        )
    now = record["degradation"]["version"]
    then = saved.get("degradation", record["degradation"])["version"]  # older ones have none
    if then != now:
        raise cli.UserError(
            f"the run was started with the degradation {then}, this version has {now}; "
            "use another --out"
        )

    # Networks and optimisers
    for name, part in parts.items():
        if saved["models"].get(name):  # the scaler's is empty if the run was not in fp16
            part.load_state_dict(saved["models"][name])

    # Progress
    progress = Progress(**saved["progress"])
    same_processes = record["machine"]["processes"] == saved["machine"]["processes"]
    sums = _named_sums(saved["progress"]["sums"])
    progress.sums = {}
    for name, by_process in sums.items():
        own = by_process[distributed.rank()] if same_processes else by_process.mean(0)
        progress.sums[name] = own.to(device)
    print(f"resuming at epoch {progress.epoch}, step {progress.batch + 1}")
    if saved["machine"] != record["machine"]:
        print(
            "from here on, results are not bit-exact with the earlier part: "
            f"{saved['machine']} became {record['machine']}"
        )
    return progress, saved["rows"]


def _named_sums(sums: dict[str, Tensor] | Tensor | None) -> dict[str, Tensor]:
    """Return the sums of an unfinished epoch by column, each (processes,).

    The first version saved one tensor (processes, columns), or None.
    """
    if not isinstance(sums, Tensor):
        return sums or {}
    names = ["Loss_G", "Loss_Pixel"]
    if sums.shape[-1] != len(names):
        names = ["Loss_D", "Loss_G", "Score_D", "Score_G"]
        names += ["Loss_Pixel", "Loss_Adversarial", "Loss_Perceptual", "Loss_TV"]
    return dict(zip(names, sums.unbind(-1), strict=True))


def save_run(
    out: Path,
    parts: dict[str, Any],
    progress: Progress,
    rows: list[dict[str, Any]],
    record: dict[str, Any],
) -> None:
    """Save a run's state for `open_run` and `restore`; only the first process writes."""
    sums = {
        name: torch.stack(distributed.gather(value.cpu())) for name, value in progress.sums.items()
    }
    if distributed.rank() == 0:
        state = {
            **record,
            "rows": rows,
            "models": {name: part.state_dict() for name, part in parts.items()},
            "progress": {**vars(progress), "sums": sums},
        }
        save_checkpoint(out / "checkpoints", state)
    distributed.barrier()
