"""Generator files that describe themselves, and the exact state that a training run resumes from."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esrgan import RRDBGenerator, read_released
from model import Generator
from utils import cli, files

GENERATOR_FORMAT = "srgan-generator-1"
CHECKPOINT_FORMAT = "srgan-checkpoint-1"
LAST, PREVIOUS = "last.pth", "previous.pth"
GENERATORS = {"srresnet": Generator, "rrdb": RRDBGenerator}  # by the name that a generator file has for it


def save_generator(path: str | Path, generator: nn.Module, **facts: Any) -> None:
    """Write a generator file: its architecture, its weights, and plain `facts` about its training.

    A path that ends in `.safetensors` is written in that format, with the same metadata as JSON strings.

    Raises:
        RunError: a weight is not finite; nothing is written.
        OSError: the file cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    metadata = {"format": GENERATOR_FORMAT, **generator.architecture, **facts}
    if Path(path).suffix != ".safetensors":
        files.save_tensors(path, {**metadata, "state_dict": state})
        return
    from safetensors.torch import save

    files.check_finite(state)
    with files.write_atomic(path) as file:
        file.write(save(state, {name: json.dumps(value) for name, value in metadata.items()}))


def load_generator(path: str | Path, expected: dict[str, Any] | None = None) -> nn.Module:
    """Read a generator file, on the CPU and in evaluation mode; the file says what network it holds.

    With `expected`, an `architecture` of a network, a file that holds another one is refused.

    Raises:
        OSError: the file cannot be opened.
        ValueError: no generator file, damaged, or weights that do not fit the network that the file names.
    """
    loaded = files.load_tensors(path)
    if Path(path).suffix == ".safetensors":
        loaded = {name: _from_json(value) for name, value in loaded.items()}
    if isinstance(loaded, dict) and loaded.get("format") == CHECKPOINT_FORMAT:
        raise cli.UserError(f"{path}: a training checkpoint, not a generator file; use generator_last.pth beside it")
    if not _is_generator_file(loaded):
        released = read_released(loaded)
        loaded = released and {**released[0], "state_dict": released[1]}
    if loaded is None:
        raise cli.UserError(f"{path}: not a generator file of this project (format {GENERATOR_FORMAT}), nor one of ESRGAN's")
    state = loaded["state_dict"]
    try:
        generator = _build_empty(loaded, len(state))
        wanted = generator.state_dict()
        if not state.keys() <= wanted.keys():
            raise cli.UserError(f"it has no {min(map(str, state.keys() - wanted.keys()))}")
        state = {name: state[name].to(tensor.dtype) for name, tensor in wanted.items() if state[name].shape == tensor.shape}
        generator.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise cli.UserError(f"{path}: the weights do not fit the network that the file names ({_first_line(error)})") from error
    try:
        files.check_finite(state)
    except cli.RunError as error:
        raise cli.UserError(f"{path}: {error}") from error
    if expected is not None and generator.architecture != expected:
        raise cli.UserError(f"{path}: holds {_listed(generator.architecture)}, this run trains {_listed(expected)}")
    return generator.requires_grad_(True).eval()


def _listed(architecture: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in architecture.items())


def _build_empty(metadata: dict[str, Any], tensors: int) -> nn.Module:
    """Build the network that a file names without memory for its weights; refuse one larger than the file."""
    arguments = {name: value for name, value in metadata.items() if name in ("upscale", "blocks", "features", "growth")}
    if metadata.get("generator") not in GENERATORS:
        raise cli.UserError(f"unknown generator {metadata.get('generator')!r}")
    if not isinstance(arguments.get("blocks"), int) or not 1 <= arguments["blocks"] <= tensors:
        raise cli.UserError(f"{arguments.get('blocks')!r} blocks in a file of {tensors} tensors")
    with torch.device("meta"):
        return GENERATORS[metadata["generator"]](**arguments)


def _is_generator_file(loaded: Any) -> bool:
    return isinstance(loaded, dict) and loaded.get("format") == GENERATOR_FORMAT and isinstance(loaded.get("state_dict"), dict)


def _from_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if len(lines) > 1 else lines[0]


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `last.pth` and keep the one before it as `previous.pth`; at every moment one of them is whole.

    Raises:
        RunError: a tensor is not finite; nothing is written.
        OSError: the file cannot be written; the older ones are untouched.
    """
    state = {"format": CHECKPOINT_FORMAT, **state}
    files.save_tensors(Path(folder, LAST), state, backup=Path(folder, PREVIOUS))


def load_checkpoint(folder: str | Path) -> tuple[dict[str, Any] | None, str]:
    """Return the newest whole training state in a folder, None where there is none, and what is wrong with a newer one.

    Raises:
        ValueError: there are files, and none of them is whole.
    """
    problems = []
    for path in (Path(folder, LAST), Path(folder, PREVIOUS)):
        if not path.exists():
            continue
        try:
            state = files.load_tensors(path)
            if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
                raise cli.UserError(f"{path}: not a training checkpoint of this version")
        except ValueError as error:
            problems.append(str(error))
        else:
            return state, "; ".join(problems)
    if problems:
        raise cli.UserError("; ".join(problems) + ". Start afresh with another --out, or delete these files")
    return None, ""


def check_same_options(saved: dict[str, Any], current: dict[str, Any], may_differ: set[str]) -> None:
    """Raise ValueError naming every option that differs from the run's first start and would change its result."""
    differing = [
        f"--{name.replace('_', '-')} (was {saved.get(name)}, is {current.get(name)})"
        for name in sorted(saved.keys() | current.keys())
        if name not in may_differ and saved.get(name) != current.get(name)
    ]
    if differing:
        raise cli.UserError(f"this run was begun with other options: {', '.join(differing)}; use those, or another --out")


def check_same_images(what: str, saved: list, current: list) -> None:
    """Raise ValueError naming images that were added, removed or changed since a run began.

    Both are `ImageStore.fingerprint()`: (name, bytes, checksum), a checksum of 0 being unknown.
    """
    before, now = ({name: (size, checksum) for name, size, checksum in images} for images in (saved, current))
    changes = [f"{name} is gone" for name in before if name not in now]
    changes += [f"{name} is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        (old_size, old_checksum), (size, checksum) = before[name], now[name]
        if (checksum != old_checksum) if checksum and old_checksum else (size != old_size):
            changes.append(f"{name} has changed")
    if changes:
        names = cli.listed(sorted(changes))
        raise cli.UserError(
            f"the {what} images are not those that the run began with: {names}; restore them, or use another --out"
        )
