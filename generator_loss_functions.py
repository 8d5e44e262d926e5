"""The generator's loss: pixel + adversarial + VGG16 perceptual + total variation (Ledig et al., section 2.2)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compat
import files

PIXEL_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}  # SRGAN's, and ESRGAN's
VGG_LAYERS = 31  # features[:31]: all of VGG16's convolutions, up to the last pooling
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TVLoss(nn.Module):
    """Total variation: the mean squared difference of neighbouring pixels, down and across."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to 2/N · (Σ Δh² / (C·(H-1)·W) + Σ Δw² / (C·H·(W-1)))."""
        down = (x[:, :, 1:] - x[:, :, :-1]).square().mean()
        across = (x[:, :, :, 1:] - x[:, :, :, :-1]).square().mean()
        return 2 * (down + across)


class VGG16Features(nn.Module):
    """The frozen features of VGG16 that the perceptual loss compares."""

    def __init__(self, state_dict: dict[str, Tensor]):
        super().__init__()
        self.features = vgg16_layers()
        self.features.load_state_dict(state_dict)
        self.features.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [0, 1], at least 32x32, to features (N, 512, H/32, W/32)."""
        return self.features((x - self.mean) / self.std)


class GeneratorLoss(nn.Module):
    """L_G = pixel + 0.001·adversarial + 0.006·perceptual + 2e-8·TV, with weights that can be set.

    Args:
        vgg: the frozen features; None where the perceptual weight is 0.
        pixel_loss: one of `PIXEL_LOSSES`.
    """

    def __init__(
        self,
        vgg: VGG16Features | None,
        pixel_weight: float = 1,
        adversarial_weight: float = 1e-3,
        perceptual_weight: float = 6e-3,
        tv_weight: float = 2e-8,
        pixel_loss: str = "mse",
    ):
        super().__init__()
        if vgg is None and perceptual_weight:
            raise ValueError(f"perceptual weight {perceptual_weight} needs VGG16 features")
        self.vgg = vgg if perceptual_weight else None
        self.tv_loss = TVLoss()
        self.pixel_loss = PIXEL_LOSSES[pixel_loss]
        self.pixel_weight = pixel_weight
        self.adversarial_weight = adversarial_weight
        self.perceptual_weight = perceptual_weight
        self.tv_weight = tv_weight

    def forward(self, fake_logits: Tensor, sr: Tensor, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total and the unweighted terms by name.

        Args:
            fake_logits: the discriminator's logits for `sr`, any shape.
            sr, hr: images (N, 3, H, W) in [0, 1].
        """
        terms = {
            "pixel": self.pixel_loss(sr.float(), hr),
            "adversarial": F.binary_cross_entropy_with_logits(fake_logits.float(), torch.ones_like(fake_logits).float()),
            "perceptual": self.perceptual(sr, hr),
            "tv": self.tv_loss(sr.float()),
        }
        total = (
            self.pixel_weight * terms["pixel"]
            + self.adversarial_weight * terms["adversarial"]
            + self.perceptual_weight * terms["perceptual"]
            + self.tv_weight * terms["tv"]
        )
        return total, terms

    def perceptual(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the MSE between the VGG16 features of images (N, 3, H, W) in [0, 1]; 0 without VGG."""
        if self.vgg is None:
            return sr.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            target = self.vgg(hr)
        return F.mse_loss(self.vgg(sr).float(), target.float())


# --- where the VGG16 weights come from ----------------------------------------------------------------------------


def vgg16_layers() -> nn.Sequential:
    """Build torchvision's `vgg16.features[:31]` without its 120-million-weight classifier; ReLU in place."""
    vgg = compat.import_torchvision().models.vgg
    return vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[:VGG_LAYERS]


def check_vgg_weights(source: str) -> None:
    """See, before a long run, that `load_vgg16` will find its weights; downloads ImageNet's where they are not there yet."""
    if source != "random":
        _state_dict_of(source)


def load_vgg16(source: str) -> VGG16Features:
    """Return frozen VGG16 features: `imagenet` (torchvision's, downloaded once), `random`, or a state-dict file.

    Raises:
        ValueError: the weights cannot be had; the message gives the ways on.
        OSError: the file cannot be opened.
    """
    return VGG16Features(_random_state_dict() if source == "random" else _state_dict_of(source))


def _state_dict_of(source: str) -> dict[str, Tensor]:
    if source != "imagenet":
        return _read_state_dict(Path(source))
    path = _imagenet_file()
    try:
        return _read_state_dict(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it, and it is downloaded anew") from error


def _random_state_dict() -> dict[str, Tensor]:
    """He-initialised layers, as torchvision initialises VGG16, always the same and without touching the global generator."""
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
            raise ValueError(
                f"{path}: not a state dict of torchvision's VGG16 (features.{name} of shape {tuple(shape)} is missing)"
            )
        state[name] = tensor.float()
    return state


def _imagenet_file() -> Path:
    """Return torchvision's ImageNet weights of VGG16 in PyTorch's hub folder, downloading and checking them if need be."""
    weights = compat.import_torchvision().models.VGG16_Weights.IMAGENET1K_V1
    folder = Path(torch.hub.get_dir(), "checkpoints")
    path = folder / weights.url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with compat.network_timeout(30):
            digest = path.stem.rsplit("-", 1)[-1]  # the file name ends in the first digits of its SHA-256
            torch.hub.download_url_to_file(weights.url, str(path), hash_prefix=digest, progress=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the ImageNet weights of VGG16 could not be downloaded from {weights.url} ({error}): give the file by "
            f"--vgg-weights FILE (downloaded elsewhere), or train on untrained features by --vgg-weights random"
        ) from error
    return path
