"""The generator's loss: pixel + adversarial + VGG16 perceptual + total variation (Ledig et al., section 2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.pretrained import vgg16_layers

PIXEL_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}  # SRGAN's, and ESRGAN's
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TVLoss(nn.Module):
    """Total variation: the mean squared difference of neighbouring pixels, vertically and horizontally."""

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


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return BCE(D(x), 1) + BCE(D(G(z)), 0) for logits of any shape; it is 2 ln 2 if the discriminator only guesses."""
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    return real + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))


def adversarial_loss(fake_logits: Tensor) -> Tensor:
    """Return -log D(G(z)), the mean over logits of any shape (Ledig et al., equation 6)."""
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


class GeneratorLoss(nn.Module):
    """The weighted sum of the pixel, adversarial, perceptual and total variation losses; train.py's options set the weights.

    Args:
        vgg: the frozen features; may be None if the perceptual weight is 0.
        pixel_loss: one of `PIXEL_LOSSES`.
    """

    def __init__(
        self,
        *,
        pixel_weight: float,
        adversarial_weight: float,
        perceptual_weight: float,
        tv_weight: float,
        vgg: VGG16Features | None = None,
        pixel_loss: str = "mse",
    ):
        super().__init__()
        if vgg is None and perceptual_weight:
            raise ValueError(f"perceptual weight {perceptual_weight} needs VGG16 features")
        self.weights = {
            "Loss_Pixel": pixel_weight,
            "Loss_Adversarial": adversarial_weight,
            "Loss_Perceptual": perceptual_weight,
            "Loss_TV": tv_weight,
        }
        self.vgg = vgg if perceptual_weight else None
        self.pixel_loss, self.tv_loss = PIXEL_LOSSES[pixel_loss], TVLoss()

    def forward(self, fake_logits: Tensor, sr: Tensor, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total and the unweighted terms, by CSV column.

        Args:
            fake_logits: the discriminator's logits for `sr`, any shape.
            sr, hr: images (N, 3, H, W) in [0, 1].
        """
        terms = {"Loss_Pixel": self.pixel_loss(sr.float(), hr), "Loss_Adversarial": adversarial_loss(fake_logits.float())}
        if self.vgg is not None:
            terms["Loss_Perceptual"] = self.perceptual(sr, hr)
        terms["Loss_TV"] = self.tv_loss(sr.float())
        return sum(self.weights[name] * term for name, term in terms.items()), terms

    def perceptual(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the MSE between the VGG16 features of images (N, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            target = self.vgg(hr)
        return F.mse_loss(self.vgg(sr).float(), target.float())
