"""What this machine has, found out without PyTorch, and the options that choose among it.

PyTorch takes more than a second to import, and test_image.py may do without.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from utils import cli

DEVICES = ("cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16", "fp16")
BACKENDS = ("torch", "openvino")


def add_options(
    parser: argparse._ActionsContainer, precision: str = "auto", backend: bool = False
) -> None:
    """Add `--device` and `--precision`, which every script that runs a network has.

    Args:
        parser: a parser or an argument group.
        precision: the default.
        backend: whether to add `--backend` too, for scripts that enlarge images.
    """
    parser.add_argument(
        "--device", choices=("auto", *DEVICES), default="auto", help="where to compute"
    )
    more = ", but not int8, which only OpenVINO has" if backend else ""
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS, *(["int8"] if backend else [])),
        default=precision,
        help=f"auto: the fastest that suits the device and the generator{more}",
    )
    if backend:
        parser.add_argument(
            "--backend",
            choices=("auto", *BACKENDS),
            default="auto",
            help="what runs the generator; auto: OpenVINO if it is installed and no GPU is used, "
            "else PyTorch",
        )


def may_have_gpu() -> bool:
    """Tell whether there may be a GPU that PyTorch can use: a driver is here, or Apple's chip."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32")
        return any((system / name).exists() for name in ("nvcuda.dll", "amdhip64.dll"))
    # NVIDIA, its Jetson, WSL, AMD
    signs = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
    return any(Path(sign).exists() for sign in signs)


def process_part() -> tuple[int, int]:
    """Return (K, N): this process is the K-th of N that torchrun or srun started, from 1.

    Raises:
        UserError: their variables make no sense.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            found = f"{rank}={os.environ[rank]}, {size}={os.environ[size]}"
            try:
                number, count = int(os.environ[rank]) + 1, int(os.environ[size])
            except ValueError:
                number, count = 0, 0
            if not 1 <= number <= count:
                raise cli.UserError(f"{found}: not a process of several; unset them")
            return number, count
    return 1, 1


def process_on_machine() -> int:
    """Return the number of this process on its machine, from 0, as torchrun or srun counts."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


# --- the processor ------------------------------------------------------------------------------


def cores() -> int:
    """Return how many cores the scheduler or container allows this process, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_per_process() -> int:
    """Return how many of this machine's cores each process of the run may use, at least 1.

    Under torchrun, the processes divide them: it sets OMP_NUM_THREADS to 1, so the number of
    PyTorch's threads does not tell.
    """
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def check_cpu_precision(name: str) -> None:
    """Raise UserError for fp16, in which a CPU does not compute."""
    if name == "fp16":
        raise cli.UserError(
            "precision fp16 is for GPUs; use --precision auto, bf16 or fp32 on the CPU"
        )


def is_cpu_faster_in_bf16(bf16: bool, amx: bool) -> bool:
    """Tell whether the processor is faster in bf16 than in fp32.

    Instructions for bf16 alone are not enough: they make AMD's EPYC 3 to 4 times as fast as in
    fp32, but an Intel Xeon whose AMX is switched off takes 1.4 to 2 times as long. The maker
    decides, rather than a timing, so that a run resumes with the precision it was started with.

    Args:
        bf16: whether the processor has such instructions (AVX512-BF16).
        amx: whether it has Intel's matrix unit.
    """
    return amx or (bf16 and is_made_by_amd())


def is_made_by_amd() -> bool:
    """Tell whether the processor is AMD's: Linux says so in /proc/cpuinfo, Windows in its name."""
    return "AuthenticAMD" in _text(Path("/proc/cpuinfo")) + platform.processor()


def has_amx() -> bool:
    """Tell whether Linux lists the processor's matrix unit, Intel's AMX."""
    return "amx_tile" in _text(Path("/proc/cpuinfo")).split()


# --- memory -------------------------------------------------------------------------------------


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
