"""Choose the device and the precision, and find out how much memory is free."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from networks import GeneratorNetwork
from utils import cli, machine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    with `avoid_bf16` gets fp16 on CUDA, or fp32 if it has `avoid_fp16` too, else fp32.

    Raises:
        UserError: fp16 on the CPU.
    """
    if device.type == "cpu":
        machine.check_cpu_precision(name)
    if name != "auto":
        return name
    if _is_faster_in_bf16(device) and not getattr(generator, "avoid_bf16", False):
        return "bf16"
    suits_fp16 = device.type == "cuda" and not getattr(generator, "avoid_fp16", False)
    return "fp16" if suits_fp16 else "fp32"


def _is_faster_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return machine.is_cpu_faster_in_bf16(
        torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()
    )


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


def compiles_by_default(device: torch.device) -> bool:
    """Return whether training on a device is compiled by default: on an NVIDIA GPU with Triton.

    Triton does not come with PyTorch on Windows, and needs compute capability 7.0 or higher.
    """
    from torch.utils._triton import has_triton

    return device.type == "cuda" and has_triton()


def compile_for(
    function: Callable[[Tensor], Tensor], batch_size: int | None
) -> Callable[[Tensor], Tensor]:
    """Return a function compiled for batches of one size, or unchanged if the size is None.

    Other sizes, such as an epoch's last batch, run uncompiled: compiling again would take longer.
    If compiling fails, for example because there is no C++ compiler, all batches do.
    """
    if batch_size is None:
        return function
    from torch._dynamo.exc import TorchDynamoException

    fastest = torch.compile(function, dynamic=False)

    def run(x: Tensor) -> Tensor:
        nonlocal fastest
        if len(x) != batch_size:
            return function(x)
        try:
            return fastest(x)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            print(f"\ngoing on without torch.compile, which failed: {reason}", file=sys.stderr)
            fastest = function
            return function(x)

    return run


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context manager that runs a network's forward pass at a precision."""
    if precision == "fp32":
        return true_fp32(device)
    return torch.autocast(device.type, DTYPES[precision])


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
        return machine.free_system_memory()
    free, _total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch
    return free + cached
