"""Generator files, which describe themselves: read and written without being told the architecture."""

import inspect
import json
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esrgan import read_released
from model import Generator
from networks import GENERATORS
from utils import cli, files

GENERATOR_FORMAT = "srgan-generator-1"
CHECKPOINT_FORMAT = "srgan-checkpoint-1"


def save(path: str | Path, generator: nn.Module, **facts: Any) -> None:
    """Write a generator file: the network's architecture and weights, and plain `facts` about its training.

    A path that ends in `.safetensors` is written in that format, with the metadata as JSON strings.

    Raises:
        RunError: a weight is not finite; nothing is written.
        OSError: the file cannot be written.
    """
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()
    }
    metadata = {"format": GENERATOR_FORMAT, **generator.architecture, **facts}
    if Path(path).suffix != ".safetensors":
        files.save_tensors(path, {**metadata, "state_dict": state})
        return
    from safetensors import torch as safetensors

    files.check_finite(state)
    with files.write_atomic(path) as file:
        file.write(
            safetensors.save(state, {name: json.dumps(value) for name, value in metadata.items()})
        )


def load(path: str | Path) -> nn.Module:
    """Read a generator file, ours or ESRGAN's, and return the network that it describes, on the CPU and in evaluation mode.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file is not a generator file, is damaged, or has weights that do not fit the network that it names.
    """
    metadata, state = _read_generator_file(path)
    generator = _build_empty(path, metadata, len(state))
    wanted = generator.state_dict()
    if problem := _misfit(state, wanted):
        raise cli.UserError(
            f"{path}: the weights do not fit the network that the file names ({problem})"
        )
    if sum(tensor.numel() for tensor in wanted.values()) > Path(path).stat().st_size:
        raise cli.UserError(
            f"{path}: too small for the network that it names; its tensors share memory"
        )
    state = {name: state[name].to(tensor.dtype) for name, tensor in wanted.items()}
    try:
        files.check_finite(state)
    except cli.RunError as error:
        raise cli.UserError(f"{path}: {error}") from error
    generator.load_state_dict(state, assign=True)
    return generator.requires_grad_(True).eval()


def start_from(generator: nn.Module, path: str | Path) -> None:
    """Copy a generator file's weights into a newly created generator, which may have more residual blocks if it is SRGAN's.

    The blocks that the file lacks stay as they are created, at the end of the trunk: their residuals are multiplied by zero.
    The output is therefore exactly that of the file's generator, in training mode too. A line says that blocks were added.

    Raises:
        UserError: the file holds another kind of generator, another scale or more blocks, or as for `load`.
    """
    loaded = load(path)
    holds, wanted = loaded.architecture, generator.architecture
    differing = [name for name in holds if holds[name] != wanted.get(name)]
    deepened = (
        differing == ["blocks"]
        and isinstance(generator, Generator)
        and loaded.blocks < generator.blocks
    )
    if differing and not deepened:
        options = [
            f"--{name} {holds[name]}"
            for name in differing
            if name in ("generator", "upscale", "blocks")
        ]
        advice = f"pass {' '.join(options)}" if options else "use another file"
        raise cli.UserError(
            f"{path}: holds {listed(holds)}, but this run trains {listed(wanted)}; {advice}"
        )
    generator.load_state_dict({**generator.state_dict(), **loaded.state_dict()})
    if deepened:
        print(
            f"--init {path} has {loaded.blocks} of the {generator.blocks} blocks; the rest start as the identity"
        )


def listed(architecture: dict[str, Any]) -> str:
    """Return a network's `architecture` as text, such as `generator srresnet, upscale 4, blocks 8`."""
    return ", ".join(f"{name} {value}" for name, value in architecture.items())


def _read_generator_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a generator file's metadata and its state dict, whose values are not yet checked."""
    loaded = files.load_tensors(path)
    if Path(path).suffix == ".safetensors":
        loaded = {name: _from_json(value) for name, value in loaded.items()}
    if isinstance(loaded, dict) and loaded.get("format") == CHECKPOINT_FORMAT:
        raise cli.UserError(
            f"{path}: a training checkpoint, not a generator file; use generator_last.pth beside it"
        )
    if isinstance(loaded, dict) and loaded.get("format") == GENERATOR_FORMAT:
        state = loaded.get("state_dict")
        if isinstance(state, dict) and all(isinstance(name, str) for name in state):
            return loaded, state
    released = read_released(loaded)
    if released is None:
        raise cli.UserError(
            f"{path}: not a generator file of this project (format {GENERATOR_FORMAT}), nor one of ESRGAN's"
        )
    return released


def _from_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (
        ValueError,
        RecursionError,
    ):  # plain text, or nested more deeply than our metadata ever is
        return value


def _build_empty(path: str | Path, metadata: dict[str, Any], tensors: int) -> nn.Module:
    """Build the network that a file names without allocating its weights; refuse more blocks than the file has tensors."""
    name = metadata.get("generator")
    if not isinstance(name, str) or name not in GENERATORS:
        raise cli.UserError(f"{path}: unknown generator {reprlib.repr(name)}")
    names = inspect.signature(
        GENERATORS[name]
    ).parameters  # everything else is a fact about the training
    arguments = {name: metadata[name] for name in names if name in metadata}
    for name, value in arguments.items():
        if not isinstance(value, (int, float, str)):
            raise cli.UserError(
                f"{path}: {name} is {reprlib.repr(value)}, which is neither a number nor text"
            )
    blocks = arguments.get("blocks", 1)
    if not isinstance(blocks, int) or blocks > tensors:
        raise cli.UserError(f"{path}: {reprlib.repr(blocks)} blocks in a file of {tensors} tensors")
    try:
        with torch.device("meta"):
            return GENERATORS[metadata["generator"]](**arguments)
    except (
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:  # values that the network or PyTorch refuses
        raise cli.UserError(
            f"{path}: no network can be built from it ({cli.describe(error)})"
        ) from error


def _misfit(state: dict[str, Any], wanted: dict[str, Tensor]) -> str:
    """Return what is wrong with a state dict; empty if its names and shapes are those of `wanted`."""
    for name, tensor in wanted.items():
        if name not in state:
            return f"{name} is missing"
        if not isinstance(state[name], Tensor):
            return f"{name} is not a tensor"
        if state[name].shape != tensor.shape:
            return f"{name} has the shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    extra = state.keys() - wanted.keys()
    return f"the network has no {min(extra)}" if extra else ""
