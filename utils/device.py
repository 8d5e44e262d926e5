"""Which device, which precision, how much memory is free."""

import argparse
import contextlib
from collections.abc import Callable

import torch

from utils import cli

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_options(parser: argparse.ArgumentParser, precision: str = "auto") -> None:
    """Add `--device` and `--precision`, which every script that runs a network has."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    parser.add_argument(
        "--precision", choices=("auto", *PRECISIONS), default=precision, help="auto: the fastest that the device is good at"
    )


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name: auto (CUDA, then Apple's MPS, then the CPU), cpu, cuda or mps; ValueError if absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name, False):
        raise cli.UserError(f"device {name!r} is not available here; use --device auto or cpu")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; auto means bf16 where the device computes it in hardware, else fp16 on a GPU, else fp32."""
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise cli.UserError("precision fp16 is for GPUs; use --precision auto, bf16 or fp32 on the CPU")
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bf16"
    return "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context in which a network computes at a precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def compile_for(function: Callable, batch_size: int | None) -> Callable:
    """Return a function compiled for batches of one size, or as it is for None.

    Other sizes, such as an epoch's last batch, run uncompiled: compiling anew would take longer.
    """
    if batch_size is None:
        return function
    fast = torch.compile(function)
    return lambda x: (fast if len(x) == batch_size else function)(x)
