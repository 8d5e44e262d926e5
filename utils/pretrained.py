"""Networks trained on ImageNet, from torchvision's file in PyTorch's hub folder or another file."""

import contextlib
import http.client
import importlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from utils import cli, files

_TITLES = {"vgg16": "VGG16", "vgg19": "VGG19", "squeezenet": "SqueezeNet"}
_DOWNLOADS = {"vgg16": "528 MB", "vgg19": "548 MB", "squeezenet": "5 MB"}
# Pixels; SqueezeNet 1.1 could do with 17, and so could a slice of VGG19
LEAST_SIDES = {"vgg16": 32, "vgg19": 17, "squeezenet": 21}
_VGG16_LAYERS = 31  # features[:31]: all of VGG16's convolutions, up to the last pooling

# VGG19's 3x3 convolutions, five blocks with a pooling between them
VGG19_BLOCKS = tuple(
    tuple(f"conv{block}_{number}" for number in range(1, count + 1))
    for block, count in enumerate((2, 2, 4, 4, 4), start=1)
)


@dataclass(frozen=True)
class Pretrained:
    """The weights of a perceptual network.

    Attributes:
        network: `vgg16`, `vgg19` or `squeezenet`.
        state_dict: of its feature layers; VGG19's by name (see `VGG19_BLOCKS`), as far as they go.
        fingerprint: identifies the weights: the SHA-256 of their file, or `random`.
    """

    network: str
    state_dict: dict[str, Tensor]
    fingerprint: str


def load(network: str, source: str) -> Pretrained:
    """Load a perceptual network's weights.

    Args:
        network: `vgg16`, `vgg19` or `squeezenet`.
        source: `imagenet` (torchvision's file, downloaded once), `random`, or a file.

    Raises:
        UserError: the weights cannot be downloaded or read; the message says what to do.
        OSError: the file cannot be opened.
    """
    if source == "random":
        return Pretrained(network, _random_state_dict(network), "random")
    path = weights_file(network, source)
    try:
        state = _state_dict_of(network, _read_tensors(path), path)
    except cli.UserError as error:
        advice = "; delete it to download it again" if source == "imagenet" else ""
        raise cli.UserError(f"{error}{advice}") from error
    return Pretrained(network, state, files.sha256(path))


def load_to_measure(source: str) -> Pretrained:
    """Load SqueezeNet or VGG19, whichever a file holds; `imagenet` is torchvision's SqueezeNet.

    Raises:
        UserError, OSError: as `load`.
    """
    if source == "imagenet":
        return load("squeezenet", source)
    path = Path(source)
    tensors = _read_tensors(path)
    is_squeezenet = any(".squeeze." in name for name in tensors)
    network = "squeezenet" if is_squeezenet else "vgg19"
    return Pretrained(network, _state_dict_of(network, tensors, path), files.sha256(path))


# --- downloads ----------------------------------------------------------------------------------


def weights_file(network: str, source: str) -> Path:
    """Return the file of a source other than `random`; download torchvision's if it is missing.

    Raises:
        UserError: it cannot be downloaded.
    """
    if source != "imagenet":
        return Path(source)
    url = _url(network)
    path = hub_path(url)
    if path.exists():
        return path
    digest = path.stem.rsplit("-", 1)[-1]  # the name ends in the first digits of the SHA-256
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with network_timeout(30):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # the last: a wrong SHA-256
        raise cli.UserError(
            f"the ImageNet weights of {_TITLES[network]} could not be downloaded from {url} "
            f"({error}): download them elsewhere and pass --perceptual-weights FILE; train.py can "
            "also do without the loss (--perceptual-weight 0) or use untrained features "
            "(--perceptual-weights random)"
        ) from error
    return path


def missing_download(network: str, source: str) -> str | None:
    """Return the URL, size and path of what `weights_file` would download; None if nothing."""
    if source != "imagenet":
        return None
    url = _url(network)
    path = hub_path(url)
    return None if path.exists() else f"{url} ({_DOWNLOADS[network]}) to {path}"


def _url(network: str) -> str:
    models = import_torchvision().models
    weights = {
        "vgg16": models.VGG16_Weights,
        "vgg19": models.VGG19_Weights,
        "squeezenet": models.SqueezeNet1_1_Weights,
    }
    return weights[network].IMAGENET1K_V1.url


def hub_path(url: str) -> Path:
    """Return where PyTorch's hub keeps, or would keep, the file of a URL."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


# --- layers and state dicts ---------------------------------------------------------------------


def vgg16_layers() -> nn.Sequential:
    """Build torchvision's `vgg16.features[:31]` without weights (on the meta device)."""
    vgg = import_torchvision().models.vgg
    with torch.device("meta"):
        return vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[:_VGG16_LAYERS]


def squeezenet_layers(first: Tensor | None = None) -> nn.Sequential:
    """Build torchvision's `squeezenet.features` without weights (on the meta device).

    Args:
        first: the weight of the first convolution, which is (96, 3, 7, 7) in version 1.0; None
            for version 1.1.
    """
    models = import_torchvision().models
    old = first is not None and first.shape == (96, 3, 7, 7)
    build = models.squeezenet1_0 if old else models.squeezenet1_1
    with torch.device("meta"):
        return build(weights=None).features


def vgg19_layers(state_dict: dict[str, Tensor]) -> nn.Sequential:
    """Build the layers of VGG19 that a state dict holds, by name and without weights.

    Args:
        state_dict: of `load`. With `conv0`, which maps RGB in [0, 1] to what the network was
            trained on, convolutions pad by reflection and poolings keep a last odd row, as in the
            networks that were published for style transfer; else as in torchvision.
    """
    sliced = "conv0.weight" in state_dict
    padding_mode: Literal["reflect", "zeros"] = "reflect" if sliced else "zeros"
    layers = nn.Sequential()
    with torch.device("meta"):
        if sliced:
            layers.add_module("conv0", nn.Conv2d(3, 3, 1))
        for number, block in enumerate(vgg19_blocks(state_dict), start=1):
            if number > 1:
                layers.add_module(f"pool{number - 1}", nn.MaxPool2d(2, ceil_mode=sliced))
            for name in block:
                width, channels = state_dict[f"{name}.weight"].shape[:2]
                convolution = nn.Conv2d(channels, width, 3, padding=1, padding_mode=padding_mode)
                layers.add_module(name, convolution)
                layers.add_module(name.replace("conv", "relu"), nn.ReLU())
    return layers


def vgg19_blocks(state_dict: dict[str, Tensor]) -> list[list[str]]:
    """Return the names of the 3x3 convolutions that a state dict holds, by block."""
    held = [[name for name in block if f"{name}.weight" in state_dict] for block in VGG19_BLOCKS]
    return [block for block in held if block]


def _layers(network: str, first: Tensor | None = None) -> nn.Sequential:
    return vgg16_layers() if network == "vgg16" else squeezenet_layers(first)


def _shapes(network: str) -> dict[str, torch.Size]:
    """Return the shapes of torchvision's weights and biases, by name."""
    if network != "vgg19":
        return {name: tensor.shape for name, tensor in _layers(network).state_dict().items()}
    shapes = {}
    channels = 3
    for block, width in zip(VGG19_BLOCKS, (64, 128, 256, 512, 512), strict=True):
        for name in block:
            shapes[f"{name}.weight"] = torch.Size((width, channels, 3, 3))
            shapes[f"{name}.bias"] = torch.Size((width,))
            channels = width
    return shapes


def _random_state_dict(network: str) -> dict[str, Tensor]:
    """Initialise as He et al. (2015), always the same and without the global generator."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in _shapes(network).items():
        state[name] = torch.zeros(shape)
        if name.endswith("weight"):
            nn.init.kaiming_normal_(
                state[name], mode="fan_out", nonlinearity="relu", generator=generator
            )
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict of a network or of its features alone.

    A network's names start with `features.`, which is left out; a whole checkpoint has it under
    `state_dict`.
    """
    loaded = files.load_tensors(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    tensors = {}
    if isinstance(loaded, dict):
        for name, value in loaded.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                tensors[name.removeprefix("features.")] = value
    return tensors


def _state_dict_of(network: str, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Pick the feature layers of a network from the tensors of a file.

    Raises:
        UserError: a layer is missing.
    """
    if network == "vgg19":
        return _vgg19_state_dict(tensors, path)
    state = {}
    for name, wanted in _layers(network, tensors.get("0.weight")).state_dict().items():
        if name not in tensors or tensors[name].shape != wanted.shape:
            raise cli.UserError(
                f"{path}: not a state dict of torchvision's {_TITLES[network]} (features.{name} of "
                f"shape {tuple(wanted.shape)} is missing)"
            )
        state[name] = tensors[name].float()
    return state


def _vgg19_state_dict(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Pick the layers of VGG19, or its first ones, from the tensors of a file; rename them.

    Raises:
        UserError: they are not VGG19's, or end before conv3_1.
    """
    spelling = _vgg19_spelling(tensors)
    held = [name for name, spelled in spelling.items() if f"{spelled}.weight" in tensors]
    state: dict[str, Tensor] = {}
    channels = 3
    for name in list(spelling)[: len(held)]:
        spelled = spelling[name]
        side = 1 if name == "conv0" else 3
        weight = tensors.get(f"{spelled}.weight", torch.empty(0))
        bias = tensors.get(f"{spelled}.bias", torch.empty(0))
        if weight.shape[1:] != (channels, side, side) or bias.shape != weight.shape[:1]:
            raise cli.UserError(
                f"{path}: not a state dict of VGG19 or of its first layers ({spelled}.weight of "
                f"shape (N, {channels}, {side}, {side}) and its bias are missing)"
            )
        state[f"{name}.weight"] = weight.float()
        state[f"{name}.bias"] = bias.float()
        channels = len(weight)
    if "conv3_1" not in held:
        raise cli.UserError(
            f"{path}: not a state dict of VGG19 or of its first layers up to conv3_1 at least "
            f"(it ends {f'after {held[-1]}' if held else 'before the first'})"
        )
    return state


def _vgg19_spelling(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return what a file calls VGG19's convolutions, in order.

    Torchvision numbers all layers. So do the networks normalised for style transfer (Gatys et al.,
    2016), where conv0 is the first layer and paddings count. Those distilled from them (Wang et
    al., 2020) say conv11 for conv1_1.
    """
    names = [name for block in VGG19_BLOCKS for name in block]
    if "conv11.weight" in tensors:
        return {name: name.replace("_", "") for name in ["conv0", *names]}
    first = tensors.get("0.weight")
    normalised = first is not None and first.shape == (3, 3, 1, 1)
    spelling = {"conv0": "0"} if normalised else {}
    index = 2 if normalised else 0
    for block in VGG19_BLOCKS:
        for name in block:
            spelling[name] = str(index)
            index += 3 if normalised else 2  # a convolution, its ReLU and its padding
        index += 1  # the pooling
    return spelling


# --- torchvision beside a CPU-only torch --------------------------------------------------------

# PyPI's torchvision is a CUDA build. Its compiled operators do not load with a CPU build of torch,
# and importing it fails with "operator torchvision::nms does not exist" (pytorch/vision issues 9077
# and 9085). It suffices to declare the two operators that torchvision uses without checking for
# them.
_declared: torch.library.Library | None = None  # kept alive, and with it the schemas


def import_torchvision() -> ModuleType:
    """Import torchvision; if its compiled operators are missing, declare `nms` and `qnms` first."""
    global _declared
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _declared is not None:
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


@contextlib.contextmanager
def network_timeout(seconds: float) -> Iterator[None]:
    """Limit the time of each response in PyTorch hub downloads, which is unlimited by default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
