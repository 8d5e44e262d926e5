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

import torch
from torch import Tensor, nn

from utils import cli, files

_TITLES = {"vgg16": "VGG16", "squeezenet": "SqueezeNet"}
_DOWNLOADS = {"vgg16": "528 MB", "squeezenet": "5 MB"}
LEAST_SIDES = {"vgg16": 32, "squeezenet": 21}  # pixels; SqueezeNet 1.1 could do with 17
_VGG_LAYERS = 31  # features[:31]: all of VGG16's convolutions, up to the last pooling


@dataclass(frozen=True)
class Pretrained:
    """The weights of a perceptual network.

    Attributes:
        network: `vgg16` or `squeezenet`.
        state_dict: of its feature layers.
        fingerprint: identifies the weights: the SHA-256 of their file, or `random`.
    """

    network: str
    state_dict: dict[str, Tensor]
    fingerprint: str


def load(network: str, source: str) -> Pretrained:
    """Load a perceptual network's weights.

    Args:
        network: `vgg16` or `squeezenet`.
        source: `imagenet` (torchvision's file, downloaded once), `random`, or a file.

    Raises:
        UserError: the weights cannot be downloaded or read; the message says what to do.
        OSError: the file cannot be opened.
    """
    if source == "random":
        return Pretrained(network, _random_state_dict(network), "random")
    path = weights_file(network, source)
    try:
        state = _read_state_dict(network, path)
    except cli.UserError as error:
        advice = "; delete it to download it again" if source == "imagenet" else ""
        raise cli.UserError(f"{error}{advice}") from error
    return Pretrained(network, state, files.sha256(path))


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
    weights = {"vgg16": models.VGG16_Weights, "squeezenet": models.SqueezeNet1_1_Weights}
    return weights[network].IMAGENET1K_V1.url


def hub_path(url: str) -> Path:
    """Return where PyTorch's hub keeps, or would keep, the file of a URL."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


# --- layers and state dicts ---------------------------------------------------------------------


def vgg16_layers() -> nn.Sequential:
    """Build torchvision's `vgg16.features[:31]` without weights (on the meta device)."""
    vgg = import_torchvision().models.vgg
    with torch.device("meta"):
        return vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[:_VGG_LAYERS]


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


def _layers(network: str, first: Tensor | None = None) -> nn.Sequential:
    return vgg16_layers() if network == "vgg16" else squeezenet_layers(first)


def _random_state_dict(network: str) -> dict[str, Tensor]:
    """Initialise as He et al. (2015), always the same and without the global generator."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in _layers(network).state_dict().items():
        state[name] = torch.zeros(tensor.shape)
        if name.endswith("weight"):
            nn.init.kaiming_normal_(
                state[name], mode="fan_out", nonlinearity="relu", generator=generator
            )
    return state


def _read_state_dict(network: str, path: Path) -> dict[str, Tensor]:
    """Read the feature layers from a state dict of a network or of its features alone.

    A network's names start with `features.`; a whole checkpoint has it under `state_dict`.
    """
    loaded = files.load_tensors(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    found = {}
    if isinstance(loaded, dict):
        for name, value in loaded.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                found[name.removeprefix("features.")] = value
    state = {}
    for name, wanted in _layers(network, found.get("0.weight")).state_dict().items():
        if name not in found or found[name].shape != wanted.shape:
            raise cli.UserError(
                f"{path}: not a state dict of torchvision's {_TITLES[network]} (features.{name} of "
                f"shape {tuple(wanted.shape)} is missing)"
            )
        state[name] = found[name].float()
    return state


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
