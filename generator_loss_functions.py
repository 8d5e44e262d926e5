"""The losses (Ledig et al., section 2.2): pixel, adversarial, perceptual and total variation.

Two more keep texture clean: a penalty on grids, and consistency with LR.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import filters
from utils.device import true_fp32
from utils.pretrained import squeezenet_layers, vgg16_layers, vgg19_blocks, vgg19_layers

PIXEL_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}  # SRGAN's, and ESRGAN's

# --- adversarial --------------------------------------------------------------------------------


def bce(logits: Tensor, target: float) -> Tensor:
    """Return the mean binary cross entropy between logits of any shape and one target, 0 or 1."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


class AdversarialLoss:
    """SRGAN's adversarial losses (Ledig et al., equations 2 and 6); logits have any shape."""

    needs_real = False  # whether G's loss depends on D(x)

    def relate(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits that decide: of HR being real, and of SR being real."""
        return real, fake

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return BCE(D(x), 1) + BCE(D(G(z)), 0), and D's mean scores by CSV column.

        A discriminator that only guesses has a loss of 2 ln 2.
        """
        real, fake = self.relate(real.float(), fake.float())
        scores = {"Score_D": torch.sigmoid(real).mean(), "Score_G": torch.sigmoid(fake).mean()}
        return bce(real, 1) + bce(fake, 0), scores

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Return the mean of -log D(G(z)); `real` is needed only if `needs_real`."""
        return bce(fake.float(), 1)


class RelativisticLoss(AdversarialLoss):
    """ESRGAN's losses: D tells whether x is more real than the average G(z).

    Jolicoeur-Martineau, 2018, arXiv 1807.00734.
    """

    needs_real = True

    def relate(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of HR less the mean of SR's, and the reverse."""
        return real - fake.mean(), fake - real.mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Return BCE(D(x), 0) + BCE(D(G(z)), 1) of the related logits.

        Wang et al., 2018, equation 2.
        """
        if real is None:
            raise ValueError("the relativistic loss needs D's logits for HR")
        real, fake = self.relate(real.float(), fake.float())
        return bce(real, 0) + bce(fake, 1)


ADVERSARIAL_LOSSES = {"standard": AdversarialLoss, "relativistic": RelativisticLoss}

# --- perceptual ---------------------------------------------------------------------------------


class PerceptualNetwork(nn.Module, ABC):
    """Frozen ImageNet features that compare images in [0, 1].

    Args:
        layers: the feature layers, without weights.
        state_dict: their weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: nn.Sequential, state_dict: dict[str, Tensor]):
        super().__init__()
        layers.load_state_dict(state_dict, assign=True)
        self.features = layers.eval().requires_grad_(False)
        mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
        std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def normalised(self, x: Tensor) -> Tensor:
        """Map images in [0, 1] to what the network was trained on."""
        return (x - self.mean) / self.std

    @abstractmethod
    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the loss (N,) of pairs of images (N, 3, H, W); only `sr` gets a gradient."""

    def measure(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distance (N,) that the metrics report: by default, the loss."""
        return self.distance(sr, hr)


def normalised_difference(ours: Tensor, target: Tensor) -> Tensor:
    """Compare features (N, C, h, w) as LPIPS does, but without its calibration.

    Zhang et al., 2018, equation 1: the squared difference of features of unit norm is summed over
    channels and averaged over positions.

    Returns:
        (N,), float32.
    """
    ours = F.normalize(ours.float(), dim=1, eps=1e-10)
    target = F.normalize(target.float(), dim=1, eps=1e-10)
    return (ours - target).square().sum(1).mean((1, 2))


def absolute_difference(ours: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference (N,), float32, of features (N, C, h, w)."""
    return (ours.float() - target.float()).abs().mean((1, 2, 3))


def relative_difference(ours: Tensor, target: Tensor) -> Tensor:
    """Return `absolute_difference` as a share of the target's mean absolute feature (N,)."""
    return absolute_difference(ours, target) / target.float().abs().mean()


class VGG16Features(PerceptualNetwork):
    """The output of VGG16's last pooling layer, compared by MSE (Ledig et al., equation 5).

    Args:
        state_dict: of `pretrained.vgg16_layers`.
    """

    def __init__(self, state_dict: dict[str, Tensor]):
        super().__init__(vgg16_layers(), state_dict)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [0, 1], at least 32x32, to features (N, 512, H/32, W/32)."""
        return self.features(self.normalised(x))

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the MSE of the features of each pair (N,); only `sr` gets a gradient."""
        difference = self(sr).float() - self(hr.detach()).float()
        return difference.square().flatten(1).mean(1)


class StagedNetwork(PerceptualNetwork):
    """A perceptual network that is compared at several stages."""

    @abstractmethod
    def forward(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield each stage's weight and features (N, C, h, w) of images (N, 3, H, W) in [0, 1]."""

    def over_stages(
        self, difference: Callable[[Tensor, Tensor], Tensor], sr: Tensor, hr: Tensor
    ) -> Tensor:
        """Return the weighted sum of the stages' differences (N,); only `sr` gets a gradient."""
        total = sr.new_zeros(len(sr), dtype=torch.float32)
        for (weight, ours), (_, target) in zip(self(sr), self(hr.detach()), strict=True):
            total = total + weight * difference(ours, target)
        return total


class SqueezeNetFeatures(StagedNetwork):
    """Seven stages of SqueezeNet, compared by `normalised_difference`.

    Args:
        state_dict: of `pretrained.squeezenet_layers`; it tells version 1.0 from 1.1.
    """

    def __init__(self, state_dict: dict[str, Tensor]):
        layers = squeezenet_layers(state_dict["0.weight"])
        super().__init__(layers, state_dict)
        # The first ReLU and six of the fire modules; in version 1.1, those of LPIPS
        is_1_0 = isinstance(layers[6], nn.MaxPool2d)
        self.stages = (1, 4, 7, 8, 9, 10, 12) if is_1_0 else (1, 4, 7, 9, 10, 11, 12)

    def forward(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        """Yield each stage's weight, 1, and its features; see `StagedNetwork`."""
        x = self.normalised(x)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.stages:
                yield 1.0, x

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the distance of each pair (N,) of images of at least 21x21 pixels."""
        return self.over_stages(normalised_difference, sr, hr)


class VGG19Features(StagedNetwork):
    """VGG19's last convolution of each block, before activation (Wang et al., 2018, section 3.2).

    The stages and their weights are Real-ESRGAN's (Wang et al., 2021, section 4.1); a file that
    holds only the first layers has fewer.

    Args:
        state_dict: of `pretrained.load`.
    """

    def __init__(self, state_dict: dict[str, Tensor]):
        super().__init__(vgg19_layers(state_dict), state_dict)
        last_of_blocks = [block[-1] for block in vgg19_blocks(state_dict)]
        weights = (0.1, 0.1, 1.0, 1.0, 1.0)[: len(last_of_blocks)]
        self.stages = dict(zip(last_of_blocks, weights, strict=True))
        # The features of a distilled network shrink from stage to stage
        is_distilled = len(state_dict["conv1_1.weight"]) < 64
        self.difference = relative_difference if is_distilled else absolute_difference

    def forward(self, x: Tensor) -> Iterator[tuple[float, Tensor]]:
        """See `StagedNetwork`."""
        layers = dict(self.features.named_children())
        if "conv0" not in layers:  # it normalises, in the files that have it
            x = self.normalised(x)
        for name, layer in layers.items():
            x = layer(x)
            if name in self.stages:
                yield self.stages[name], x

    def distance(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the L1 distance of each pair (N,) of images of at least 17x17 pixels.

        The features' mean absolute difference is summed over stages, as in Real-ESRGAN. In a
        distilled network, it is relative to the features of all HR of the batch.
        """
        return self.over_stages(self.difference, sr, hr)

    def measure(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return `normalised_difference`, summed over stages with their weights (N,).

        Unlike the loss, it does not depend on the scale of a file's features.
        """
        return self.over_stages(normalised_difference, sr, hr)


PERCEPTUAL_NETWORKS: dict[str, Callable[[dict[str, Tensor]], PerceptualNetwork]] = {
    "vgg16": VGG16Features,
    "vgg19": VGG19Features,
    "squeezenet": SqueezeNetFeatures,
}

# --- regularisation -----------------------------------------------------------------------------


class TVLoss(nn.Module):
    """Total variation: the mean squared difference of neighbouring pixels, in both directions."""

    def forward(self, x: Tensor) -> Tensor:
        """Return 2/N · (Σ Δh² / (C·(H-1)·W) + Σ Δw² / (C·H·(W-1))).

        Images are (N, C, H, W) in [0, 1].
        """
        down = (x[:, :, 1:] - x[:, :, :-1]).square().mean()
        across = (x[:, :, :, 1:] - x[:, :, :, :-1]).square().mean()
        return 2 * (down + across)


def grid_loss(sr: Tensor, hr: Tensor, upscale: int) -> Tensor:
    """Return how much of SR - HR repeats every `upscale` pixels, as pixel shuffle can make it.

    The difference, less its 5x5 mean (reflected at the border), is averaged over all pixels with
    the same row and column modulo `upscale`, for each image and channel. The result is the mean
    square of these averages.

    Args:
        sr, hr: images (N, C, H, W) in [0, 1], with sides that are multiples of the scale.
    """
    difference = sr - hr
    smooth = F.avg_pool2d(F.pad(difference, (2, 2, 2, 2), "reflect"), 5, 1)
    fine = difference - smooth
    cells = fine.unflatten(3, (-1, upscale)).unflatten(2, (-1, upscale))  # (N, C, H/s, s, W/s, s)
    return cells.mean((2, 4)).square().mean()


def consistency_loss(sr: Tensor, hr: Tensor, upscale: int) -> Tensor:
    """Return the MSE between SR and HR after bicubic reduction to LR's size.

    Many HR images have the same LR, and texture is a choice among them. This term leaves that
    choice free. It penalises what LR rules out: patterns as wide as LR's pixels, lost contrast,
    changed colours (Bahat and Michaeli, 2020, section 3).

    Args:
        sr, hr: images (N, C, H, W) in [0, 1], with sides that are multiples of the scale.
    """
    return reduce_bicubic(sr - hr, upscale).square().mean()


def reduce_bicubic(image: Tensor, upscale: int) -> Tensor:
    """Reduce images by bicubic with a low-pass filter, as Pillow does, but without rounding.

    `F.interpolate(antialias=True)` gives the same, but has no gradient on MPS.

    Args:
        image: (N, C, H, W), with sides that are multiples of the scale.
        upscale: the scale.

    Returns:
        (N, C, H/upscale, W/upscale).
    """
    taps = 4 * upscale - upscale % 2
    place = torch.arange(taps, dtype=image.dtype, device=image.device) - (taps - 1) / 2
    distance = place.abs() / upscale
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    window = torch.where(distance < 1, near, far)  # Keys, 1981, with a = -0.5
    kernel = torch.outer(window, window)[None, None]

    def filtered(planes: Tensor) -> Tensor:
        return F.conv2d(planes, kernel, stride=upscale, padding=(taps - upscale) // 2)

    planes = image.flatten(0, 1).unsqueeze(1)  # (N·C, 1, H, W)
    with true_fp32(image.device):
        # At the border, the weights of the taps inside the image are scaled to a sum of 1
        reduced = filtered(planes) / filtered(torch.ones_like(planes[:1]))
    return reduced.view(*image.shape[:2], *reduced.shape[-2:])


# --- sharpening ---------------------------------------------------------------------------------


def sharpened(hr: Tensor, amount: float) -> Tensor:
    """Sharpen HR by unsharp masking, so that SR, when compared with it, becomes crisper.

    Real-ESRGAN does so too (Wang et al., 2021), with a much wider blur than this Gaussian with a
    sigma of 1.5. Where HR differs from its blur by less than 10 levels of 255, as noise does, less
    is added.

    Args:
        hr: (N, 3, H, W) in [0, 1], float32.
        amount: how much of the difference from the blur to add; 0: none.

    Returns:
        as `hr`.
    """
    if not amount:
        return hr
    detail = hr - filters.smoothed(hr, filters.gaussian(6))
    share = (detail.abs() * 255 / 10).clamp(max=1)
    return (hr + amount * share * detail).clamp(0, 1)


# --- all together -------------------------------------------------------------------------------


class GeneratorLoss(nn.Module):
    """The weighted sum of the terms above; train.py's options of the same names set the weights.

    A term whose weight is 0 is not computed.

    Args:
        network: the perceptual network; may be None if its weight is 0.
        perceptual_shift: largest random shift (a crop) of SR and HR before the perceptual network,
            in pixels. It moves the network's strides, which would otherwise leave squares on SR.
        perceptual_zoom: largest random enlargement of SR and HR after that, in steps of a quarter.
            The network hardly tells patterns of 2 to 4 pixels apart: at full size, it takes a weave
            of dots for texture.
        sharpen: how much to sharpen HR for the pixel and perceptual losses; see `sharpened`.
        pixel_loss: one of `PIXEL_LOSSES`.
        adversarial_loss: one of `ADVERSARIAL_LOSSES`.
        upscale: the scale, which is the period of the grid.

    Raises:
        ValueError: the perceptual weight is not 0, but there is no network.
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
        network: PerceptualNetwork | None = None,
        perceptual_shift: int = 0,
        perceptual_zoom: float = 1.0,
        sharpen: float = 0.0,
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
        self.perceptual_shift = perceptual_shift
        self.perceptual_zoom = perceptual_zoom
        self.sharpen = sharpen
        self.upscale = upscale
        self.offset = (0, 0)  # of the current update; see `draw_view`
        self.zoom = 1.0
        self.pixel_loss = PIXEL_LOSSES[pixel_loss]
        self.tv_loss = TVLoss()
        self.adversarial = ADVERSARIAL_LOSSES[adversarial_loss]()

    def draw_view(self, rng: np.random.Generator) -> None:
        """Draw the next update's shift and zoom before the perceptual network."""
        down, across = rng.integers(0, self.perceptual_shift + 1, 2).tolist()
        quarters = rng.integers(0, int(4 * (self.perceptual_zoom - 1)) + 1).item()
        self.offset = (down, across)
        self.zoom = 1 + quarters / 4

    def forward(
        self,
        sr: Tensor,
        hr: Tensor,
        sr_logits: Tensor | None,
        hr_logits: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total and the unweighted terms, by CSV column.

        Args:
            sr, hr: images (N, 3, H, W) in [0, 1], float32.
            sr_logits: D's logits for `sr`, of any shape; None if the adversarial weight is 0.
            hr_logits: those for `hr`; None unless `adversarial.needs_real`.
        """
        target = sharpened(hr, self.sharpen)
        weights = self.weights
        terms: dict[str, Tensor] = {}
        if weights["Loss_Pixel"]:
            terms["Loss_Pixel"] = self.pixel_loss(sr, target)
        if weights["Loss_Adversarial"]:
            assert sr_logits is not None
            terms["Loss_Adversarial"] = self.adversarial.generator_loss(hr_logits, sr_logits)
        if self.network is not None:
            distances = self.network.distance(self.viewed(sr), self.viewed(target))
            terms["Loss_Perceptual"] = distances.mean()
        if weights["Loss_TV"]:
            terms["Loss_TV"] = self.tv_loss(sr)
        if weights["Loss_Grid"]:
            terms["Loss_Grid"] = grid_loss(sr, hr, self.upscale)
        if weights["Loss_Consistency"]:
            terms["Loss_Consistency"] = consistency_loss(sr, hr, self.upscale)
        total = sr.new_zeros(())
        for name, term in terms.items():
            total = total + weights[name] * term
        return total, terms

    def viewed(self, image: Tensor) -> Tensor:
        """Return what the perceptual network sees of images (N, C, H, W): shifted, then enlarged.

        The view is smaller than the image by the largest shift, before it is enlarged.
        """
        top, left = self.offset
        height, width = (side - self.perceptual_shift for side in image.shape[-2:])
        view = image[..., top : top + height, left : left + width]
        if self.zoom == 1:
            return view
        size = [int(height * self.zoom), int(width * self.zoom)]
        return F.interpolate(view, size, mode="bicubic")
