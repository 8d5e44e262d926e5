"""Enlarge LR images of any size in bounded memory, with tiles that give the same result as the whole image.

The generator comes from one file, or is a blend of two.
"""

import copy
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model import Generator, fold_batch_norm, move_towards
from utils import cli, generator_file, images, weights
from utils.device import autocast, free_memory

SMALLEST_TILE = 16  # LR pixels
_LEAST_HALOS = 3  # a smaller tile would be mostly halo: even this one costs (3 + 2)² / 3² = 2.8 times the whole image's work
_MEMORY_BUDGET = 4 * 2**30  # bytes; larger tiles are no faster

# --- generators ---------------------------------------------------------------------------------------------------


def open_generator(
    path: str | Path,
    device: torch.device,
    texture_path: str | Path | None = None,
    texture: float = 0.0,
) -> nn.Module:
    """Read a generator for inference on a device, with batch normalisation folded into the convolutions.

    With a second file, the result is (1 - texture)·first + texture·second, tensor by tensor and with the running statistics
    of batch normalisation (network interpolation: Wang et al., 2018, arXiv 1809.00219, section 3.4). BN's counts of batches,
    which inference does not use, are those of the second file.

    Args:
        path: generator file.
        device: where the generator will run.
        texture_path: generator file of the same architecture, to blend with the first.
        texture: fraction of the second file, from 0 (exactly the first) to 1 (exactly the second).

    Raises:
        UserError: a file does not exist, the architectures differ, or as for `generator_file.load`.
    """
    generator = _load(path)
    if texture_path is not None:
        textured = _load(texture_path)
        if textured.architecture != generator.architecture:
            ours, theirs = (
                generator_file.listed(network.architecture) for network in (generator, textured)
            )
            raise cli.UserError(
                f"--texture blends only files of one architecture, but {path} holds {ours} and {texture_path} holds {theirs}; "
                "name a pair that fits with --weights and --texture-weights"
            )
        move_towards(generator, textured, texture)
    return prepared(generator).to(device=device, memory_format=torch.channels_last)


def _load(path: str | Path) -> nn.Module:
    if not Path(path).exists():
        raise cli.UserError(
            f"{path}: no such generator file; train one with train.py, or name one in weights/: {', '.join(weights.known())}"
        )
    return generator_file.load(path)


def prepared(generator: nn.Module) -> nn.Module:
    """Return a copy of a generator for inference: in evaluation mode, with batch normalisation folded into the convolutions."""
    generator = copy.deepcopy(generator).eval()
    return fold_batch_norm(generator) if isinstance(generator, Generator) else generator


# --- enlarging ----------------------------------------------------------------------------------------------------


def upscale(
    generator: nn.Module,
    lr: np.ndarray,
    tile: int | None = None,
    precision: str = "fp32",
    progress: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Enlarge an image with a generator in evaluation mode, on the generator's device.

    Tiles overlap by the generator's halo. The result differs from that of the whole image by at most one of 255 levels; with
    SRGAN's generator, only where a kernel sums in another order. ESRGAN's in bf16 differs by several (see `avoid_bf16`).

    Args:
        generator: maps (1, 3, H, W) in [-1, 1] to (1, 3, s·H, s·W); has `upscale` and `halo`.
        lr: (H, W, 3) uint8.
        tile: side of a tile in LR pixels without its halo; None: what the free memory allows; 0: the whole image at once.
            When memory runs out, the tile is halved and a line says so.
        precision: fp32, bf16 or fp16; a tile whose result is not finite is computed again in fp32.
        progress: show a bar over the tiles.
        on_tile: called after each tile with the number of finished tiles and that of all; what it raises ends the work.

    Returns:
        (s·H, s·W, 3) uint8.

    Raises:
        RunError: the result is not finite in fp32 either.
    """
    device = next(generator.parameters()).device
    height, width = lr.shape[:2]
    if tile is None:
        tile = _tile_for_memory(generator, free_memory(device))
        if (
            height * width <= (tile + 2 * generator.halo) ** 2
        ):  # no more pixels than a tile with its halo
            tile = 0
    tile = min(tile or max(height, width), max(height, width))
    while True:
        try:
            return _upscale_tiles(generator, lr, tile, device, precision, progress, on_tile)
        except (RuntimeError, MemoryError) as error:
            if not cli.is_out_of_memory(error) or tile <= SMALLEST_TILE:
                raise
        tile = max(SMALLEST_TILE, tile // 2)
        print(f"out of memory: continuing with tiles of {tile} pixels", file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def upscale_picture(
    generator: nn.Module,
    picture: images.Picture,
    tile: int | None = None,
    precision: str = "fp32",
    progress: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
) -> images.Picture:
    """Enlarge a decoded picture: RGB with the generator, alpha with bicubic. Gray stays gray; profile and metadata are kept.

    Arguments and errors are those of `upscale`.
    """
    rgb = (
        picture.rgb
        if picture.alpha is None
        else images.fill_transparent(picture.rgb, picture.alpha)
    )
    sr = upscale(generator, rgb, tile, precision, progress, on_tile)
    if picture.gray:
        sr = images.to_gray(sr)
    alpha = (
        None if picture.alpha is None else images.upscale_bicubic(picture.alpha, generator.upscale)
    )
    return replace(picture, rgb=sr, alpha=alpha)


@torch.inference_mode()
def _upscale_tiles(generator, lr, tile, device, precision, progress, on_tile) -> np.ndarray:
    height, width = lr.shape[:2]
    scale, halo = generator.upscale, generator.halo
    sr = np.empty((height * scale, width * scale, 3), np.uint8)
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    bar = cli.progress_bar(
        corners, desc="tiles", unit="tile", disable=not progress or len(corners) == 1
    )
    for done, (top, left) in enumerate(bar, 1):
        bottom, right = min(top + tile, height), min(left + tile, width)
        outer_top, outer_left = max(top - halo, 0), max(left - halo, 0)
        patch = np.ascontiguousarray(lr[outer_top : bottom + halo, outer_left : right + halo])
        result = _finite_result(
            generator, images.uint8_to_signed(images.to_tensor(patch).to(device)), precision
        )
        inner = result[
            :,
            :,
            (top - outer_top) * scale : (bottom - outer_top) * scale,
            (left - outer_left) * scale : (right - outer_left) * scale,
        ]
        sr[top * scale : bottom * scale, left * scale : right * scale] = images.to_array(
            images.signed_to_uint8(inner)
        )
        if on_tile:
            on_tile(done, len(corners))
    return sr


def _finite_result(generator: nn.Module, lr: Tensor, precision: str) -> Tensor:
    """Return the generator's result, from fp32 if the requested precision overflows; raise RunError if fp32 overflows too."""
    for attempt in dict.fromkeys((precision, "fp32")):
        with autocast(lr.device, attempt):
            result = generator(lr)
        if result.sum(
            dtype=torch.float32
        ).isfinite():  # in one pass: a NaN or an infinity spoils the sum
            return result
        if attempt != "fp32":
            advice = "--precision fp32 avoids the wasted attempt"
            _say_once(
                f"{attempt} gives values that are not finite; computing these tiles again in fp32 ({advice})"
            )
    raise cli.RunError(
        "the generator gives values that are not finite, even in fp32: its weights are damaged or diverged"
    )


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


def _tile_for_memory(generator: nn.Module, free_bytes: int | None) -> int:
    """Return the side of the largest tile whose activations fit half the free memory and the budget; at least a few halos."""
    budget = _MEMORY_BUDGET if free_bytes is None else min(free_bytes / 2, _MEMORY_BUDGET)
    bytes_per_pixel = (
        64 * 4 * generator.upscale**2 * 4
    )  # four float32 tensors of 64 channels at the output's size
    side = int((budget / bytes_per_pixel) ** 0.5) - 2 * generator.halo
    return max(SMALLEST_TILE, _LEAST_HALOS * generator.halo, side)
