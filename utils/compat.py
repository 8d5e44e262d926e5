"""Let torchvision be imported beside a CPU-only torch, and notice a missing network soon.

PyPI's torchvision is a CUDA build. Its compiled operators do not load beside a CPU build of torch, and importing it
stops with "operator torchvision::nms does not exist" (pytorch/vision issues 9077 and 9085). Declaring the two operators
that torchvision registers without a guard is enough for all that this project uses of it.
"""

import contextlib
import importlib
import socket
import sys
from collections.abc import Iterator
from types import ModuleType

import torch

_declared = None  # the library object must stay alive: its schemas go when it goes


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring `nms` and `qnms` first only where its compiled operators are absent."""
    global _declared
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _declared is not None:
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


@contextlib.contextmanager
def network_timeout(seconds: float) -> Iterator[None]:
    """Give downloads of PyTorch's hub, which have none, a timeout for each answer of the server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
