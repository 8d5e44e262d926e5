"""The losses: pixel + adversarial + perceptual + total variation (Ledig et al., section 2.2), and two that keep texture clean:
a penalty on grids, and consistency with LR.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.pretrained import squeezenet_layers, vgg16_layers

PIXEL_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}  # SRGAN's, and ESRGAN's

# --- adversarial --------------------------------------------------------------------------------------------------


def bce(logits: Tensor, target: float) -> Tensor:
    """Return the binary cross entropy between logits of any shape and one target for all, 0 or 1."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


class AdversarialLoss:
    """SRGAN's adversarial losses (Ledig et al., equations 2 and 6); logits have any shape."""

    needs_real = False  # whether G's loss depends on D(x)

    def relate(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits that decide: of HR being real, and of SR being real."""
        return real, fake

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return BCE(D(x), 1) + BCE(D(G(z)), 0), which is 2 ln 2 if D only guesses, and the mean scores by CSV column."""
        real, fake = self.relate(real.float(), fake.float())
        scores = {"Score_D": torch.sigmoid(real).mean(), "Score_G": torch.sigmoid(fake).mean()}
        return bce(real, 1) + bce(fake, 0), scores

    def generator(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Return -log D(G(z)), the mean over logits."""
        return bce(fake.float(), 1)


class RelativisticLoss(AdversarialLoss):
    """ESRGAN's: D tells whether x is more real than the average G(z) (Jolicoeur-Martineau, 2018, arXiv 1807.00734)."""

    needs_real = True

    def relate(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of HR less the mean of SR's, and the reverse."""
        return real - fake.mean(), fake - real.mean()

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return BCE(D(x), 0) + BCE(D(G(z)), 1) of the related logits (Wang et al., 2018, equation 2)."""
        real, fake = self.relate(real.float(), fake.float())
        return bce(real, 0) + bce(fake, 1)


ADVERSARIAL_LOSSES = {"standard": AdversarialLoss, "relativistic": RelativisticLoss}

# --- perceptual ---------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """Frozen ImageNet features that compare images; torchvision's normalisation is applied first."""

    def __init__(self, layers: nn.Sequential, state_dict: dict[str, Tensor]):
        super().__init__()
        layers.load_state_dict(state_dict, assign=True)
        self.features = layers.eval().requires_grad_(False)
        self.register_buffer(
            "mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1), persistent=False
        )


class VGG16Features(Features):
    """The output of VGG16's last pooling layer, compared by mean squared error (Ledig et al., equation 5).

    Args:
        state_dict: of `pretrained.vgg16_layers`.
    """

    def __init__(self, state_dict: dict[str, Tensor]):
        super().__init__(vgg16_layers(), state_dict)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [0, 1], at least 32x32, to features (N, 512, H/32, W/32)."""
        return self.features((x - self.mean) / self.std)

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the MSE of the features of each pair (N,); only `sr` gets a gradient."""
        return (self(sr).float() - self(hr.detach()).float()).square().flatten(1).mean(1)


class SqueezeNetFeatures(Features):
    """Seven stages of SqueezeNet 1.0 or 1.1, compared as in LPIPS without its calibration (Zhang et al., 2018, equation 1).

    Args:
        state_dict: of `pretrained.squeezenet_layers`; its first layer tells which version it is.
    """

    def __init__(self, state_dict: dict[str, Tensor]):
        layers = squeezenet_layers(state_dict["0.weight"])
        super().__init__(layers, state_dict)
        # The first ReLU and six of the fire modules; of version 1.1, those of LPIPS
        self.stages = (
            (1, 4, 7, 8, 9, 10, 12)
            if isinstance(layers[6], nn.MaxPool2d)
            else (1, 4, 7, 9, 10, 11, 12)
        )

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """Yield, stage by stage, the features (N, C, h, w) of images (N, 3, H, W) in [0, 1], with unit norm over channels."""
        x = (x - self.mean) / self.std
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.stages:
                yield F.normalize(x.float(), dim=1, eps=1e-10)

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distance of each pair (N,), from images at least 21x21; only `sr` gets a gradient.

        It is the squared difference of the features, summed over channels, averaged over positions and summed over stages.
        """
        pairs = zip(self(sr), self(hr.detach()), strict=True)
        return sum((x - target).square().sum(1).mean((1, 2)) for x, target in pairs)


PERCEPTUAL_NETWORKS = {"vgg16": VGG16Features, "squeezenet": SqueezeNetFeatures}

# --- regularisation -----------------------------------------------------------------------------------------------


class TVLoss(nn.Module):
    """Total variation: the mean squared difference of neighbouring pixels, vertically and horizontally."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to 2/N · (Σ Δh² / (C·(H-1)·W) + Σ Δw² / (C·H·(W-1)))."""
        down = (x[:, :, 1:] - x[:, :, :-1]).square().mean()
        across = (x[:, :, :, 1:] - x[:, :, :, :-1]).square().mean()
        return 2 * (down + across)


def grid_loss(sr: Tensor, hr: Tensor, upscale: int) -> Tensor:
    """Return how much of SR - HR repeats every `upscale` pixels, which is what pixel shuffle prints when G overshoots.

    The difference, less its 5x5 mean (reflected at the border), is averaged over all places with the same row and column
    modulo `upscale`, for each image and channel; the result is the mean square of these averages.

    Args:
        sr, hr: images (N, C, H, W) in [0, 1], with sides that are multiples of the scale.
    """
    difference = sr - hr
    fine = difference - F.avg_pool2d(F.pad(difference, (2, 2, 2, 2), "reflect"), 5, 1)
    cells = fine.unflatten(3, (-1, upscale)).unflatten(2, (-1, upscale))  # (N, C, H/s, s, W/s, s)
    return cells.mean((2, 4)).square().mean()


def consistency_loss(sr: Tensor, hr: Tensor, upscale: int) -> Tensor:
    """Return the mean squared difference between SR and HR after both were reduced to LR's size by bicubic.

    Many HR images have the same LR, and texture is a choice among them. This term leaves that choice free, and penalises
    what LR rules out: patterns as wide as its pixels, and lost contrast and colour (Bahat and Michaeli, 2020, section 3).

    Args:
        sr, hr: images (N, C, H, W) in [0, 1], with sides that are multiples of the scale.
    """
    size = [side // upscale for side in hr.shape[-2:]]
    return F.interpolate(sr - hr, size, mode="bicubic", antialias=True).square().mean()


# --- all together -------------------------------------------------------------------------------------------------


class GeneratorLoss(nn.Module):
    """The weighted sum of the terms above; train.py's options set the weights.

    Args:
        network: the perceptual network; may be None if its weight is 0.
        perceptual_shift: how many pixels SR and HR are at most shifted (cropped) before the perceptual network, together
            and by a new draw for every update: the network's strides, always at the same places, print squares on SR.
        perceptual_zoom: how much SR and HR are at most enlarged after that, in steps of a quarter and by a new draw for
            every update: the network hardly tells patterns of 2 to 4 pixels apart, and takes a weave of dots for texture.
        pixel_loss: one of `PIXEL_LOSSES`.
        adversarial_loss: one of `ADVERSARIAL_LOSSES`.
        upscale: the scale, which is the period of the grid.
    """

    def __init__(
        self,
        *,
        pixel_weight: float,
        adversarial_weight: float,
        perceptual_weight: float,
        tv_weight: float,
        grid_weight: float = 0.0,
        consistency_weight: float = 0.0,
        network: VGG16Features | SqueezeNetFeatures | None = None,
        perceptual_shift: int = 0,
        perceptual_zoom: float = 1.0,
        pixel_loss: str = "mse",
        adversarial_loss: str = "standard",
        upscale: int = 4,
    ):
        super().__init__()
        if network is None and perceptual_weight:
            raise ValueError(f"perceptual weight {perceptual_weight} needs a perceptual network")
        self.weights = {
            "Loss_Pixel": pixel_weight,
            "Loss_Adversarial": adversarial_weight,
            "Loss_Perceptual": perceptual_weight,
            "Loss_TV": tv_weight,
            "Loss_Grid": grid_weight,
            "Loss_Consistency": consistency_weight,
        }
        self.network = network if perceptual_weight else None
        self.perceptual_shift, self.perceptual_zoom, self.upscale = (
            perceptual_shift,
            perceptual_zoom,
            upscale,
        )
        self.offset, self.zoom = (0, 0), 1.0
        self.pixel_loss, self.tv_loss = PIXEL_LOSSES[pixel_loss], TVLoss()
        self.adversarial = ADVERSARIAL_LOSSES[adversarial_loss]()

    def draw_view(self, rng: np.random.Generator) -> None:
        """Draw how far the next update's images are shifted before the perceptual network, and how much enlarged."""
        self.offset = tuple(rng.integers(0, self.perceptual_shift + 1, 2).tolist())
        self.zoom = 1 + rng.integers(0, int(4 * (self.perceptual_zoom - 1)) + 1).item() / 4

    def forward(
        self, sr: Tensor, hr: Tensor, fake_logits: Tensor, real_logits: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total and the unweighted terms, by CSV column.

        Args:
            sr, hr: images (N, 3, H, W) in [0, 1].
            fake_logits, real_logits: the discriminator's logits for `sr` and `hr`, any shape; the latter only if
                `adversarial.needs_real`.
        """
        terms = {
            "Loss_Pixel": self.pixel_loss(sr.float(), hr),
            "Loss_Adversarial": self.adversarial.generator(real_logits, fake_logits),
        }
        if self.network is not None:
            terms["Loss_Perceptual"] = self.network.distance(
                self.viewed(sr), self.viewed(hr)
            ).mean()
        terms["Loss_TV"] = self.tv_loss(sr.float())
        terms["Loss_Grid"] = grid_loss(sr.float(), hr, self.upscale)
        terms["Loss_Consistency"] = consistency_loss(sr.float(), hr, self.upscale)
        return sum(self.weights[name] * term for name, term in terms.items()), terms

    def viewed(self, image: Tensor) -> Tensor:
        """Return what the perceptual network sees of (N, C, H, W): smaller by the largest shift, at the offset, enlarged."""
        (top, left), (height, width) = (
            self.offset,
            (side - self.perceptual_shift for side in image.shape[-2:]),
        )
        view = image[..., top : top + height, left : left + width]
        if self.zoom == 1:
            return view
        return F.interpolate(
            view, [int(side * self.zoom) for side in (height, width)], mode="bicubic"
        )
