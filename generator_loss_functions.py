"""The generator's loss: pixel + adversarial + VGG16 perceptual + total variation (Ledig et al., section 2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.pretrained import vgg16_layers

PIXEL_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}  # SRGAN's, and ESRGAN's
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
