"""LR image to SR image, of any size, in tiles that give the whole image's result."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import Generator, fold_batch_norm
from utils import checkpoint, cli, images
from utils.device import autocast

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
WEIGHTS = WEIGHTS_FOLDER / "srresnet_x4.pth"  # what the scripts use unless told otherwise
SMALLEST_TILE = 16
_MEMORY_BUDGET = 4 * 2**30  # bytes; larger tiles are no faster


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`, which every script that enlarges has."""
    names = ", ".join(sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.pth")))
    parser.add_argument(
        "--weights", type=weights_file, default=WEIGHTS, metavar="NAME_OR_FILE",
        help=f"generator file, or the name of one in weights/: {names} (default: {WEIGHTS.stem})",
    )  # fmt: skip


def weights_file(name: str) -> Path:
    """Return the path of a generator file that is named by its path, or in weights/ by its stem."""
    known = WEIGHTS_FOLDER / f"{name}.pth"
    return known if not Path(name).exists() and known.exists() else Path(name)


def open_generator(path: str | Path, device: torch.device) -> nn.Module:
    """Read a generator file for inference on a device, batch normalisation folded; raises as `checkpoint.load_generator`."""
    if not Path(path).exists():
        raise cli.UserError(f"{path}: no such generator file; train one by train.py and name it by --weights")
    generator = checkpoint.load_generator(path)
    if isinstance(generator, Generator):
        fold_batch_norm(generator)
    return generator.to(device=device, memory_format=torch.channels_last)


def upscale(
    generator: nn.Module, lr: np.ndarray, tile: int | None = None, precision: str = "fp32", progress: bool = False
) -> np.ndarray:
    """Enlarge an image by a generator that is in evaluation mode, on the device that it is on.

    Args:
        generator: maps (1, 3, H, W) in [-1, 1] to (1, 3, s·H, s·W); has `upscale` and `halo`.
        lr: (H, W, 3) uint8.
        tile: side of a tile in LR pixels without its halo; None: as the free memory allows; 0: the whole image at once.
            When memory runs out the tile is halved, and said so.
        precision: fp32, bf16 or fp16.
        progress: show a bar over the tiles.

    Returns:
        (s·H, s·W, 3) uint8.
    """
    device = next(generator.parameters()).device
    height, width = lr.shape[:2]
    if tile is None:
        tile = _tile_for_memory(generator, device)
    tile = min(tile or max(height, width), max(height, width))
    while True:
        try:
            return _upscale_tiles(generator, lr, tile, device, precision, progress)
        except (RuntimeError, MemoryError) as error:
            if not cli.is_out_of_memory(error) or tile <= SMALLEST_TILE:
                raise
        tile = max(SMALLEST_TILE, tile // 2)
        print(f"out of memory: going on with tiles of {tile}", file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def _upscale_tiles(generator, lr, tile, device, precision, progress) -> np.ndarray:
    height, width = lr.shape[:2]
    scale, halo = generator.upscale, generator.halo
    sr = np.empty((height * scale, width * scale, 3), np.uint8)
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    for top, left in cli.progress_bar(corners, desc="tiles", unit="tile", disable=not progress or len(corners) == 1):
        bottom, right = min(top + tile, height), min(left + tile, width)
        outer_top, outer_left = max(top - halo, 0), max(left - halo, 0)
        patch = np.ascontiguousarray(lr[outer_top : bottom + halo, outer_left : right + halo])
        with autocast(device, precision):
            result = generator(images.uint8_to_signed(images.to_tensor(patch).to(device)))
        inner = result[
            :,
            :,
            (top - outer_top) * scale : (bottom - outer_top) * scale,
            (left - outer_left) * scale : (right - outer_left) * scale,
        ]
        sr[top * scale : bottom * scale, left * scale : right * scale] = images.to_array(images.signed_to_uint8(inner))
    return sr


def _tile_for_memory(generator: nn.Module, device: torch.device) -> int:
    """Return the largest tile whose activations fit half the free memory, and not more than the budget."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = 2 * _MEMORY_BUDGET
    bytes_a_pixel = 64 * 4 * generator.upscale**2 * 4  # four float32 tensors of 64 channels at the output's size
    side = int((min(free / 2, _MEMORY_BUDGET) / bytes_a_pixel) ** 0.5)
    return max(SMALLEST_TILE, side - 2 * generator.halo)


def upscale_picture(
    generator: nn.Module,
    picture: images.Picture,
    tile: int | None = None,
    precision: str = "fp32",
    progress: bool = False,
) -> images.Picture:
    """Enlarge a decoded picture: RGB by the generator, alpha by bicubic. Gray stays gray; profile and metadata are kept.

    The arguments are those of `upscale`, which raises as this does.
    """
    rgb = picture.rgb if picture.alpha is None else images.fill_transparent(picture.rgb, picture.alpha)
    sr = upscale(generator, rgb, tile, precision, progress)
    if picture.gray:
        sr = images.to_gray(sr)
    alpha = None if picture.alpha is None else images.upscale_bicubic(picture.alpha, generator.upscale)
    return replace(picture, rgb=sr, alpha=alpha)
