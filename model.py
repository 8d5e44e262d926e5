"""The networks of SRGAN (Ledig et al., 2017, arXiv 1609.04802, section 2.1 and figure 4).

They come in the paper's order. Images are (N, 3, H, W) in [-1, 1] everywhere in this file.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.fusion import fuse_conv_bn_eval

from choices import UPSCALES

# --- generator ----------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """Residual block: conv, BN, PReLU, conv, BN, added to the input (section 2.1)."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = PReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to features of the same shape."""
        residual = self.prelu(self.bn1(self.conv1(x)))
        return x + self.bn2(self.conv2(residual))


class UpsampleBlock(nn.Module):
    """Sub-pixel convolution (Shi et al., 2016, arXiv 1609.05158): conv, pixel shuffle, PReLU."""

    def __init__(self, channels: int = 64, factor: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * factor**2, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(factor)
        self.prelu = PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to (N, C, factor·H, factor·W)."""
        if is_trained_on_cpu(self, x):
            return self.prelu(convolve_and_shuffle(x, self.conv, self.pixel_shuffle.upscale_factor))
        return self.prelu(self.pixel_shuffle(self.conv(x)))

    @torch.no_grad()
    def even_out_phases(self, amount: float = 1.0) -> None:
        """Let constant features give all factor² pixels that come from one pixel the same value.

        Otherwise, the pixel shuffle can print a regular pattern on smooth areas (Sugawara et al.,
        2018, arXiv 1806.02658).

        Args:
            amount: how far to move the weights, from 0 to 1 (all the way).
        """
        assert self.conv.bias is not None
        phases = self.pixel_shuffle.upscale_factor**2
        weight = self.conv.weight.unflatten(0, (-1, phases))  # (channels, phases, channels, 3, 3)
        response = weight.sum((3, 4), keepdim=True)
        excess = response - response.mean(1, keepdim=True)
        weight -= amount * excess / weight[0, 0, 0].numel()
        bias = self.conv.bias.unflatten(0, (-1, phases))
        bias -= amount * (bias - bias.mean(1, keepdim=True))


class Generator(nn.Module):
    """SRResNet, the generator of SRGAN (section 2.1, figure 4).

    Args:
        upscale: 2, 4 or 8, with one upsampling block per factor of 2; 3, with one of factor 3; or
            1, with none, to remove noise and compression only.
        blocks: number of residual blocks (16 in the paper).

    Raises:
        ValueError: `upscale` has another value, or `blocks` is less than 1.
    """

    def __init__(self, upscale: int = 4, blocks: int = 8):
        super().__init__()
        if upscale not in UPSCALES:
            raise ValueError(f"upscale {upscale} is not one of {', '.join(map(str, UPSCALES))}")
        if blocks < 1:
            raise ValueError(f"blocks {blocks} is less than 1")
        self.upscale = upscale
        self.blocks = blocks
        self.factors = [3] if upscale == 3 else [2] * int(math.log2(upscale))
        self.head = nn.Sequential(nn.Conv2d(3, 64, 9, padding=4), PReLU())
        self.trunk = nn.Sequential(*(ResBlock(64) for _ in range(blocks)))
        self.fusion = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64))
        self.upsample = nn.Sequential(*(UpsampleBlock(64, factor) for factor in self.factors))
        self.tail = TailConv(64, 3, 9, padding=4)  # an nn.Conv2d that is fast on a CPU
        start_as_bilinear(self)

    def forward(self, lr: Tensor) -> Tensor:
        """Map LR images (N, 3, H, W) in [-1, 1] to SR images (N, 3, upscale·H, upscale·W)."""
        shallow = self.head(lr)  # (N, 64, H, W)
        features = shallow + self.fusion(self.trunk(shallow))  # (N, 64, H, W)
        features = self.upsample(features)  # (N, 64, upscale·H, upscale·W)
        return torch.tanh(self.tail(features))  # (N, 3, upscale·H, upscale·W)

    @property
    def architecture(self) -> dict[str, Any]:
        """What a generator file stores to rebuild the network."""
        return {"generator": "srresnet", "upscale": self.upscale, "blocks": self.blocks}

    @property
    def halo(self) -> int:
        """Radius of the receptive field in LR pixels: tiles with this margin are exact."""
        radius = 4.0 + 2 * self.blocks + 1  # head, trunk, fusion
        scale = 1
        for factor in self.factors:
            radius += 1 / scale
            scale *= factor
        return math.ceil(radius + 4 / scale)


# --- discriminators -----------------------------------------------------------------------------


class Discriminator(nn.Module):
    """SRGAN's discriminator (section 2.1, figure 4): eight convolutions and a head.

    The strides are 1 and 2 in turn. The head averages over the image and uses 1x1 convolutions
    instead of the paper's dense layers, so images of any size are accepted.

    Args:
        batch_norm: normalise after every convolution except the first.
    """

    minimum_crop = 32  # HR pixels in training: VGG16 sees the same crops and halves them five times

    def __init__(self, batch_norm: bool = True):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.LeakyReLU(0.2)]
        widths = [64, 64, 128, 128, 256, 256, 512, 512]
        for index in range(1, 8):
            stride = 2 if index % 2 else 1
            conv = nn.Conv2d(widths[index - 1], widths[index], 3, stride=stride, padding=1)
            layers.append(conv)
            if batch_norm:
                layers.append(nn.BatchNorm2d(widths[index]))
            layers.append(nn.LeakyReLU(0.2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(512, 1024, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(1024, 1, 1),
        )

    def logits(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to unbounded scores (N,), positive for "real"."""
        return self.classifier(self.features(x)).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the probability (N,) that each is a real HR image."""
        return torch.sigmoid(self.logits(x))


class MultiScaleDiscriminator(nn.Module):
    """Discriminators at full, half and quarter size (Wang et al., 2018, arXiv 1711.11585, 3.2).

    Args:
        batch_norm: as for `Discriminator`.
    """

    minimum_crop = 68  # HR pixels; 17 at quarter size leave BN 2x2 pixels after four halvings

    def __init__(self, batch_norm: bool = True):
        super().__init__()
        self.scales = nn.ModuleList(Discriminator(batch_norm) for _ in range(3))

    def logits(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to scores (3N,), three per image; a mean weighs sizes equally."""
        scores = []
        for discriminator in self.scales:
            assert isinstance(discriminator, Discriminator)
            scores.append(discriminator.logits(x))
            x = F.avg_pool2d(x, 2)
        return torch.stack(scores, 1).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the probability (N,) of being real, averaged over sizes."""
        return torch.sigmoid(self.logits(x)).view(-1, 3).mean(1)


class Logits(nn.Module):
    """A discriminator whose `forward` returns logits.

    DistributedDataParallel averages gradients only for what goes through `forward`.
    """

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the discriminator's logits."""
        logits: Tensor = self.discriminator.logits(x)  # type: ignore[operator]
        return logits


# --- the generator's speed and initialisation ---------------------------------------------------


class TailConv(nn.Conv2d):
    """A wide convolution to few channels, such as 9x9 to RGB, that is twice as fast on a CPU.

    Three output channels fill only three of a vector unit's 8 or 16 lanes. Here each column of the
    kernel gets output channels of its own (27 for 9x9 to RGB), and a second convolution, whose
    kernel is mostly zero, shifts and adds them. The kernel's sides must be odd.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to (N, out, H, W): `nn.Conv2d` with `padding` k//2."""
        if x.device.type != "cpu":
            return super().forward(x)
        out, channels, height, width = self.weight.shape
        columns = self.weight.permute(3, 0, 1, 2).reshape(width * out, channels, height, 1)
        places = torch.eye(width * out, dtype=x.dtype).view(width, out, 1, width * out)
        places = places.permute(1, 3, 2, 0)  # (out, width·out, 1, width)
        partial = F.conv2d(x, columns, padding=(height // 2, 0))  # (N, width·out, H, W)
        return F.conv2d(partial, places, self.bias, padding=(0, width // 2))


class PReLU(nn.PReLU):
    """`nn.PReLU` with one slope, and a faster gradient on a CPU."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to one of the same shape."""
        if not is_trained_on_cpu(self, x):
            return super().forward(x)
        return _Rectify.apply(x, self.weight)


class _Rectify(torch.autograd.Function):
    """PReLU by way of leaky ReLU, which PyTorch vectorises on a CPU; differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        ctx.rounded = slope.to(x.dtype).item()  # as autocast rounds it for `nn.PReLU`
        return F.leaky_relu(x, ctx.rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        gradient_x = torch.ops.aten.leaky_relu_backward(gradient, x, ctx.rounded, False)
        gradient_slope = (gradient * x.clamp(max=0)).sum(dtype=slope.dtype)
        return gradient_x, gradient_slope.view_as(slope)


def convolve_and_shuffle(x: Tensor, conv: nn.Conv2d, factor: int) -> Tensor:
    """Map features (N, C, H, W) to (N, C, factor·H, factor·W), as a conv and a pixel shuffle do.

    `nn.PixelShuffle` moves one value at a time, because the channels of one output pixel lie
    factor² apart. Here the convolution computes them side by side.
    """
    assert conv.bias is not None
    weight = conv.weight.unflatten(0, (-1, factor**2)).transpose(0, 1).flatten(0, 1)
    bias = conv.bias.unflatten(0, (-1, factor**2)).T.flatten()
    features = F.conv2d(x, weight, bias, padding=conv.padding)
    features = features.permute(0, 2, 3, 1)  # (N, H, W, factor²·C)
    rows = features.unflatten(3, (factor, -1)).transpose(2, 3)  # (N, H, factor, W, factor·C)
    shuffled = rows.flatten(1, 2).unflatten(3, (factor, -1)).flatten(2, 3)
    return shuffled.permute(0, 3, 1, 2)


def is_trained_on_cpu(layer: nn.Module, x: Tensor) -> bool:
    """Tell whether to use the operations that train faster: in training, on a CPU, uncompiled."""
    return layer.training and x.device.type == "cpu" and not torch.compiler.is_compiling()


@torch.no_grad()
def start_as_bilinear(generator: Generator) -> None:
    """Initialise a generator to enlarge bilinearly, up to its tanh; it learns only the rest.

    Residual branches start at zero (Goyal et al., 2017, arXiv 1706.02677, section 5.1). Channels
    0-2 carry the colours and channels 3-5 their negatives, since PReLU(c) - PReLU(-c) = 1.25 c at
    PReLU's initial slope of 0.25. All other filters keep PyTorch's initialisation.
    """
    # Residual branches
    for block in generator.trunk:
        assert isinstance(block, ResBlock)
        nn.init.zeros_(block.bn2.weight)
    norm = generator.fusion[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)

    # Head: colours and their negatives
    colours = torch.cat([torch.eye(3), -torch.eye(3)])  # (6, 3)
    recovered = colours.T / 1.25  # (3, 6)
    head = generator.head[0]
    assert isinstance(head, nn.Conv2d) and head.bias is not None
    head.weight[:6] = 0
    head.weight[:6, :, 4, 4] = colours
    head.bias[:6] = 0

    # Upsampling: bilinear interpolation of these six channels
    for block, factor in zip(generator.upsample, generator.factors):
        assert isinstance(block, UpsampleBlock) and block.conv.bias is not None
        offsets = (torch.arange(factor) + 0.5) / factor - 0.5
        distances = (offsets[:, None] - torch.tensor([-1, 0, 1])).abs()
        triangle = (1 - distances).clamp(min=0)  # (factor, 3)
        taps = torch.einsum("ay,bx->abyx", triangle, triangle).flatten(0, 1)  # (factor², 3, 3)
        weight = block.conv.weight.unflatten(0, (-1, factor**2))
        weight[:6] = 0
        weight[:6, :, :6] = torch.einsum("oi,kyx->okiyx", colours @ recovered, taps)
        block.conv.bias.unflatten(0, (-1, factor**2))[:6] = 0

    # Tail: back to RGB
    nn.init.zeros_(generator.tail.weight)
    generator.tail.weight[:, :6, 4, 4] = recovered
    assert generator.tail.bias is not None
    nn.init.zeros_(generator.tail.bias)


def fold_batch_norm(generator: Generator) -> Generator:
    """Merge each batch normalisation into the convolution before it, for inference; in place."""
    for block in generator.trunk:
        assert isinstance(block, ResBlock)
        block.conv1 = fuse_conv_bn_eval(block.conv1, block.bn1)
        block.bn1 = nn.Identity()  # type: ignore[assignment]  # same interface
        block.conv2 = fuse_conv_bn_eval(block.conv2, block.bn2)
        block.bn2 = nn.Identity()  # type: ignore[assignment]
    generator.fusion = nn.Sequential(fuse_conv_bn_eval(*generator.fusion))
    return generator


@torch.no_grad()
def move_towards(averaged: nn.Module, network: nn.Module, weight: float) -> None:
    """Move parameters and batch statistics towards another network's by `weight` (1: copy)."""
    ours = [*averaged.parameters(), *averaged.buffers()]
    theirs = [*network.parameters(), *network.buffers()]
    torch._foreach_lerp_(
        [tensor for tensor in ours if tensor.is_floating_point()],
        [tensor for tensor in theirs if tensor.is_floating_point()],
        weight,
    )
    counts = [tensor for tensor in ours if not tensor.is_floating_point()]  # BN's, of batches
    if counts:
        torch._foreach_copy_(counts, [x for x in theirs if not x.is_floating_point()])
