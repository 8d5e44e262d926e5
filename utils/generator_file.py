"""Generator files: they describe themselves, so nothing that reads one is told the architecture.

A file is a dict of plain data and tensors (format "srgan-generator-1"), or the same as
`.safetensors` with the plain data as JSON strings. Released files of ESRGAN are read too, and for
enlarging those of other networks, if spandrel is installed.
"""

import inspect
import json
import reprlib
from pathlib import Path
from typing import Any

from esrgan import read_released
from model import Generator
from networks import GENERATORS, GeneratorNetwork, empty_generator
from utils import cli, files
from utils.files import CHECKPOINT_FORMAT, DISCRIMINATOR_FORMAT, GENERATOR_FORMAT


def save(path: str | Path, generator: GeneratorNetwork, **facts: Any) -> None:
    """Write a generator file: the network's architecture and weights, and plain training `facts`.

    A path that ends in `.safetensors` is written in that format.

    Raises:
        RunError: a weight is not finite; nothing is written.
        OSError: the file cannot be written.
    """
    metadata = {"format": GENERATOR_FORMAT, **generator.architecture, **facts}
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()
    }
    if Path(path).suffix != ".safetensors":
        files.save_tensors(path, {**metadata, "state_dict": state})
        return
    from safetensors import torch as safetensors

    files.check_finite(state)
    as_json = {name: json.dumps(value) for name, value in metadata.items()}
    with files.write_atomic(path) as file:
        file.write(safetensors.save(state, as_json))


class _OtherNetworkError(cli.UserError):
    """The file holds neither a generator of this project nor ESRGAN's."""


def load(path: str | Path, foreign: bool = False) -> GeneratorNetwork:
    """Read a generator file, ours or ESRGAN's; the network is on the CPU, in evaluation mode.

    Args:
        path: the file.
        foreign: also take networks that spandrel knows, which can only enlarge.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file is not a generator file, is damaged, or its weights do not fit.
    """
    loaded = files.load_tensors(path)
    try:
        return _build(path, *_described(path, loaded))
    except _OtherNetworkError as error:
        if not foreign:
            raise
        from utils.foreign import load as load_foreign

        return load_foreign(path, loaded, str(error))


def _build(path: str | Path, metadata: dict[str, Any], state: dict[str, Any]) -> GeneratorNetwork:
    generator = _build_empty(path, metadata, len(state))
    wanted = generator.state_dict()
    if problem := files.misfit(state, wanted):
        is_ours = metadata.get("format") == GENERATOR_FORMAT
        kind = cli.UserError if is_ours else _OtherNetworkError
        raise kind(f"{path}: the weights do not fit the network that the file names ({problem})")
    if sum(tensor.numel() for tensor in wanted.values()) > Path(path).stat().st_size:
        raise cli.UserError(
            f"{path}: too small for the network that it names; its tensors share memory"
        )
    generator.load_state_dict(files.usable_state(path, state, wanted), assign=True)
    return generator.requires_grad_(True).eval()


def copy_weights(source: GeneratorNetwork, target: GeneratorNetwork, path: str | Path) -> None:
    """Copy a loaded generator's weights into a new one, which may have more residual blocks.

    SRGAN's generator may be deepened: blocks that the source lacks stay as they were created, at
    the end of the trunk, where their residuals are multiplied by zero. The output is exactly that
    of the source, in training mode too. A line says that blocks were added.

    Args:
        path: the source's file, for messages.

    Raises:
        UserError: the source is another kind of generator, has another scale or more blocks.
    """
    holds = source.architecture
    wanted = target.architecture
    differing = [name for name in holds if holds[name] != wanted.get(name)]
    deepened = (
        differing == ["blocks"]
        and isinstance(target, Generator)
        and holds["blocks"] < wanted["blocks"]
    )
    if differing and not deepened:
        settable = ("generator", *inspect.signature(GENERATORS[holds["generator"]]).parameters)
        options = [
            f"--{name.replace('_', '-')} {holds[name]}" for name in differing if name in settable
        ]
        advice = f"pass {' '.join(options)}" if options else "use another file"
        raise cli.UserError(
            f"{path}: holds {architecture_text(holds)}, but this run trains "
            f"{architecture_text(wanted)}; {advice}"
        )
    target.load_state_dict({**target.state_dict(), **source.state_dict()})
    if deepened:
        print(
            f"--init {path} has {holds['blocks']} of the {wanted['blocks']} blocks; "
            "the rest start as the identity"
        )


def architecture_text(architecture: dict[str, Any]) -> str:
    """Return an architecture as text, such as `generator srresnet, upscale 4, blocks 8`."""
    return ", ".join(f"{name} {value}" for name, value in architecture.items())


def _described(path: str | Path, loaded: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a generator file's metadata and its state dict, whose values are not yet checked."""
    if Path(path).suffix == ".safetensors":
        loaded = {name: _from_json(value) for name, value in loaded.items()}
    kind = loaded.get("format") if isinstance(loaded, dict) else None
    others = ((CHECKPOINT_FORMAT, "training checkpoint"), (DISCRIMINATOR_FORMAT, "discriminator"))
    for other, what in others:
        if kind == other:
            raise cli.UserError(
                f"{path}: a {what}, not a generator file; use generator_last.pth beside it"
            )
    if kind == GENERATOR_FORMAT:
        state = loaded.get("state_dict")
        if isinstance(state, dict) and all(isinstance(name, str) for name in state):
            return loaded, state
    released = read_released(loaded)
    if released is None:
        raise _OtherNetworkError(
            f"{path}: not a generator file of this project (format {GENERATOR_FORMAT}), "
            "nor one of ESRGAN's"
        )
    if released[1]["conv_first.weight"].shape[1] != 3:  # pixels come in cells of 2x2 or 4x4
        raise _OtherNetworkError(
            f"{path}: one of Real-ESRGAN's networks for x2 or x1, such as x2plus; only those for "
            "x4 can be read here"
        )
    return released


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # plain text, or nested deeper than our metadata ever is
        return value


def _build_empty(path: str | Path, metadata: dict[str, Any], tensors: int) -> GeneratorNetwork:
    """Build the network that a file names without allocating its weights.

    The files in weights/ name `srresnet`, which is `model.Generator`, with 16 blocks.
    A file that asks for more blocks than it has tensors is refused: even empty blocks take time.
    """
    name = metadata.get("generator")
    if not isinstance(name, str) or name not in GENERATORS:
        raise cli.UserError(f"{path}: unknown generator {reprlib.repr(name)}")
    # Everything in the metadata that is no argument of the constructor is a fact about training
    parameters = inspect.signature(GENERATORS[name]).parameters
    arguments = {argument: metadata[argument] for argument in parameters if argument in metadata}
    for argument, value in arguments.items():
        if not isinstance(value, (int, float, str)):
            raise cli.UserError(
                f"{path}: {argument} is {reprlib.repr(value)}, which is neither a number nor text"
            )
    blocks = arguments.get("blocks", 1)
    if not isinstance(blocks, int) or blocks > tensors:
        held = cli.counted(tensors, "tensor")
        raise cli.UserError(f"{path}: {reprlib.repr(blocks)} blocks in a file of {held}")
    try:
        return empty_generator(name, **arguments)
    except (ValueError, TypeError, RuntimeError) as error:  # refused by the network or by PyTorch
        raise cli.UserError(
            f"{path}: no network can be built from it ({cli.describe(error)})"
        ) from error
