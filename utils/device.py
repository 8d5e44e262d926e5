"""Choose the device and the precision, and find out how much memory is free."""

import argparse
import contextlib
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from networks import GeneratorNetwork
from utils import cli

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_options(parser: argparse._ActionsContainer, precision: str = "auto") -> None:
    """Add `--device` and `--precision`, which every script that runs a network has.

    Args:
        parser: a parser or an argument group.
        precision: the default.
    """
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default=precision,
        help="auto: the fastest that suits the device and the generator",
    )


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name: cpu, cuda, mps, or auto (CUDA, else Apple's MPS, else the CPU).

    Raises:
        UserError: this machine has no such device.
    """
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


def move_to(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor to a device, without waiting for the copy if the tensor is in pinned memory."""
    # Other memory could be freed while it is still being copied.
    return tensor.to(device, non_blocking=tensor.is_pinned())


# --- precision ----------------------------------------------------------------------------------


def resolve_precision(
    name: str, device: torch.device, generator: GeneratorNetwork | None = None
) -> str:
    """Return fp32, bf16 or fp16.

    `auto` means bf16 where the hardware is faster in it, else fp16 on CUDA, else fp32. A generator
    with `avoid_bf16` gets fp16 on CUDA, else fp32.

    Raises:
        UserError: fp16 on the CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise cli.UserError(
            "precision fp16 is for GPUs; use --precision auto, bf16 or fp32 on the CPU"
        )
    if name != "auto":
        return name
    if _is_faster_in_bf16(device) and not getattr(generator, "avoid_bf16", False):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def _is_faster_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if torch.cpu._is_amx_tile_supported():
        return True
    # AVX512-BF16 alone is not enough: it makes AMD's EPYC 3 to 4 times as fast as fp32, but an
    # Intel Xeon whose AMX is switched off takes 1.4 to 2 times as long as in fp32. The maker
    # decides, rather than a timing, so that a run resumes with the precision it was started with.
    return torch.cpu._is_avx512_bf16_supported() and _is_made_by_amd()


def _is_made_by_amd() -> bool:
    """Tell whether the processor is AMD's: Linux says so in /proc/cpuinfo, Windows in its name."""
    return "AuthenticAMD" in _text(Path("/proc/cpuinfo")) + platform.processor()


def set_switches(same_sizes: bool = False) -> None:
    """Set PyTorch's global switches, before training and again before validation.

    TF32 is off, in backward passes too: by default, cuDNN rounds the inputs of fp32 convolutions
    to TF32's 10 bits.

    Args:
        same_sizes: let cuDNN time its kernels for each new input size and keep the fastest. This
            pays off in training; in validation, where every image may have its own size, it costs
            more than it saves.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = same_sizes


def compile_for(
    function: Callable[[Tensor], Tensor], batch_size: int | None
) -> Callable[[Tensor], Tensor]:
    """Return a function compiled for batches of one size, or unchanged if the size is None.

    Other sizes, such as an epoch's last batch, run uncompiled: compiling again would take longer.
    """
    if batch_size is None:
        return function
    compiled = torch.compile(function)

    def run(x: Tensor) -> Tensor:
        return compiled(x) if len(x) == batch_size else function(x)

    return run


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context manager that runs a network's forward pass at a precision."""
    if precision == "fp32":
        return true_fp32(device)
    return torch.autocast(device.type, PRECISIONS[precision])


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


# --- memory -------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated on a device; None if the system does not say."""
    if device.type != "cuda":
        return free_system_memory()
    free, _total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch
    return free + cached


def free_system_memory(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return how many bytes this process can still allocate; None if there is no `/proc/meminfo`.

    It is what Linux calls available, within the limits of the containers around the process. Pages
    of cached files that can be dropped count as free.
    """
    available = _values(proc / "meminfo").get("MemAvailable:")
    if available is None:
        return None
    return max(0, min([available * 1024, *_cgroup_rooms(proc, cgroups)]))


def _cgroup_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the bytes left under each memory limit of the process's control groups.

    These may be of version 1 or 2, and the limits of their parents count too.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2
            top = cgroups
            limit_file = "memory.max"
            used_file = "memory.current"
            reclaimable = "inactive_file"
        elif "memory" in controllers.split(","):
            top = cgroups / "memory"
            limit_file = "memory.limit_in_bytes"
            used_file = "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        # Inside a container, this path may not exist: the container's own group is then at the top.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            limit = _text(folder / limit_file).strip()
            used = _text(folder / used_file).strip()
            if limit.isdecimal() and used.isdecimal():  # not "max", which means no limit
                cached = _values(folder / "memory.stat").get(reclaimable, 0)
                yield int(limit) - int(used) + cached


def _values(path: Path) -> dict[str, int]:
    """Return the numbers in a file of lines `name number ...`; empty if there is no such file."""
    values = {}
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            values[words[0]] = int(words[1])
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
