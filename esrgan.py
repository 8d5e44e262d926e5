"""ESRGAN (Wang et al., 2018, arXiv 1809.00219): its generator, and the parameter names of its released files."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it (Wang et al., 2018, figure 4)."""

    def __init__(self, features: int = 64, growth: int = 32):
        super().__init__()
        for index in range(1, 6):
            out = growth if index < 5 else features
            setattr(self, f"conv{index}", nn.Conv2d(features + (index - 1) * growth, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to features of the same shape."""
        seen = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2, inplace=True))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class RRDB(nn.Module):
    """Residual-in-residual dense block: three dense blocks and a scaled sum with their input."""

    def __init__(self, features: int = 64, growth: int = 32):
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to features of the same shape."""
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBGenerator(nn.Module):
    """The x4 generator of ESRGAN (Wang et al., 2018), with the parameter names of the released ESRGAN and Real-ESRGAN files.

    It computes in [0, 1] inside, as the released weights do, and has no bounded activation at its end.

    Raises:
        ValueError: a scale other than 4, or less than one block.
    """

    # The receptive field, about 350 LR pixels, is too wide for exact tiles. With this halo tiles are within one level of 255
    # of the whole image in fp32 and fp16; in bf16 no halo helps, since rounding differences grow from block to block.
    halo = 48
    avoid_bf16 = True  # bf16 is up to 6 levels off fp32, fp16 1

    def __init__(self, upscale: int = 4, blocks: int = 23, features: int = 64, growth: int = 32):
        super().__init__()
        if upscale != 4:
            raise ValueError(f"upscale {upscale}: the RRDB generator is for 4 only")
        if blocks < 1:
            raise ValueError(f"blocks {blocks} is less than 1")
        self.upscale = upscale
        self.architecture = {"generator": "rrdb", "upscale": 4, "blocks": blocks, "features": features, "growth": growth}
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):  # small residuals at the start (section 3.1)
                nn.init.kaiming_normal_(module.weight, a=0.2)
                module.weight.data *= 0.1
                nn.init.zeros_(module.bias)

    def forward(self, lr: Tensor) -> Tensor:
        """Map LR images (N, 3, H, W) in [-1, 1] to SR images (N, 3, 4H, 4W), [-1, 1] but for overshoots."""
        shallow = self.conv_first((lr + 1) / 2)  # (N, C, H, W)
        features = shallow + self.conv_body(self.body(shallow))
        for conv in (self.conv_up1, self.conv_up2):
            features = F.leaky_relu(conv(F.interpolate(features, scale_factor=2, mode="nearest")), 0.2)
        return 2 * self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2)) - 1  # (N, 3, 4H, 4W)


# --- released files -------------------------------------------------------------------------------------------------


def read_released(loaded: Any) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return the architecture and the state dict of a released ESRGAN x4 file's content, None where it is none.

    Old and new parameter names are understood, bare or under `params_ema`, `params` or `state_dict`.
    """
    if not isinstance(loaded, dict):
        return None
    state = next((loaded[key] for key in ("params_ema", "params", "state_dict") if isinstance(loaded.get(key), dict)), loaded)
    if "model.0.weight" in state:
        state = {_new_name(name): tensor for name, tensor in state.items()}
    first, growing = state.get("conv_first.weight"), state.get("body.0.rdb1.conv1.weight")
    if not all(isinstance(weight, Tensor) and weight.dim() == 4 for weight in (first, growing)):
        return None
    blocks = len({name.split(".")[1] for name in state if name.startswith("body.")})
    sizes = {"upscale": 4, "blocks": blocks, "features": first.shape[0], "growth": growing.shape[0]}
    return {"generator": "rrdb", **sizes}, state


def _new_name(name: str) -> str:
    """Return the name that a parameter of the first ESRGAN files has in the later ones."""
    places = {"0": "conv_first", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
    dense = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)", name)
    if dense:
        return "body.{}.rdb{}.conv{}.{}".format(*dense.groups())
    other = re.fullmatch(r"model\.(?:1\.sub\.\d+|(\d+))\.(weight|bias)", name)
    return f"{places.get(other[1], 'conv_body') if other[1] else 'conv_body'}.{other[2]}" if other else name
