"""Enlarge LR images of any size in bounded memory: the tiles give the whole image's result.

The generator comes from one file, or is a blend of two. It runs on PyTorch or on OpenVINO; the
latter needs no PyTorch, which this module therefore imports only where it is used.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from utils import cli, images, machine, openvino, weights

if TYPE_CHECKING:
    import torch

    from networks import GeneratorNetwork

SMALLEST_TILE = 16  # LR pixels
# A tile of fewer halos would be mostly halo. Even 3 cost (3 + 2)² / 3² = 2.8 times the work of
# the whole image.
_LEAST_HALOS = 3
_MEMORY_BUDGET = 4 * 2**30  # bytes; larger tiles are no faster

# --- generators ---------------------------------------------------------------------------------


def open_generator(
    path: str | Path,
    device: torch.device,
    texture_path: str | Path | None = None,
    texture: float = 0.0,
    foreign: bool = False,
) -> GeneratorNetwork:
    """Read a generator for inference on a device; BN is folded into the convolutions.

    With a second file, the result is (1 - texture)·first + texture·second, tensor by tensor and
    including the running statistics of batch normalisation (network interpolation: Wang et al.,
    2018, arXiv 1809.00219, section 3.4).

    Args:
        path: generator file.
        device: where the generator will run.
        texture_path: generator file of the same architecture, to blend with the first.
        texture: share of the second file, from 0 (exactly the first) to 1 (exactly the second).
        foreign: whether the first may be a network of another project, if it is not blended.

    Raises:
        UserError: a file does not exist, the architectures differ, or as for `generator_file.load`.
    """
    from torch import channels_last, nn

    from model import move_towards
    from utils import generator_file

    generator = _load(path, foreign and texture_path is None)
    if texture_path is not None:
        textured = _load(texture_path)
        if textured.architecture != generator.architecture:
            raise cli.UserError(
                "--texture blends only files of one architecture, but "
                f"{path} holds {generator_file.architecture_text(generator.architecture)} and "
                f"{texture_path} holds {generator_file.architecture_text(textured.architecture)}; "
                "name a pair that fits with --weights and --texture-weights"
            )
        assert isinstance(generator, nn.Module) and isinstance(textured, nn.Module)
        move_towards(generator, textured, texture)
    return prepared(generator).to(device=device, memory_format=channels_last)


def _load(path: str | Path, foreign: bool = False) -> GeneratorNetwork:
    from utils import generator_file
    from utils.foreign import ForeignGenerator

    _check_exists(path)
    generator = generator_file.load(path, foreign)
    if isinstance(generator, ForeignGenerator):
        _say_once(f"{path}: {generator.name}, x{generator.upscale}, read with spandrel")
    return generator


def _check_exists(path: str | Path) -> None:
    if not Path(path).exists():
        raise cli.UserError(
            f"{path}: no such generator file; train one with train.py, or name one in weights/: "
            f"{', '.join(weights.known())}"
        )


def prepared(generator: GeneratorNetwork) -> GeneratorNetwork:
    """Return a copy for inference: in evaluation mode, with BN folded into the convolutions."""
    from model import Generator, fold_batch_norm

    generator = copy.deepcopy(generator).eval()
    if isinstance(generator, Generator):
        return fold_batch_norm(generator)
    return generator


class Engine(Protocol):
    """A generator that is ready to enlarge, on PyTorch or on OpenVINO.

    Attributes:
        upscale: the scale.
        halo: as for `GeneratorNetwork`.
        tile_multiple: what the sides of tiles are multiples of, for networks of other projects.
        place: where it computes: `cpu`, `cuda`, `mps` or `openvino`.
        package: the package that computes.
    """

    upscale: int
    halo: int
    tile_multiple: int
    place: str
    package: str

    def precision_of(self, name: str) -> str:
        """Return fp32, bf16 or fp16; `auto` means the fastest that suits the generator."""

    def free_memory(self) -> int | None:
        """Return how many bytes it can still allocate; None if the system does not say."""

    def release_memory(self) -> None:
        """Give back memory that is only kept for the next tile."""

    def enlarge(
        self, patch: np.ndarray, rows: slice, columns: slice, precision: str
    ) -> np.ndarray | None:
        """Enlarge an image (H, W, 3) uint8 or uint16 as a whole.

        Returns:
            the rows and columns of SR, as deep as the image; None if SR is not finite.
        """


class TorchEngine:
    """A generator on PyTorch; see `Engine`."""

    package = "torch"

    def __init__(self, generator: GeneratorNetwork):
        self.generator = generator
        self.upscale = generator.upscale
        self.halo = generator.halo
        self.tile_multiple = getattr(generator, "tile_multiple", 1)
        self.device = next(generator.parameters()).device
        self.place = self.device.type

    def precision_of(self, name: str) -> str:
        """See `Engine`."""
        from utils.device import resolve_precision

        if name == "int8":
            raise cli.UserError("--precision int8 needs OpenVINO on the CPU: --backend openvino")
        return resolve_precision(name, self.device, self.generator)

    def free_memory(self) -> int | None:
        """See `Engine`."""
        from utils.device import free_memory

        return free_memory(self.device)

    def release_memory(self) -> None:
        """See `Engine`."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def enlarge(
        self, patch: np.ndarray, rows: slice, columns: slice, precision: str
    ) -> np.ndarray | None:
        """See `Engine`."""
        import torch

        from utils.device import autocast

        with torch.inference_mode(), autocast(self.device, precision):
            is_deep = patch.dtype == np.uint16
            if is_deep:
                lr = torch.from_numpy(images.array_to_signed(patch)).to(self.device)
            else:
                lr = images.uint8_to_signed(images.to_tensor(patch).to(self.device))
            sr = self.generator(lr)
            # In one pass: a NaN or an infinity anywhere spoils the sum
            if not sr.sum(dtype=torch.float32).isfinite():
                return None
            inner = sr[:, :, rows, columns]
            if is_deep:
                return images.signed_to_array(inner.float().cpu().numpy(), patch.dtype)
            return images.to_array(images.signed_to_uint8(inner))


class Ensemble:
    """An engine whose result is the mean over eight orientations of the picture.

    This is EDSR's geometric self-ensemble (Lim et al., 2017, section 3.3): PSNR rises a little, and
    the time eightfold.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.upscale = engine.upscale
        self.halo = engine.halo
        self.tile_multiple = engine.tile_multiple
        self.place = engine.place
        self.package = engine.package

    def precision_of(self, name: str) -> str:
        """See `Engine`."""
        return self.engine.precision_of(name)

    def free_memory(self) -> int | None:
        """See `Engine`."""
        return self.engine.free_memory()

    def release_memory(self) -> None:
        """See `Engine`."""
        self.engine.release_memory()

    def enlarge(
        self, patch: np.ndarray, rows: slice, columns: slice, precision: str
    ) -> np.ndarray | None:
        """See `Engine`."""
        whole = slice(None)
        height, width = (side * self.upscale for side in patch.shape[:2])
        total = np.zeros((height, width, 3), np.uint16 if patch.dtype == np.uint8 else np.uint32)
        for turns, flipped in itertools.product(range(4), (False, True)):
            turned = np.rot90(patch, turns)
            turned = np.ascontiguousarray(turned[:, ::-1] if flipped else turned)
            sr = self.engine.enlarge(turned, whole, whole, precision)
            if sr is None:
                return None
            total += np.rot90(sr[:, ::-1] if flipped else sr, -turns)
        return np.rint(total[rows, columns] / 8).astype(patch.dtype)


def open_engine(
    chosen: weights.Weights, device: str = "auto", backend: str = "auto"
) -> TorchEngine | openvino.OpenVinoEngine:
    """Read a generator and prepare it for enlarging.

    Args:
        chosen: one generator file, or two to blend.
        device: auto, cpu, cuda or mps.
        backend: auto, torch or openvino. `auto` means OpenVINO on the CPU if it is installed, else
            PyTorch.

    Raises:
        UserError: as for `open_generator`; OpenVINO cannot be used as asked for.
    """
    if backend == "auto" and device == "auto":
        device = _device_of_machine()
    if openvino.is_wanted(backend, device):
        try:
            return _open_on_openvino(chosen)
        except openvino.UnusableError as error:
            if backend == "openvino":
                raise
            _say_once(f"{error}; using PyTorch")
    return _open_on_torch(chosen, device)


def _device_of_machine() -> str:
    """Return cuda, mps or cpu; import PyTorch only where there may be a GPU."""
    if not machine.may_have_gpu():
        return "cpu"
    from utils.device import resolve_device

    return resolve_device().type  # cpu if there is a driver, but no GPU that PyTorch can use


def _open_on_torch(chosen: weights.Weights, device: str) -> TorchEngine:
    import torch

    from utils.device import resolve_device

    place = resolve_device(device)
    if place.type == "cuda":
        # Each process that torchrun or srun started on this machine takes a GPU of its own
        place = torch.device("cuda", machine.process_on_machine() % torch.cuda.device_count())
    return TorchEngine(open_generator(device=place, **vars(chosen), foreign=True))


def _open_on_openvino(chosen: weights.Weights) -> openvino.OpenVinoEngine:
    """Return an engine on OpenVINO; convert a generator file only if no earlier start has."""
    _check_exists(chosen.path)
    model = None if chosen.texture_path else openvino.kept_model(chosen.path)
    if model is None:
        import torch

        generator = open_generator(device=torch.device("cpu"), **vars(chosen), foreign=True)
        model = openvino.convert(generator)
        if not chosen.texture_path:
            openvino.keep_model(model, chosen.path)
    return openvino.OpenVinoEngine(model, None if chosen.texture_path else chosen.path)


# --- enlarging ----------------------------------------------------------------------------------


def upscale_picture(
    generator: GeneratorNetwork | Engine,
    picture: images.Picture,
    tile: int | None = None,
    precision: str = "fp32",
    progress: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
    size: tuple[int, int] | None = None,
) -> images.Picture:
    """Enlarge a decoded picture: RGB with the generator, and then alpha as a gray picture.

    Gray stays gray; profile and metadata are kept.

    Args:
        generator, tile, progress, on_tile: see `upscale`, which raises the same errors.
        picture: the picture.
        precision: as for `precision_for`.
        size: (width, height) of the result, which is resized by Lanczos; None: the generator's.
    """
    generator = _engine_of(generator)
    precision = precision_for(generator, precision, images.is_16_bit(picture))
    alpha = picture.alpha
    passes = 1 if alpha is None or alpha.min() == alpha.max() else 2

    def on_pass(number: int) -> Callable[[int, int], None] | None:
        if on_tile is None:
            return None
        return lambda done, total: on_tile(number * total + done, passes * total)

    # Colour
    rgb = picture.rgb
    if alpha is not None:
        rgb = images.fill_transparent(rgb, alpha)
    sr = upscale(generator, rgb, tile, precision, progress, on_pass(0))
    if picture.gray:
        sr = images.to_gray(sr)

    # Transparency
    if alpha is not None and passes == 1:
        alpha = np.full(sr.shape[:2], alpha.flat[0])
    elif alpha is not None:
        levels = np.repeat(alpha[:, :, None], 3, axis=2)
        gray = images.to_gray(upscale(generator, levels, tile, precision, progress, on_pass(1)))
        alpha = images.with_flat_parts_of(alpha, gray[..., 0], generator.upscale)
    result = replace(picture, rgb=sr, alpha=alpha)
    return images.resized(result, *size) if size else result


def precision_for(engine: Engine, name: str, is_deep: bool) -> str:
    """Return the precision in which to enlarge.

    Args:
        engine: the generator.
        name: auto, fp32, bf16, fp16 or int8. `auto` means fp32 for 16 bits per channel, to which
            the others round too coarsely, else the fastest that suits the generator.
        is_deep: whether a picture has 16 bits per channel.

    Raises:
        UserError: the engine cannot compute in it.
    """
    if name == "auto" and is_deep:
        return "fp32"
    return engine.precision_of(name)


def upscale(
    generator: GeneratorNetwork | Engine,
    lr: np.ndarray,
    tile: int | None = None,
    precision: str = "fp32",
    progress: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Enlarge an image with a generator in evaluation mode, where the generator is.

    Tiles overlap by the generator's halo. The result differs from that of the whole image by at
    most one of 255 levels; with SRGAN's generator, only where a kernel sums in another order.
    ESRGAN's in bf16 differs by several levels, which is why it sets `avoid_bf16`.

    Args:
        generator: of `open_engine`; or one that maps (1, 3, H, W) in [-1, 1] to (1, 3, s·H, s·W).
        lr: (H, W, 3) uint8, or uint16 for a picture of 16 bits per channel.
        tile: side of a tile in LR pixels without its halo; None: what the free memory allows; 0:
            the whole image at once. When memory runs out, the tile is halved and a line says so.
        precision: fp32, bf16 or fp16. A tile whose result is not finite is computed again in fp32.
        progress: show a bar over the tiles.
        on_tile: called after each tile with the number of finished tiles and of all tiles; an
            exception that it raises ends the work.

    Returns:
        (s·H, s·W, 3), as deep as LR.

    Raises:
        RunError: the result is not finite in fp32 either.
    """
    # Choose the tile
    engine = _engine_of(generator)
    height, width = lr.shape[:2]
    longest = max(height, width)
    if tile is None:
        tile = _tile_for_memory(engine, engine.free_memory())
        if height * width <= (tile + 2 * engine.halo) ** 2:  # no more than a tile with its halo
            tile = 0
    if tile == 0 or tile > longest:
        tile = longest
    if tile < longest:
        tile = _aligned(tile, engine)

    # Enlarge, with smaller tiles each time memory runs out
    smallest = max(SMALLEST_TILE, engine.tile_multiple)
    while True:
        try:
            return _upscale_tiles(engine, lr, tile, precision, progress, on_tile)
        except (RuntimeError, MemoryError) as error:
            if not cli.is_out_of_memory(error) or tile <= smallest:
                raise
        # Outside the except block, where the error would still hold the tensors that did not fit
        tile = _aligned(max(smallest, tile // 2), engine)
        print(f"out of memory: continuing with tiles of {tile} pixels", file=sys.stderr)
        engine.release_memory()


def _aligned(tile: int, engine: Engine) -> int:
    """Return the side of a tile rounded down to the engine's multiple, but not to zero."""
    return max(engine.tile_multiple, tile - tile % engine.tile_multiple)


def _engine_of(generator: GeneratorNetwork | Engine) -> Engine:
    if isinstance(generator, TorchEngine | openvino.OpenVinoEngine | Ensemble):
        return generator
    return TorchEngine(cast("GeneratorNetwork", generator))


def _upscale_tiles(
    engine: Engine,
    lr: np.ndarray,
    tile: int,
    precision: str,
    progress: bool,
    on_tile: Callable[[int, int], None] | None,
) -> np.ndarray:
    height, width = lr.shape[:2]
    scale = engine.upscale
    halo = engine.halo
    sr = np.empty((height * scale, width * scale, 3), lr.dtype)
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    hidden = not progress or len(corners) == 1
    bar = cli.progress_bar(corners, desc="tiles", unit="tile", disable=hidden)
    for done, (top, left) in enumerate(bar, 1):
        # Cut out the tile with its halo
        bottom = min(top + tile, height)
        right = min(left + tile, width)
        outer_top = max(top - halo, 0)
        outer_left = max(left - halo, 0)
        patch = np.ascontiguousarray(lr[outer_top : bottom + halo, outer_left : right + halo])

        # Enlarge it, and keep what lies inside the halo
        rows = slice((top - outer_top) * scale, (bottom - outer_top) * scale)
        columns = slice((left - outer_left) * scale, (right - outer_left) * scale)
        inner = _finite_result(engine, patch, rows, columns, precision)
        sr[top * scale : bottom * scale, left * scale : right * scale] = inner
        if on_tile:
            on_tile(done, len(corners))
    return sr


def _finite_result(
    engine: Engine, patch: np.ndarray, rows: slice, columns: slice, precision: str
) -> np.ndarray:
    """Return the engine's result; if it overflows in another precision, that of fp32.

    Raises:
        RunError: it is not finite in fp32 either.
    """
    for attempt in dict.fromkeys((precision, "fp32")):
        result = engine.enlarge(patch, rows, columns, attempt)
        if result is not None:
            return result
        if attempt != "fp32":
            _say_once(
                f"{attempt} produces values that are not finite; computing these tiles again in "
                "fp32 (--precision fp32 avoids the wasted attempt)"
            )
    raise cli.RunError(
        "the generator produces values that are not finite, even in fp32: its weights are damaged "
        "or diverged"
    )


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


def _tile_for_memory(engine: Engine, free_bytes: int | None) -> int:
    """Return the side of the largest tile whose activations fit the memory, in LR pixels.

    They may take half of what is free, and `_MEMORY_BUDGET` at most. The tile never becomes smaller
    than `_LEAST_HALOS` halos.
    """
    budget = float(_MEMORY_BUDGET)
    if free_bytes is not None:
        budget = min(free_bytes / 2, budget)
    # Four float32 tensors of 64 channels at the output's size
    bytes_per_pixel = 4 * 64 * 4 * engine.upscale**2
    side = int((budget / bytes_per_pixel) ** 0.5) - 2 * engine.halo
    return max(SMALLEST_TILE, _LEAST_HALOS * engine.halo, side)
