"""Training in several processes started by torchrun: one per GPU, or on shares of a CPU's cores.

In a process that torchrun did not start, every function does what is right for a single process.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from utils import cli

_PATIENCE = timedelta(hours=2)  # one process may decode a large folder while the others wait
_SHORT_PATIENCE = timedelta(minutes=10)  # where all arrive at about the same time

# Through which GPUs exchange gradients and buffers; None: the default group, Gloo's on the CPU
_gpu_group: dist.ProcessGroup | None = None


def launched() -> bool:
    """Tell whether torchrun, or a launcher that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Return the number of this process, from 0; process 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Context manager that connects a run's processes; only the first keeps its stdout.

    Raises:
        UserError: this machine has fewer GPUs than processes, or the launcher does not set all
            variables that torchrun sets.
    """
    global _gpu_group
    if not launched():
        yield
        return

    # Check what the launcher gave us
    missing = [
        name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise cli.UserError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}: start the processes with "
            "torchrun, or export these too, such as LOCAL_RANK=$SLURM_LOCALID under srun"
        )
    if device.type == "cuda":
        torch.cuda.set_device(_own_gpu())
    if device.type == "mps":
        raise cli.UserError(
            "several processes cannot share an MPS device; run train.py without torchrun, or with "
            "--device cpu"
        )

    # Connect
    try:
        _connect()
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise cli.UserError(
            f"the processes cannot connect through {place} ({cli.describe(error)}); check "
            "MASTER_ADDR, try another MASTER_PORT, and start all processes"
        ) from error
    if device.type == "cuda":
        _gpu_group = dist.new_group(backend="nccl", timeout=_SHORT_PATIENCE)

    # Run
    try:
        with open(os.devnull, "w") as nowhere:
            with contextlib.redirect_stdout(sys.stdout if rank() == 0 else nowhere):
                yield
    except BaseException:
        # The others may be waiting for this process, and destroying a group would wait for them.
        # When this process ends instead, its connections to them end too.
        if _gpu_group is not None:
            _gpu_group.abort()
        raise
    dist.destroy_process_group()
    _gpu_group = None


def _connect() -> None:
    """Form the group of all processes."""
    store, number, count = next(rendezvous("env://", timeout=_SHORT_PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun keeps one store across restarts, which still holds addresses of dead processes
        store = dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo", store=store, rank=number, world_size=count, timeout=_PATIENCE)


def _own_gpu() -> int:
    """Return the number of this process's GPU among those that it sees.

    Raises:
        UserError: there are more processes than GPUs.
    """
    local = int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.device_count()
    # srun --gpus-per-task=1 shows each process only its own GPU; torchrun's processes see the same
    if gpus == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0
    if local >= gpus:
        raise cli.UserError(
            f"LOCAL_RANK is {local}, but the number of visible GPUs is {gpus}: start one process "
            f"per GPU, such as with torchrun --nproc_per_node={gpus}"
        )
    return local


def wrap(network: nn.Module) -> nn.Module:
    """Return a network whose backward pass averages the gradients over all processes.

    Each process keeps its own batch statistics: broadcasting them in every forward pass would
    change them between the discriminator's two forward passes, for real and fake images, and its
    single backward pass.
    """
    if not dist.is_initialized():
        return network
    with warnings.catch_warnings():
        # PyTorch 2.13 has a new name for the option, which 2.11 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, process_group=_gpu_group, broadcast_buffers=False)


@contextlib.contextmanager
def averaging(wanted: bool, *networks: nn.Module) -> Iterator[None]:
    """Context manager in which networks of `wrap` average their gradients, if that is wanted.

    Otherwise, each process adds up its own until a backward pass that averages the sums.
    """
    with contextlib.ExitStack() as stack:
        for network in networks:
            if isinstance(network, DistributedDataParallel) and not wanted:
                stack.enter_context(network.no_sync())
        yield


def first_on_machine() -> bool:
    """Tell whether this is the first of the processes on this machine."""
    return not dist.is_initialized() or os.environ["LOCAL_RANK"] == "0"


@contextlib.contextmanager
def one_after_another() -> Iterator[None]:
    """Context manager that the first process on a machine enters alone, and the others after it.

    It is for work that only the first has to do, such as filling a cache.
    """
    if not first_on_machine():
        dist.barrier()
    yield
    if first_on_machine():
        barrier()


def barrier() -> None:
    """Wait for the other processes."""
    if dist.is_initialized():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in order of rank, in every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agree(stop: cli.StopRequest) -> int | None:
    """Return the signal that any process has received, or None: the same result in all of them."""
    if not dist.is_initialized():
        return stop.number
    number = torch.tensor(stop.number or 0)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number) or None


def mean(values: Tensor) -> Tensor:
    """Return the mean over the processes, summed in order of rank."""
    if not dist.is_initialized():
        return values
    return torch.stack(gather(values.cpu())).mean(0).to(values.device)


def share_buffers(*networks: nn.Module) -> None:
    """Give every process the first one's batch statistics."""
    if not dist.is_initialized():
        return
    for network in networks:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0, group=_gpu_group)
