"""ESRGAN's networks (Wang et al., 2018, arXiv 1809.00219) and the names in its released files."""

import re
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

# --- generator ----------------------------------------------------------------------------------


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each fed the input and all earlier outputs (section 3.1, figure 4)."""

    def __init__(self, features: int = 64, growth: int = 32):
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to features of the same shape."""
        seen = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2, inplace=True))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class RRDB(nn.Module):
    """Residual-in-residual dense block: three dense blocks (section 3.1, figure 4)."""

    def __init__(self, features: int = 64, growth: int = 32):
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to features of the same shape."""
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBGenerator(nn.Module):
    """ESRGAN's x4 generator, with the parameter names of the released Real-ESRGAN files.

    Internally it computes in [0, 1], as the released weights do; its output is not bounded.

    Args:
        upscale: must be 4.
        blocks: number of RRDBs (23 in the paper).
        features: channels between the blocks.
        growth: channels that each convolution of a dense block adds.

    Raises:
        ValueError: `upscale` is not 4, or another argument is below 1.
    """

    # The receptive field, about 350 LR pixels, is too wide for exact tiles. With this halo, tiles
    # are within one of 255 levels of the whole image in fp32 and fp16; in bf16 no halo helps,
    # because rounding differences grow from block to block.
    halo = 48
    avoid_bf16 = True  # bf16 differs from fp32 by up to 6 levels, fp16 by 1

    def __init__(self, upscale: int = 4, blocks: int = 23, features: int = 64, growth: int = 32):
        super().__init__()
        if upscale != 4:
            raise ValueError(f"upscale {upscale}: the RRDB generator supports only 4")
        if min(blocks, features, growth) < 1:
            raise ValueError(
                f"blocks {blocks}, features {features}, growth {growth}: each must be at least 1"
            )
        self.upscale = upscale
        self.architecture: dict[str, Any] = {
            "generator": "rrdb",
            "upscale": upscale,
            "blocks": blocks,
            "features": features,
            "growth": growth,
        }
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        for conv in self.body.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                nn.init.kaiming_normal_(conv.weight, a=0.2)
                conv.weight.data *= 0.1  # small initial residuals (section 3.1)
                nn.init.zeros_(conv.bias)

    def forward(self, lr: Tensor) -> Tensor:
        """Map LR images (N, 3, H, W) in [-1, 1] to SR images (N, 3, 4H, 4W) in about [-1, 1]."""
        shallow = self.conv_first((lr + 1) / 2)  # (N, C, H, W)
        features = shallow + self.conv_body(self.body(shallow))
        for conv in (self.conv_up1, self.conv_up2):
            enlarged = F.interpolate(features, scale_factor=2, mode="nearest")
            features = F.leaky_relu(conv(enlarged), 0.2)
        unit = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))  # (N, 3, 4H, 4W)
        return 2 * unit - 1


# --- discriminator ------------------------------------------------------------------------------


class SpectralConv(nn.Conv2d):
    """A convolution whose weight is spectrally normalised in fp32, whatever the precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) as `nn.Conv2d` does."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight  # reading it makes one step of the power iteration
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class UNetDiscriminator(nn.Module):
    """Real-ESRGAN's discriminator (Wang et al., 2021, arXiv 2107.10833, section 3.3).

    A U-Net that judges every pixel: three halvings and three bilinear doublings with skip
    connections. Spectral normalisation (Miyato et al., 2018) is on all convolutions except the
    first and the last.

    Args:
        features: channels at full size.
    """

    minimum_crop = 32  # HR pixels in training

    def __init__(self, features: int = 64):
        super().__init__()
        widths = [features, 2 * features, 4 * features, 8 * features]
        self.first = nn.Conv2d(3, features, 3, padding=1)
        self.down = nn.ModuleList(self._conv(*pair, 4, stride=2) for pair in pairwise(widths))
        self.up = nn.ModuleList(self._conv(*pair, 3) for pair in pairwise(widths[::-1]))
        self.last = nn.Sequential(
            self._conv(features, features, 3),
            nn.LeakyReLU(0.2),
            self._conv(features, features, 3),
            nn.LeakyReLU(0.2),
            nn.Conv2d(features, 1, 3, padding=1),
        )

    @staticmethod
    def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Module:
        return spectral_norm(SpectralConv(inputs, outputs, side, stride, padding=1, bias=False))

    def logits(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to unbounded scores (N, 1, H, W), high for "real"."""
        seen = [F.leaky_relu(self.first(x), 0.2)]
        for conv in self.down:
            seen.append(F.leaky_relu(conv(seen[-1]), 0.2))
        x = seen.pop()  # (N, 8C, H/8, W/8)
        for conv in self.up:
            skip = seen.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear")
            x = F.leaky_relu(conv(x), 0.2) + skip
        return self.last(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to each pixel's probability (N, 1, H, W) of HR."""
        return torch.sigmoid(self.logits(x))


class SmallUNetDiscriminator(UNetDiscriminator):
    """`UNetDiscriminator` with half its channels: a quarter of the operations, as for a CPU."""

    def __init__(self) -> None:
        super().__init__(features=32)


# --- released files -----------------------------------------------------------------------------

_RELEASED_NAMES = (  # each pattern and its replacement in our networks
    (r"^module\.", ""),  # saved from DataParallel
    # ESRGAN's first release: places in nested nn.Sequential
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(?=weight|bias)", "conv_body."),
    (r"^model\.0\.", "conv_first."),
    (r"^model\.3\.", "conv_up1."),
    (r"^model\.6\.", "conv_up2."),
    (r"^model\.8\.", "conv_hr."),
    (r"^model\.10\.", "conv_last."),
    # ESRGAN's current repository, BSRGAN and RealSR
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv([12])\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)


def read_released(loaded: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the architecture and the state dict in an ESRGAN x4 file's content, else None.

    Understands the parameter names of ESRGAN's first release, of its current repository (also
    BSRGAN and RealSR) and of Real-ESRGAN, with or without `module.`, at the top level or under
    `params_ema`, `params` or `state_dict`. The values are not checked.
    """
    if not isinstance(loaded, dict):
        return None
    state = loaded
    for key in ("params_ema", "params", "state_dict"):
        if isinstance(loaded.get(key), dict):
            state = loaded[key]
            break
    if not all(isinstance(name, str) for name in state):
        return None
    state = {_our_name(name): tensor for name, tensor in state.items()}
    first: Any = state.get("conv_first.weight")
    growing: Any = state.get("body.0.rdb1.conv1.weight")
    if not (_is_kernel(first) and _is_kernel(growing)):
        return None
    architecture = {
        "generator": "rrdb",
        "upscale": 4,
        "blocks": len({name.split(".")[1] for name in state if name.startswith("body.")}),
        "features": first.shape[0],
        "growth": growing.shape[0],
    }
    return architecture, state


def _is_kernel(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _our_name(name: str) -> str:
    for pattern, ours in _RELEASED_NAMES:
        name = re.sub(pattern, ours, name)
    return name
