"""The exact state from which a training run resumes."""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import cli, distributed, files
from utils.generator_file import CHECKPOINT_FORMAT

LAST, PREVIOUS = "last.pth", "previous.pth"


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `last.pth` and keep the one before it as `previous.pth`; at any moment, one of them is intact.

    Raises:
        RunError: a tensor is not finite; nothing is written.
        OSError: the file cannot be written; the older ones are untouched.
    """
    state = {"format": CHECKPOINT_FORMAT, **state}
    files.save_tensors(Path(folder, LAST), state, backup=Path(folder, PREVIOUS))


def load_checkpoint(folder: str | Path) -> tuple[dict[str, Any] | None, str]:
    """Return the newest intact training state in a folder (None if there is none), and what is wrong with a newer one.

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
        if (
            not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT
        ):  # intact, so it must not be replaced
            raise cli.UserError(
                f"{path}: not a training checkpoint of this version; use another --out"
            )
        return state, "; ".join(problems)
    if problems:
        raise cli.UserError(
            "; ".join(problems) + ". Start a new run with another --out, or delete these files"
        )
    return None, ""


def check_same_options(
    saved: dict[str, Any], current: dict[str, Any], may_differ: set[str]
) -> None:
    """Raise UserError naming every option that differs from the run's first start and affects the result."""
    differing = [
        f"--{name.replace('_', '-')} (was {saved.get(name)}, is {current.get(name)})"
        for name in sorted(saved.keys() | current.keys())
        if name not in may_differ and saved.get(name) != current.get(name)
    ]
    if differing:
        raise cli.UserError(
            f"this run was started with other options: {', '.join(differing)}; use those, or another --out"
        )


def check_same_images(what: str, saved: list, current: list) -> None:
    """Raise UserError naming images that were added, removed or changed since a run began.

    Both lists come from `ImageStore.fingerprint()`: (name, bytes, checksum); a checksum of 0 means unknown.
    """
    before, now = (
        {name: (size, checksum) for name, size, checksum in images} for images in (saved, current)
    )
    changes = [f"{name} is gone" for name in before if name not in now]
    changes += [f"{name} is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        (old_size, old_checksum), (size, checksum) = before[name], now[name]
        if (checksum != old_checksum) if checksum and old_checksum else (size != old_size):
            changes.append(f"{name} has changed")
    if changes:
        names = cli.listed(sorted(changes))
        raise cli.UserError(
            f"the {what} images are not those that the run started with: {names}; restore them, or use another --out"
        )


# --- the state of a run -------------------------------------------------------------------------------------------


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
    sums: dict[str, Tensor] = field(
        default_factory=dict
    )  # losses and scores by column, weighted by samples
    best_psnr: float = -math.inf  # of the current phase

    def add(self, values: dict[str, Tensor], samples: int) -> None:
        """Add a batch: its losses and scores, which stay on the device, and its number of samples.

        A column that an older version's unfinished epoch lacks stays empty until the next epoch.
        """
        for name, value in values.items():
            if self.batch == 0 or name in self.sums:
                self.sums[name] = self.sums.get(name, 0) + value * samples
        self.batch += 1
        self.samples += samples

    def means(self) -> dict[str, float]:
        """Return the epoch's means so far, by column (this waits for the device); raise RunError if one is not finite."""
        stacked = torch.stack(list(self.sums.values())) / max(1, self.samples)
        means = dict(zip(self.sums, stacked.tolist(), strict=True))
        stop_unless_finite(means, self.epoch, self.batch)
        return means

    def check_weights(self, networks: dict[str, nn.Module]) -> None:
        """Raise RunError if a network has a weight that is not finite."""
        sums = {
            f"weights of the {name}": sum(
                tensor.cpu().double().sum().item() for tensor in network.state_dict().values()
            )
            for name, network in networks.items()
        }
        stop_unless_finite(sums, self.epoch, self.batch)


def stop_unless_finite(values: dict[str, float], epoch: int, step: int) -> None:
    """Raise RunError naming the values that are not finite, the epoch, the step, and what to try."""
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise cli.RunError(
            f"{', '.join(wrong)} not finite in epoch {epoch}, by step {step}; the checkpoints are from before that. "
            "Try a lower --learning-rate, more --warmup-steps or --precision fp32, with another --out"
        )


def open_run(out: Path) -> dict[str, Any] | None:
    """Return the saved state of the run in `out`, or None if it has not started; warn about a damaged file.

    Raises:
        UserError: the processes of the run do not see the same folder, or no checkpoint in it is intact.
    """
    folder, leader = out / "checkpoints", distributed.rank() == 0
    if leader:
        files.remove_leftovers(out, folder, *(out / "validation").glob("epoch_*"))
    saved, problem = load_checkpoint(folder)
    place = saved and (saved["progress"]["epoch"], saved["progress"]["batch"])
    if set(distributed.gather(place)) != {place}:
        raise cli.UserError(
            f"--out {out} is not the same folder for all processes; put it where all machines can see it"
        )
    if problem and leader:
        print(f"warning: {problem}; resuming from {PREVIOUS}", file=sys.stderr)
        (folder / LAST).unlink()  # or the next save would replace the intact one with it
    return saved


def restore(
    saved: dict[str, Any], parts: dict[str, Any], facts: dict[str, Any], device: torch.device
) -> tuple[Progress, list[dict[str, Any]]]:
    """Load a saved state into the networks and optimisers; return the progress and the rows of the finished epochs.

    Args:
        saved: from `open_run`.
        parts: objects with `load_state_dict`, by name.
        facts: from `run_log.describe_run`, for this start.

    Raises:
        UserError: the images, the degradation or the perceptual network are not those that the run started with.
    """
    for what, seen in facts["images"].items():
        check_same_images(what, saved["images"][what], seen)
    started_with = saved.get(
        "perceptual"
    )  # None: not needed at that start, or saved by the first version
    if started_with and facts["perceptual"] and started_with != facts["perceptual"]:
        raise cli.UserError(
            "--perceptual-weights: not the weights that the run started with; use those, or another --out"
        )
    recipe, now = (
        run.get("degradation", facts["degradation"])["version"] for run in (saved, facts)
    )  # older ones have none
    if recipe != now:
        raise cli.UserError(
            f"the run was started with the degradation {recipe}, this version has {now}; use another --out"
        )
    for name, part in parts.items():
        if saved["models"].get(name):  # the scaler's is empty if the run was not in fp16
            part.load_state_dict(saved["models"][name])
    progress = Progress(**saved["progress"])
    sums = _named_sums(progress.sums)
    same = facts["machine"]["processes"] == saved["machine"]["processes"]
    progress.sums = {
        name: (v[distributed.rank()] if same else v.mean(0)).to(device) for name, v in sums.items()
    }
    print(f"resuming at epoch {progress.epoch}, step {progress.batch + 1}")
    if saved["machine"] != facts["machine"]:
        print(
            f"from here on, not bit-exact with the earlier part: {saved['machine']} became {facts['machine']}"
        )
    return progress, saved["rows"]


def _named_sums(sums: dict[str, Tensor] | Tensor | None) -> dict[str, Tensor]:
    """Return the sums of an unfinished epoch by column, each (processes,); the first version saved (processes, columns)."""
    if not isinstance(sums, Tensor):
        return sums or {}
    names = [
        "Loss_D",
        "Loss_G",
        "Score_D",
        "Score_G",
        "Loss_Pixel",
        "Loss_Adversarial",
        "Loss_Perceptual",
        "Loss_TV",
    ]
    return dict(
        zip(
            names if sums.shape[-1] == len(names) else ["Loss_G", "Loss_Pixel"],
            sums.unbind(-1),
            strict=True,
        )
    )


def save_run(
    out: Path,
    parts: dict[str, Any],
    progress: Progress,
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """Save the state of a run for `open_run` and `restore`; with several processes, only the first one writes."""
    sums = {
        name: torch.stack(distributed.gather(value.cpu())) for name, value in progress.sums.items()
    }
    if distributed.rank() == 0:
        models = {name: part.state_dict() for name, part in parts.items()}
        state = {
            **facts,
            "rows": rows,
            "models": models,
            "progress": {**vars(progress), "sums": sums},
        }
        save_checkpoint(out / "checkpoints", state)
    distributed.barrier()
