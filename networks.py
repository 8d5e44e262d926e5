"""Every generator and discriminator by name, and the contract that each of them keeps.

To add a network, write its class, enter it here and name it in choices.py, from which train.py's
command line takes the names. Resuming, enlarging, blending and exporting all look it up in these
two tables (docs/extending.md).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from esrgan import RRDBGenerator, SmallUNetDiscriminator, UNetDiscriminator
from model import Discriminator, Generator, MultiScaleDiscriminator

# --- contracts ----------------------------------------------------------------------------------


class _Module(Protocol):
    """The methods of `nn.Module` that the project calls; a network inherits them."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class GeneratorNetwork(_Module, Protocol):
    """A generator: an `nn.Module` that enlarges images by an integer factor.

    The constructor takes `upscale` and, optionally, integers with defaults, such as `blocks`.
    Named in choices.py, each is an option of train.py: `--blocks`. It raises ValueError for values
    that it does not support.

    A generator whose bf16 results are visibly worse sets `avoid_bf16 = True`.
    """

    @property
    def upscale(self) -> int:
        """The factor."""

    @property
    def halo(self) -> int:
        """Width of the margin in LR pixels with which a tile gives the whole image's result.

        The radius of the receptive field; less where a small difference is accepted.
        """

    @property
    def architecture(self) -> dict[str, Any]:
        """What a generator file stores to rebuild the network.

        `generator`: its name in `GENERATORS`; then the constructor's arguments, `upscale` first.
        """

    def __call__(self, lr: Tensor, /) -> Tensor:
        """Map LR images (N, 3, H, W) in [-1, 1] to SR images (N, 3, upscale·H, upscale·W).

        SR is in [-1, 1], or close to it: values beyond are clipped. Any H and W from 1 on must
        work, in training and in evaluation mode. To be exported, `forward` has to be traceable by
        `torch.export` with dynamic N, H and W.
        """


class DiscriminatorNetwork(_Module, Protocol):
    """A discriminator: an `nn.Module` that tells HR from SR; its constructor needs no argument."""

    minimum_crop: int  # side of the smallest training crop that it takes, in HR pixels

    def logits(self, x: Tensor, /) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to unbounded scores, high for HR.

        They may have any shape, as long as the first dimension goes through the images in order.
        """

    def __call__(self, x: Tensor, /) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to probabilities of being HR."""


# --- names --------------------------------------------------------------------------------------

GENERATORS: dict[str, Callable[..., GeneratorNetwork]] = {
    "srresnet": Generator,
    "rrdb": RRDBGenerator,
}
DISCRIMINATORS: dict[str, type[DiscriminatorNetwork]] = {
    "vgg": Discriminator,
    "multiscale": MultiScaleDiscriminator,
    "unet": UNetDiscriminator,
    "unet-small": SmallUNetDiscriminator,
}


def empty_generator(name: str, **arguments: Any) -> GeneratorNetwork:
    """Create a generator without memory for its weights (on the meta device).

    Raises:
        ValueError: its constructor does not support these arguments.
    """
    with torch.device("meta"):
        return GENERATORS[name](**arguments)
