"""The networks of SRGAN (Ledig et al., 2017, arXiv 1609.04802, section 2.1 and figure 4), in the paper's order.

Images are (N, 3, H, W) in [-1, 1] everywhere in this file.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

UPSCALES = (2, 3, 4, 8)

# --- generator ------------------------------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """Residual block: conv, BN, PReLU, conv, BN, added to the input (section 2.1)."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to features of the same shape."""
        residual = self.prelu(self.bn1(self.conv1(x)))
        return x + self.bn2(self.conv2(residual))


class UpsampleBlock(nn.Module):
    """Sub-pixel convolution (Shi et al., 2016, arXiv 1609.05158): conv to factor² times the channels, pixel shuffle, PReLU."""

    def __init__(self, channels: int = 64, factor: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * factor**2, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(factor)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to (N, C, factor·H, factor·W)."""
        return self.prelu(self.pixel_shuffle(self.conv(x)))


class Generator(nn.Module):
    """SRResNet, the generator of SRGAN (section 2.1, figure 4).

    Args:
        upscale: 2, 3, 4 or 8; there is one upsampling block per factor of 2, or a single one of factor 3 for x3.
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
        self.head = nn.Sequential(nn.Conv2d(3, 64, 9, padding=4), nn.PReLU())
        self.trunk = nn.Sequential(*(ResBlock(64) for _ in range(blocks)))
        self.fusion = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64))
        self.upsample = nn.Sequential(*(UpsampleBlock(64, factor) for factor in self.factors))
        self.tail = TailConv(64, 3, 9, padding=4)  # an nn.Conv2d that is fast on a CPU
        start_as_bilinear(self)

    def forward(self, lr: Tensor) -> Tensor:
        """Map LR images (N, 3, H, W) in [-1, 1] to SR images (N, 3, upscale·H, upscale·W) in [-1, 1]."""
        shallow = self.head(lr)  # (N, 64, H, W)
        features = shallow + self.fusion(self.trunk(shallow))  # (N, 64, H, W)
        features = self.upsample(features)  # (N, 64, upscale·H, upscale·W)
        return torch.tanh(self.tail(features))  # (N, 3, upscale·H, upscale·W)

    @property
    def architecture(self) -> dict[str, str | int]:
        """What a generator file stores to rebuild the network: its kind and the constructor's arguments."""
        return {"generator": "srresnet", "upscale": self.upscale, "blocks": self.blocks}

    @property
    def halo(self) -> int:
        """Radius of the receptive field in LR pixels: a tile with this margin gives the same result as the whole image."""
        radius = 4 + 2 * self.blocks + 1  # head, trunk, fusion
        scale = 1
        for factor in self.factors:
            radius += 1 / scale
            scale *= factor
        return math.ceil(radius + 4 / scale)


# --- discriminators -------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """The discriminator of SRGAN (section 2.1, figure 4): eight convolutions with strides 1 and 2 in turn, and a head.

    The head averages over the image and uses 1x1 convolutions instead of the paper's dense layers, so it accepts images of
    any size. Batch normalisation follows every convolution but the first; `batch_norm=False` leaves it out.
    """

    minimum_crop = 32  # HR pixels in training: VGG16 sees the same crops and halves them five times

    def __init__(self, batch_norm: bool = True):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.LeakyReLU(0.2)]
        widths = [64, 64, 128, 128, 256, 256, 512, 512]
        for index in range(1, 8):
            stride = 2 if index % 2 else 1
            layers.append(nn.Conv2d(widths[index - 1], widths[index], 3, stride=stride, padding=1))
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
        """Map images (N, 3, H, W) in [-1, 1] to unbounded scores (N,), positive for "real"."""
        return self.classifier(self.features(x)).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to the probability (N,) that each is a real HR image."""
        return torch.sigmoid(self.logits(x))


class MultiScaleDiscriminator(nn.Module):
    """Three discriminators, for the image at full, half and quarter size (Wang et al., 2018, arXiv 1711.11585, section 3.2)."""

    minimum_crop = 68  # HR pixels in training: 17 at quarter size, so that BN still has 2x2 pixels after four halvings

    def __init__(self, batch_norm: bool = True):
        super().__init__()
        self.scales = nn.ModuleList(Discriminator(batch_norm) for _ in range(3))

    def logits(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to scores (3N,); a mean loss over them is the mean of the three losses."""
        scores = []
        for discriminator in self.scales:
            scores.append(discriminator.logits(x))
            x = F.avg_pool2d(x, 2)
        return torch.cat(scores)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to the probability (N,) of being real, averaged over the three sizes."""
        return torch.sigmoid(self.logits(x)).view(3, -1).mean(0)


class Logits(nn.Module):
    """A discriminator whose `forward` returns logits: DistributedDataParallel synchronises only through `forward`."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to the discriminator's logits."""
        return self.discriminator.logits(x)


# --- the generator's speed and initialisation -----------------------------------------------------------------------


class TailConv(nn.Conv2d):
    """A convolution with a wide, odd-sized kernel and few output channels, such as 9x9 to RGB, twice as fast on a CPU.

    Three output channels fill only three of a vector unit's 8 or 16 lanes. Here each column of the kernel gets its
    own output channels (27 for 9x9 to RGB), and a second convolution, whose kernel is mostly zero, shifts and adds them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to (N, out, H, W), as `nn.Conv2d` with `padding` k//2 does, up to rounding."""
        if x.device.type != "cpu":
            return super().forward(x)
        out, channels, height, width = self.weight.shape
        columns = self.weight.permute(3, 0, 1, 2).reshape(width * out, channels, height, 1)
        places = (
            torch.eye(width * out, dtype=x.dtype)
            .view(width, out, 1, width * out)
            .permute(1, 3, 2, 0)
        )
        partial = F.conv2d(x, columns, padding=(height // 2, 0))  # (N, width·out, H, W)
        return F.conv2d(partial, places, self.bias, padding=(0, width // 2))


@torch.no_grad()
def start_as_bilinear(generator: Generator) -> None:
    """Initialise a generator to enlarge bilinearly (before its tanh), so that it has to learn only the rest.

    Residual branches start at zero (Goyal et al., 2017, arXiv 1706.02677, section 5.1). Channels 0-2
    carry the colours and channels 3-5 their negatives: PReLU(c) - PReLU(-c) = 1.25 c at PReLU's initial slope of 0.25. All
    other filters keep PyTorch's initialisation.
    """
    for norm in [*(block.bn2 for block in generator.trunk), generator.fusion[1]]:
        nn.init.zeros_(norm.weight)
    colours = torch.cat([torch.eye(3), -torch.eye(3)])  # (6, 3)
    recovered = colours.T / 1.25  # (3, 6)
    head = generator.head[0]
    head.weight[:6], head.bias[:6] = 0, 0
    head.weight[:6, :, 4, 4] = colours
    for block, factor in zip(generator.upsample, generator.factors):
        offsets = (torch.arange(factor) + 0.5) / factor - 0.5
        triangle = (1 - (offsets[:, None] - torch.tensor([-1, 0, 1])).abs()).clamp(
            min=0
        )  # (factor, 3)
        taps = torch.einsum("ay,bx->abyx", triangle, triangle).flatten(0, 1)  # (factor², 3, 3)
        weight, bias = (
            tensor.unflatten(0, (-1, factor**2)) for tensor in (block.conv.weight, block.conv.bias)
        )
        weight[:6], bias[:6] = 0, 0
        weight[:6, :, :6] = torch.einsum("oi,kyx->okiyx", colours @ recovered, taps)
    nn.init.zeros_(generator.tail.weight)
    nn.init.zeros_(generator.tail.bias)
    generator.tail.weight[:, :6, 4, 4] = recovered


def fold_batch_norm(generator: Generator) -> Generator:
    """Merge every batch normalisation into the convolution before it, in place and for inference only; return `generator`."""
    for block in generator.trunk:
        block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
    generator.fusion = nn.Sequential(fuse_conv_bn_eval(*generator.fusion))
    return generator


@torch.no_grad()
def move_towards(averaged: nn.Module, network: nn.Module, weight: float) -> None:
    """Move a network's parameters and batch statistics towards another's by `weight`, from 0 (stay) to 1 (copy)."""
    ours, theirs = ([*net.parameters(), *net.buffers()] for net in (averaged, network))
    floats = [mine.is_floating_point() for mine in ours]
    torch._foreach_lerp_(
        *([t for t, f in zip(tensors, floats) if f] for tensors in (ours, theirs)), weight
    )
    for mine, its, is_float in zip(ours, theirs, floats):
        if not is_float:  # BN's count of batches
            mine.copy_(its)
