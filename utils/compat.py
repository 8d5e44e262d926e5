"""Import torchvision alongside a CPU-only torch, and limit how long a download waits.

PyPI's torchvision is a CUDA build. Its compiled operators do not load with a CPU build of torch, and importing it
fails with "operator torchvision::nms does not exist" (pytorch/vision issues 9077 and 9085). It suffices to declare the
two operators that torchvision uses without checking for them.
"""

import contextlib
import importlib
import socket
import sys
from collections.abc import Iterator
from types import ModuleType

import torch

_declared = None  # keeps the library object alive, and with it the schemas


def import_torchvision() -> ModuleType:
    """Import torchvision; if its compiled operators are missing, declare `nms` and `qnms` first."""
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
    """Set a timeout for each response of the server in PyTorch hub downloads, which have none by default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
