"""Networks trained on ImageNet: from torchvision's file in PyTorch's hub folder, or from a file that the user names."""

import contextlib
import http.client
import importlib
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from utils import cli, files

_TITLES = {"vgg16": "VGG16", "squeezenet": "SqueezeNet"}
_DOWNLOADS = {"vgg16": "528 MB", "squeezenet": "5 MB"}
LEAST_SIDES = {"vgg16": 32, "squeezenet": 21}  # pixels; SqueezeNet 1.1 could do with 17
_DOWNLOAD_ERRORS = (OSError, http.client.HTTPException, RuntimeError)  # RuntimeError: wrong SHA-256
_VGG_LAYERS = 31  # features[:31]: all of VGG16's convolutions, up to the last pooling


def vgg16_layers() -> nn.Sequential:
    """Build torchvision's `vgg16.features[:31]` without weights (on the meta device); ReLU in place."""
    vgg = import_torchvision().models.vgg
    with torch.device("meta"):
        return vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[:_VGG_LAYERS]


def squeezenet_layers(first: Tensor | None = None) -> nn.Sequential:
    """Build torchvision's `squeezenet.features` without weights (on the meta device): version 1.1, or what `first` tells.

    Args:
        first: the weight of the first convolution, which is (96, 3, 7, 7) in version 1.0.
    """
    models = import_torchvision().models
    old = first is not None and first.shape == (96, 3, 7, 7)
    with torch.device("meta"):
        return (models.squeezenet1_0 if old else models.squeezenet1_1)(weights=None).features


def state_dict(network: str, source: str) -> dict[str, Tensor]:
    """Return the state dict of a perceptual network's layers.

    Args:
        network: `vgg16` or `squeezenet`.
        source: `imagenet` (torchvision's file, downloaded once), `random`, or a file.

    Raises:
        UserError: the weights cannot be downloaded or read; the message says what to do.
        OSError: the file cannot be opened.
    """
    if source == "random":
        return _random_state_dict(network)
    path = weights_file(network, source)
    try:
        return _read_state_dict(network, path)
    except cli.UserError as error:
        advice = "; delete it to download it again" if source == "imagenet" else ""
        raise cli.UserError(f"{error}{advice}") from error


def weights_file(network: str, source: str) -> Path:
    """Return the file of a source other than `random`; download torchvision's to PyTorch's hub folder if it is missing."""
    if source != "imagenet":
        return Path(source)
    path = hub_path(url := _url(network))
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with network_timeout(30):
            _download(url, path)
    except _DOWNLOAD_ERRORS as error:
        raise cli.UserError(
            f"the ImageNet weights of {_TITLES[network]} could not be downloaded from {url} ({error}): download them elsewhere "
            "and pass --perceptual-weights FILE; train.py can also do without the loss (--perceptual-weight 0) or use "
            "untrained features (--perceptual-weights random)"
        ) from error
    return path


def download_within(network: str, seconds: float) -> bool:
    """Tell whether torchvision's file is in the hub folder, or can be downloaded to it within `seconds`."""
    path = hub_path(url := _url(network))
    if path.exists():
        return True
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        part = Path(folder, path.name)
        # In a thread, because neither a slow server nor a name server that does not answer heeds a socket's timeout
        thread = threading.Thread(target=_download_or_not, args=(url, part), daemon=True)
        thread.start()
        thread.join(seconds)
        if part.exists():  # whole and checked
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.write_atomic(path) as file:
                file.write(part.read_bytes())
    return path.exists()


def _download_or_not(url: str, path: Path) -> None:
    with contextlib.suppress(*_DOWNLOAD_ERRORS):
        _download(url, path, progress=False)


def _download(url: str, path: Path, progress: bool = True) -> None:
    digest = path.stem.rsplit("-", 1)[-1]  # the file name ends in the first digits of its SHA-256
    torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=progress)


def _url(network: str) -> str:
    models = import_torchvision().models
    weights = {"vgg16": models.VGG16_Weights, "squeezenet": models.SqueezeNet1_1_Weights}
    return weights[network].IMAGENET1K_V1.url


def hub_path(url: str) -> Path:
    """Return where PyTorch's hub keeps, or would keep, the file of a URL."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def _layers(network: str, first: Tensor | None = None) -> nn.Sequential:
    return vgg16_layers() if network == "vgg16" else squeezenet_layers(first)


def _random_state_dict(network: str) -> dict[str, Tensor]:
    """Initialise as He et al. (2015), always the same and without using the global random state."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, tensor in _layers(network).state_dict().items():
        state[name] = torch.zeros(tensor.shape)
        if name.endswith("weight"):
            nn.init.kaiming_normal_(
                state[name], mode="fan_out", nonlinearity="relu", generator=generator
            )
    return state


def _read_state_dict(network: str, path: Path) -> dict[str, Tensor]:
    """Read the feature layers out of a state dict of the network (`features.0.weight`) or of its features (`0.weight`)."""
    loaded = files.load_tensors(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    loaded = loaded if isinstance(loaded, dict) else {}
    loaded = {
        name.removeprefix("features."): tensor
        for name, tensor in loaded.items()
        if isinstance(name, str)
    }
    first, state = loaded.get("0.weight"), {}
    for name, wanted in (
        _layers(network, first if isinstance(first, Tensor) else None).state_dict().items()
    ):
        tensor = loaded.get(name)
        if not isinstance(tensor, Tensor) or tensor.shape != wanted.shape:
            raise cli.UserError(
                f"{path}: not a state dict of torchvision's {_TITLES[network]} (features.{name} of shape "
                f"{tuple(wanted.shape)} is missing)"
            )
        state[name] = tensor.float()
    return state


def fingerprint(network: str, source: str) -> str:
    """Return what identifies the weights: the SHA-256 of their file, or the name `random`."""
    return source if source == "random" else files.sha256(weights_file(network, source))


def missing_download(network: str, source: str) -> str | None:
    """Return the URL and the path of what `weights_file` would download, or None if nothing is missing."""
    path = hub_path(url := _url(network))
    return (
        None
        if source != "imagenet" or path.exists()
        else f"{url} ({_DOWNLOADS[network]}) to {path}"
    )


# --- torchvision beside a CPU-only torch ---

# PyPI's torchvision is a CUDA build. Its compiled operators do not load with a CPU build of torch, and importing it
# fails with "operator torchvision::nms does not exist" (pytorch/vision issues 9077 and 9085). It suffices to declare the
# two operators that torchvision uses without checking for them.
_declared = None  # keeps the library object alive, and with it the schemas


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
    """Set a timeout for each response of the server in PyTorch hub downloads, which have none by default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
