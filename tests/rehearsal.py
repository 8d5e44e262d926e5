"""A GPU played by fake tensors, which have shapes, types and devices, but no values.

python tests/rehearsal.py

It prints as JSON, for each case, the operators that PyTorch dispatched and how often, the places in
this project that waited for the GPU, and the error that ended the case, if any.

On a PyTorch without CUDA, fake tensors cannot be sent through a backward pass: autograd asks for
the GPU's streams. Gradients are zeros here. `test_cuda_rehearsal.py` looks at backward passes on
the CPU.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

import inference
import metrics
import train
from model import Generator
from utils import cli, images, pretrained
from utils.checkpoint import Progress
from validation import validate

ROOT = Path(__file__).parent.parent
PRECISIONS = ("fp32", "bf16", "fp16")
GPU = "cuda:0"  # without a number, PyTorch would ask for the current GPU's
READS = {"_local_scalar_dense": 1.0, "item": 1.0, "is_nonzero": True}  # and what fake values are
COPIES = ("_to_copy", "to", "copy_")

# --- what is recorded ---------------------------------------------------------------------------


class Record(TorchDispatchMode):
    """Records the operators, without views, and the places that wait for a device.

    The CPU waits when it reads a value, and when it copies from or to the device, unless it is told
    not to. Every value of a fake tensor reads as 1.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.operators: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view:
            self.operators[func.name()] += 1
        if name in READS:
            if args[0].device.type == self.device:
                self.waits.append(f"{place()} reads a value")
            if isinstance(args[0], FakeTensor):
                return READS[name]
        result = func(*args, **kwargs)
        if name in COPIES:
            source = args[1] if name == "copy_" else args[0]
            non_blocking = kwargs.get("non_blocking", args[2:3] == (True,))
            if source.device.type != result.device.type and not non_blocking:
                self.waits.append(f"{place()} copies to {result.device.type}")
        return result


def place() -> str:
    """The innermost function of the project that is running, outside its tests."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and not {"tests", "site-packages"} & set(path.parts):
            return f"{path.relative_to(ROOT).as_posix()}: {frame.name}"
    return "a backward pass"


# --- the device ---------------------------------------------------------------------------------


@contextlib.contextmanager
def played_gpu() -> Iterator[Record]:
    """A context in which "cuda" exists, and everything is recorded."""
    record = Record("cuda")
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *_args, **_kwargs: True),
        mock.patch("torch.cuda.mem_get_info", lambda _device: (8 * 2**30, 16 * 2**30)),
        mock.patch("torch.cuda.memory_reserved", lambda _device: 0),
        mock.patch("torch.cuda.memory_allocated", lambda _device: 0),
        mock.patch.object(nn.Module, "_apply", converted),
        mock.patch.object(torch.Tensor, "__deepcopy__", fake_copy),
        mock.patch.object(torch.Tensor, "backward", zero_gradients),
        mock.patch.object(images, "to_array", fake_array),
        FakeTensorMode(allow_non_fake_inputs=True),
        record,
    ):
        yield record


def set_guard() -> None:
    """Give PyTorch a device guard for CUDA; raise RuntimeError if it is not made as expected.

    PyTorch asks the guard of a device which GPU is current. A build without CUDA lacks it, but has
    one for the device "meta", which does nothing.
    """
    if torch.backends.cuda.is_built():
        return
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no table of device guards: {error}") from error
    cuda = 1  # c10::DeviceType
    meta = 14
    if guards[cuda] is not None or guards[meta] is None:
        raise RuntimeError("the table of device guards is not as expected")
    guards[cuda] = guards[meta]


def converted(module: nn.Module, function: Callable, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, but with new parameters: fake ones cannot change their device."""
    for child in module.children():
        converted(child, function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            new = function(parameter.detach())
            module._parameters[name] = nn.Parameter(new, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def zero_gradients(loss: torch.Tensor) -> None:
    """`Tensor.backward`, with a gradient of zeros for every parameter that the loss depends on."""
    seen = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)


def fake_copy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """`Tensor.__deepcopy__`, which reads from the memory that fake tensors lack."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, tensor.requires_grad)
        memo[id(tensor)] = copied
    return memo[id(tensor)]


def fake_array(image: torch.Tensor) -> np.ndarray:
    """`images.to_array` without values."""
    image.cpu()
    return np.zeros((*image.shape[-2:], 3), np.uint8)


# --- training -----------------------------------------------------------------------------------

STEPS: dict[str, list[str]] = {
    f"{step} in {precision}": ["--precision", precision, *words]
    for precision in PRECISIONS
    for step, words in {
        "a step": [],
        "a step in parts": ["--accumulate", "2", "--grad-clip", "1"],
        "a pixel-only step": ["--pretrain-epochs", "1", "--accumulate", "2", "--grad-clip", "1"],
    }.items()
}
STEPS |= {
    step: ["--precision", "fp16", *words]
    for step, words in {
        "a step with the multi-scale discriminator": [
            *["--discriminator", "multiscale", "--crop", "72", "--adversarial-loss"],
            *["relativistic", "--accumulate", "2"],
        ],
        "a step of ESRGAN": [
            *["--generator", "rrdb", "--discriminator", "unet"],
            *["--adversarial-loss", "relativistic", "--pixel-loss", "l1", "--grad-clip", "1"],
        ],
        "a step with VGG16": ["--perceptual", "vgg16"],
        "a step with VGG19": ["--perceptual", "vgg19"],
        "a step with grid and consistency": ["--grid-weight", "1", "--consistency-weight", "1"],
    }.items()
}


def options(words: list[str]) -> argparse.Namespace:
    """train.py's options for a small run on a GPU."""
    small = ["--crop", "48", "--batch-size", "4", "--blocks", "1", "--ema", "0.9"]
    small += ["--precision", "fp32"]
    small += ["--perceptual", "squeezenet", "--perceptual-weights", "random"]
    args = train.get_args_parser().parse_args([*small, *words])
    precision = args.precision
    args.device = "cpu"
    args.precision = "fp32"
    train.options.resolve(args)  # which asks for the devices that are there
    args.device = GPU
    args.precision = precision
    return args


@functools.cache
def perceptual(network: str) -> pretrained.Pretrained:
    """Untrained weights; for VGG19, in a file of its first layers, with few channels."""
    if network != "vgg19":
        return pretrained.load(network, "random")
    state = {}
    channels = 3
    for name in ("0", "2", "5", "7", "10"):  # up to conv3_1, as torchvision numbers them
        state[f"{name}.weight"] = torch.zeros(4, channels, 3, 3)
        state[f"{name}.bias"] = torch.zeros(4)
        channels = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vgg19.pth")
        torch.save(state, path)
        return pretrained.load(network, str(path))


def update(words: list[str], adam: dict[str, Any] | None = None) -> Record:
    """Record an update as `train.train_epoch` makes it.

    Args:
        words: options of train.py.
        adam: the state of G's optimiser to go on from, as a checkpoint has it.
    """
    args = options(words)
    weights = perceptual(args.perceptual)
    with played_gpu() as record:
        models = train.Models(args)
        models.loss = train.new_loss(args, weights).to(models.device)
        models.loss.zoom = args.perceptual_zoom
        if adam:
            models.optimizer_g.load_state_dict(adam)
        small = args.crop // args.upscale
        lr = torch.zeros(args.batch_size, 3, small, small, device=GPU)
        hr = torch.zeros(args.batch_size, 3, args.crop, args.crop, device=GPU)
        progress = Progress()
        record.operators.clear()
        record.waits.clear()
        train.begin_update(args, models, progress, 9)
        values = train.step_of(args, progress.epoch)(models, lr, hr)
        models.update_average()
        progress.add(values, len(lr))
        assert all(total.device.type == "cuda" for total in progress.sums.values())
        assert all(tensor.device.type == "cuda" for tensor in models.ema.module.parameters())
    return record


def adam_state(fused: bool | None) -> dict[str, Any]:
    """The state of G's Adam in a checkpoint of a CPU, or of a version without fused Adam."""
    network = Generator(4, 1)
    adam = torch.optim.Adam(network.parameters(), fused=fused)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    return adam.state_dict()


# --- enlarging and validating -------------------------------------------------------------------


def enlarge(precision: str) -> Record:
    """Enlarge an image in four tiles."""
    with played_gpu() as record:
        generator = inference.prepared(Generator(4, 1)).to(GPU)
        record.waits.clear()
        sr = inference.upscale(generator, np.zeros((32, 24, 3), np.uint8), 16, precision)
        assert sr.shape == (128, 96, 3)
    return record


def validation(precision: str) -> Record:
    """Validate two images, with a distance."""
    weights = perceptual("squeezenet")
    sizes = ((12, 16), (48, 64), (48, 64))
    with played_gpu() as record:
        dataset = mock.MagicMock(bicubic_scores={})
        dataset.__len__.return_value = 2
        dataset.__getitem__.side_effect = lambda index: (
            str(index),
            *(torch.zeros(1, 3, *size, dtype=torch.uint8) for size in sizes),
        )
        distances = metrics.distance_networks(weights=[weights])
        generator = Generator(4, 1).to(GPU)
        record.waits.clear()
        scores = validate(generator, dataset, precision, None, 0, cli.StopRequest(), distances)
        assert {"PSNR", "SSIM", "Distance", "Grid"} <= scores.keys()
    return record


# --- faults -------------------------------------------------------------------------------------

FAULTS: dict[str, Callable[[torch.Tensor], object]] = {
    "reads a value": lambda image: image.sum().item(),
    "asks a question": lambda image: bool((image > 0).all()),
    "copies to cpu": lambda image: image.cpu(),
    "copies to cuda": lambda image: image.copy_(torch.zeros(image.shape)),
    "picks by a mask": lambda image: image[image > 0],
    "mixes devices": lambda image: image + torch.zeros(3, 1, 1),
}


def faulty_update(fault: str) -> Record:
    """An update with a fault in the middle of the step."""
    sound = images.signed_to_unit

    def signed_to_unit(image: torch.Tensor) -> torch.Tensor:
        FAULTS[fault](image.detach())
        return sound(image)

    with mock.patch.object(images, "signed_to_unit", signed_to_unit):
        return update([])


CASES: dict[str, Callable[[], Record]] = {
    **{name: functools.partial(update, words) for name, words in STEPS.items()},
    **{
        f"a run resumed from {name} Adam": lambda fused=fused: update(
            ["--precision", "fp16"], adam_state(fused)
        )
        for name, fused in {"fused": True, "unfused": None}.items()
    },
    **{f"enlarging in {one}": functools.partial(enlarge, one) for one in PRECISIONS},
    "validation": functools.partial(validation, "bf16"),
    **{f"a step that {fault}": functools.partial(faulty_update, fault) for fault in FAULTS},
}


def main() -> None:
    """Rehearse all cases."""
    warnings.simplefilter("ignore")
    set_guard()
    found = {}
    for name, case in CASES.items():
        try:
            record = case()
        except Exception:  # is the finding
            found[name] = {"error": traceback.format_exc()}
        else:
            found[name] = {"operators": record.operators, "waits": record.waits}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
