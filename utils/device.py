"""Choose the device and the precision, and find out how much memory is free."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from utils import cli

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_options(parser: argparse.ArgumentParser, precision: str = "auto") -> None:
    """Add `--device` and `--precision`, which every script that runs a network has."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute"
    )
    parser.add_argument(
        "--precision", choices=("auto", *PRECISIONS), default=precision,
        help="auto: the fastest that suits the device and the generator",
    )  # fmt: skip


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device called auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda or mps; raise UserError if absent."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name, False):
        raise cli.UserError(f"device {name!r} is not available here; use --device auto or cpu")
    return torch.device(name)


def move_to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to a device, asynchronously only from pinned memory: other memory could be freed during the copy."""
    return tensor.to(device, non_blocking=tensor.is_pinned())


# --- precision ------------------------------------------------------------------------------------------------------


def resolve_precision(name: str, device: torch.device, generator: nn.Module | None = None) -> str:
    """Return fp32, bf16 or fp16.

    `auto` means bf16 if the device has it in hardware, else fp16 on CUDA, else fp32. For a `generator` with `avoid_bf16`, it
    means fp16 on CUDA, else fp32.
    """
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise cli.UserError(
                "precision fp16 is for GPUs; use --precision auto, bf16 or fp32 on the CPU"
            )
        return name
    if _has_bf16(device) and not getattr(generator, "avoid_bf16", False):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def set_switches(same_sizes: bool = False) -> None:
    """Set PyTorch's global switches; call this again when a run switches between training and validation.

    TF32 is off, also in backward passes: by default, cuDNN rounds the inputs of fp32 convolutions to TF32's 10 bits.

    Args:
        same_sizes: let cuDNN time its kernels at each new input size and keep the fastest. This pays off in
            training steps; in validation, where every image may have its own size, it costs more than it saves.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = same_sizes


def compile_for(function: Callable, batch_size: int | None) -> Callable:
    """Return a function compiled for batches of one size, or unchanged if the size is None.

    Other sizes, such as an epoch's last batch, run uncompiled: compiling again would take longer.
    """
    if batch_size is None:
        return function
    fast = torch.compile(function)
    return lambda x: (fast if len(x) == batch_size else function)(x)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context manager that runs a network's forward pass at a precision."""
    return (
        true_fp32(device)
        if precision == "fp32"
        else torch.autocast(device.type, PRECISIONS[precision])
    )


@contextlib.contextmanager
def true_fp32(device: torch.device) -> Iterator[None]:
    """Compute in fp32, regardless of the global TF32 switch and of any surrounding autocast."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


# --- memory ---------------------------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated on a device, or None if the system does not say."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # PyTorch's own cache
        return torch.cuda.mem_get_info(device)[0] + reusable
    return free_system_memory()


def free_system_memory(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes that this process can still allocate: those that Linux calls available, within its containers' limits.

    Pages of cached files that can be dropped count as free. The result is None if there is no `/proc/meminfo`.
    """
    available = _values(proc / "meminfo").get("MemAvailable:")
    if available is None:
        return None
    return max(0, min([available * 1024, *_cgroup_rooms(proc, cgroups)]))


def _cgroup_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the bytes left under each memory limit of this process's control groups and their parents (version 1 or 2)."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, limit, used, reclaimable = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        group = top / path.lstrip(
            "/"
        )  # may not exist in a container, whose own group is then at the top
        for folder in (group, *group.parents):
            most, now = (_text(folder / name).strip() for name in (limit, used))
            if most.isdecimal() and now.isdecimal():  # "max": no limit
                yield int(most) - int(now) + _values(folder / "memory.stat").get(reclaimable, 0)


def _values(path: Path) -> dict[str, int]:
    """Return the numbers in a file of lines `name number ...`; empty if there is no such file."""
    words = (line.split() for line in _text(path).splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
