"""Networks of other projects, which the optional package spandrel recognises by their weights."""

import math
import textwrap
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils import cli, files

# Wider than what a pixel of SPAN, Compact and ESRGAN sees, or sees noticeably. Attention sees
# further, and the whole picture at once where it averages over it: there, no halo is exact.
_HALO = 64  # LR pixels
_WINDOW = 32  # LR pixels


class ForeignGenerator(nn.Module):
    """A network of another project, for enlarging only; see `networks.GeneratorNetwork`.

    Args:
        descriptor: what spandrel returns.
    """

    avoid_bf16 = True  # how far its results would differ is unknown

    def __init__(self, descriptor: Any):
        super().__init__()
        self.name = descriptor.architecture.name
        self.upscale = int(descriptor.scale)
        self.architecture = {"generator": self.name, "upscale": self.upscale}
        self.avoid_fp16 = not descriptor.supports_half
        # Windows and pixel unshuffle have to lie in a tile as in the whole image. Most networks
        # fill up their windows of 8 to 32 pixels themselves, and state no multiple.
        self.tile_multiple = math.lcm(_WINDOW, max(1, descriptor.size_requirements.multiple_of))
        self.halo = math.ceil(_HALO / self.tile_multiple) * self.tile_multiple
        self.network = descriptor.model  # so that it is moved with this module
        self.descriptor = descriptor

    def forward(self, lr: Tensor) -> Tensor:
        """Map LR images (N, 3, H, W) in [-1, 1] to SR images (N, 3, sH, sW) in [-1, 1].

        Sides that the network does not take are filled up by reflection, and cut off again.
        """
        return 2 * self.descriptor((lr + 1) / 2) - 1


def load(path: str | Path, loaded: Any, reason: str) -> ForeignGenerator:
    """Build the network of a weight file, on the CPU and in evaluation mode.

    Args:
        path: the file, for messages.
        loaded: its content, of `files.load_tensors`.
        reason: why it is no generator file, for messages.

    Raises:
        UserError: spandrel is not installed or does not know the network, or the network does not
            enlarge RGB images.
    """
    from utils.pretrained import import_torchvision

    try:
        import_torchvision()  # which spandrel imports
        import spandrel
    except ImportError as error:
        raise cli.UserError(
            f"{reason}; pip install spandrel, which knows many other networks"
        ) from error
    if not isinstance(loaded, dict) or _has_absurd_names(loaded):
        raise cli.UserError(reason)
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(loaded)
    except spandrel.UnsupportedModelError as error:
        raise cli.UserError(f"{reason}; spandrel does not know it either") from error
    except Exception as error:  # weights that do not fit can make it raise anything
        if cli.is_out_of_memory(error):
            raise
        problem = textwrap.shorten(cli.describe(error), 200, placeholder=" ...")
        raise cli.UserError(f"{path}: spandrel cannot build its network ({problem})") from error

    # What can be used
    name = descriptor.architecture.name
    channels = (descriptor.input_channels, descriptor.output_channels)
    if getattr(descriptor, "purpose", None) != "SR" or descriptor.scale < 2:
        raise cli.UserError(f"{path}: {name}, a network that does not enlarge")
    if channels != (3, 3):
        shown = f"{cli.counted(channels[0], 'channel')} in and {channels[1]} out"
        raise cli.UserError(f"{path}: {name} with {shown}, not the three of RGB")
    if descriptor.size_requirements.square:
        raise cli.UserError(f"{path}: {name}, a network for square images only")
    try:
        files.check_finite(descriptor.model.state_dict())
    except cli.RunError as error:
        raise cli.UserError(f"{path}: {error}") from error
    return ForeignGenerator(descriptor).eval()


def _has_absurd_names(loaded: dict[Any, Any]) -> bool:
    """Tell whether a name numbers a layer beyond all reason; spandrel would build all before it."""
    names = list(loaded)
    for value in loaded.values():
        if isinstance(value, dict):
            names += value
    parts = [part for name in names for part in str(name).split(".") if part.isdecimal()]
    return any(len(part) > 9 or int(part) > 10 * len(names) for part in parts)
