"""Training in several processes that torchrun starts, one a GPU or one a share of the CPU's cores.

In a process that torchrun did not start, every function here does the same as for one process alone.
"""

import contextlib
import inspect
import os
import sys
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


def launched() -> bool:
    """Tell whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Return the number of this process, from 0; process 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Context in which the processes of a run can speak to each other; all but the first are silent on stdout.

    Raises:
        ValueError: fewer GPUs on this machine than processes.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise cli.UserError(f"--nproc_per_node is larger than this machine's {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local)
    store, number, count = next(rendezvous("env://", timeout=_PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun keeps one store over its restarts, with addresses of the dead
        store = dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_PATIENCE)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if rank() else sys.stdout):
            yield
    finally:
        dist.destroy_process_group()


def wrap(network: nn.Module) -> nn.Module:
    """Return a network whose backward pass averages the gradients over all processes.

    Batch statistics stay each process's own: buffers that are broadcast at every forward pass would change under a
    discriminator that runs on real and on fake images before one backward pass.
    """
    if not dist.is_initialized():
        return network
    names = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # its name before
    return DistributedDataParallel(network, **{option: False})


def first_on_machine() -> bool:
    """Tell whether this is the first of the processes on this machine."""
    return not dist.is_initialized() or os.environ["LOCAL_RANK"] == "0"


@contextlib.contextmanager
def one_after_another() -> Iterator[None]:
    """Context that the first process of a machine leaves before the others enter, for work that is then done already."""
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
    """Return what every process passes, in their order, to each of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agree(stop: cli.StopRequest) -> int | None:
    """Return the signal that one of the processes has received, the same in all of them; None where none has."""
    if not dist.is_initialized():
        return stop.number
    number = torch.tensor(stop.number or 0)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item() or None


def mean(values: Tensor) -> Tensor:
    """Return the mean over the processes, added up in their order."""
    return torch.stack(gather(values.cpu())).mean(0).to(values.device) if dist.is_initialized() else values


def share_buffers(*networks: nn.Module) -> None:
    """Give every process the batch statistics of the first."""
    if dist.is_initialized():
        for network in networks:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def place() -> tuple[int, int]:
    """Return this process's number and the number of processes."""
    return rank(), world_size()
