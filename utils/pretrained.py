"""VGG16 trained on ImageNet: from torchvision's file in PyTorch's hub folder, or from a file that the user names."""

import http.client
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import cli, compat, files

_VGG_LAYERS = 31  # features[:31]: all of VGG16's convolutions, up to the last pooling


def vgg16_layers() -> nn.Sequential:
    """Build torchvision's `vgg16.features[:31]` without its 120-million-weight classifier; ReLU in place."""
    vgg = compat.import_torchvision().models.vgg
    return vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[:_VGG_LAYERS]


def vgg16_state_dict(source: str) -> dict[str, Tensor]:
    """Return the state dict of `vgg16_layers`: `imagenet` (torchvision's, downloaded once), `random`, or from a file.

    Raises:
        UserError: the weights cannot be downloaded or read; the message says what to do.
        OSError: the file cannot be opened.
    """
    if source == "random":
        return _random_state_dict()
    path = vgg16_file(source)
    try:
        return _read_state_dict(path)
    except cli.UserError as error:
        advice = "; delete it to download it again" if source == "imagenet" else ""
        raise cli.UserError(f"{error}{advice}") from error


def vgg16_file(source: str) -> Path:
    """Return the file of a source other than `random`; download torchvision's to PyTorch's hub folder if it is missing."""
    if source != "imagenet":
        return Path(source)
    url = compat.import_torchvision().models.VGG16_Weights.IMAGENET1K_V1.url
    path = hub_path(url)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with compat.network_timeout(30):
            digest = path.stem.rsplit("-", 1)[-1]  # the file name ends in the first digits of its SHA-256
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=True)
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: wrong SHA-256
        raise cli.UserError(
            f"the ImageNet weights of VGG16 could not be downloaded from {url} ({error}): download it elsewhere and pass "
            "--vgg-weights FILE, leave the loss out with --perceptual-weight 0, or use untrained features with "
            "--vgg-weights random"
        ) from error
    return path


def hub_path(url: str) -> Path:
    """Return where PyTorch's hub keeps, or would keep, the file of a URL."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def _random_state_dict() -> dict[str, Tensor]:
    """Initialise VGG16 as torchvision does (He et al., 2015), always the same and without using the global random state."""
    layers = vgg16_layers()
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return layers.state_dict()


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the feature layers out of a state dict of VGG16 (`features.0.weight`) or of its features (`0.weight`)."""
    loaded = files.load_tensors(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    expected = {name: tensor.shape for name, tensor in vgg16_layers().state_dict().items()}
    state = {}
    for name, shape in expected.items():
        tensor = next((loaded[key] for key in (f"features.{name}", name) if isinstance(loaded, dict) and key in loaded), None)
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            raise cli.UserError(
                f"{path}: not a state dict of torchvision's VGG16 (features.{name} of shape {tuple(shape)} is missing)"
            )
        state[name] = tensor.float()
    return state


def fingerprint(source: str) -> str:
    """Return what identifies the weights: the SHA-256 of their file, or the name `random`."""
    return source if source == "random" else files.sha256(vgg16_file(source))


def missing_download(source: str) -> str | None:
    """Return the URL and the path of what `vgg16_file` would download, or None if nothing is missing."""
    url = compat.import_torchvision().models.VGG16_Weights.IMAGENET1K_V1.url
    return None if source != "imagenet" or hub_path(url).exists() else f"{url} (528 MB) to {hub_path(url)}"
