"""Discriminator files, with which `train.py --init-discriminator` starts from a trained one.

A file is a dict of plain data and tensors (format "srgan-discriminator-1"). A run's checkpoint,
which holds its discriminator too, is read as well.
"""

import reprlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from networks import DISCRIMINATORS
from utils import cli, files
from utils.files import CHECKPOINT_FORMAT, DISCRIMINATOR_FORMAT, GENERATOR_FORMAT


def save(path: str | Path, name: str, discriminator: nn.Module, **facts: Any) -> None:
    """Write a discriminator file: its name in `DISCRIMINATORS`, its weights, and plain `facts`.

    Raises:
        RunError: a weight is not finite; nothing is written.
        OSError: the file cannot be written.
    """
    state = {key: tensor.cpu().contiguous() for key, tensor in discriminator.state_dict().items()}
    metadata = {"format": DISCRIMINATOR_FORMAT, "discriminator": name, **facts}
    files.save_tensors(path, {**metadata, "state_dict": state})


def load(path: str | Path, name: str) -> dict[str, Tensor]:
    """Read the weights of a discriminator from its file or from the checkpoint of a run.

    Args:
        path: the file.
        name: the discriminator that is expected, one of `DISCRIMINATORS`.

    Returns:
        A state dict on the CPU that fits this discriminator.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file holds no discriminator, another or an untrained one, or is damaged.
    """
    held, state = _read(path)
    if held != name:
        advice = "use another file"
        if isinstance(held, str) and held in DISCRIMINATORS:
            advice = f"pass --discriminator {held}"
        raise cli.UserError(
            f"{path}: holds the discriminator {reprlib.repr(held)}, but this run trains {name!r}; "
            f"{advice}"
        )
    wanted = DISCRIMINATORS[name]().state_dict()
    if problem := files.misfit(state, wanted):
        raise cli.UserError(f"{path}: the weights do not fit the discriminator {name} ({problem})")
    return files.usable_state(path, state, wanted)


def _read(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """Return a discriminator's name and state dict, whose values are not yet checked."""
    loaded = files.load_tensors(path)
    kind = loaded.get("format") if isinstance(loaded, dict) else None
    if kind == GENERATOR_FORMAT:
        raise cli.UserError(
            f"{path}: a generator file, not a discriminator file; use discriminator_last.pth or "
            "last.pth beside it"
        )
    name: Any = None
    state: Any = None
    if kind == DISCRIMINATOR_FORMAT:
        name = loaded.get("discriminator")
        state = loaded.get("state_dict")
    elif kind == CHECKPOINT_FORMAT:
        options = loaded.get("options")
        models = loaded.get("models")
        if isinstance(options, dict) and isinstance(models, dict):
            name = options.get("discriminator", "vgg")  # the only one before there were others
            state = models.get("discriminator")
            optimizer = models.get("optimizer_d")
            never_updated = isinstance(optimizer, dict) and not optimizer.get("state")
            if never_updated and not options.get("init_discriminator"):
                raise cli.UserError(
                    f"{path}: its discriminator is untrained, because the run has made only "
                    "pixel-only epochs; use a file of a run with adversarial epochs"
                )
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise cli.UserError(
            f"{path}: neither a discriminator file of this project (format "
            f"{DISCRIMINATOR_FORMAT}) nor a run's last.pth"
        )
    return name, state
