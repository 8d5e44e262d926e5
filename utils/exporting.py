"""A generator as a model for other programs: ONNX or ncnn, compared with PyTorch."""

import contextlib
import copy
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model import TailConv
from networks import GeneratorNetwork
from utils import cli, images

CHECKED_SIZES = ((24, 32), (37, 19), (64, 50))  # LR height and width
OPSET = 18  # the newest that TensorRT 8.6 and the runtimes of that time know

Run = Callable[[np.ndarray], np.ndarray]  # an image (1, 3, H, W) in [0, 1] -> its SR


class UnitGenerator(nn.Module):
    """A generator between images in [0, 1], which other programs expect.

    Args:
        generator: of `inference.open_generator`, on the CPU.
        half: whether to compute in fp16.
    """

    def __init__(self, generator: GeneratorNetwork, half: bool = False):
        super().__init__()
        generator = copy.deepcopy(generator)
        assert isinstance(generator, nn.Module)
        # What makes the last convolution fast in PyTorch slows others down
        for name, layer in list(generator.named_children()):
            if isinstance(layer, TailConv):
                setattr(generator, name, plain_convolution(layer))
        self.dtype = torch.float16 if half else torch.float32
        self.generator = generator.to(self.dtype)

    def forward(self, unit: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [0, 1], float32, to SR in [0, 1], float32."""
        signed = unit.to(self.dtype) * 2 - 1
        return images.signed_to_unit(self.generator(signed).float()).clamp(0, 1)


def plain_convolution(layer: nn.Conv2d) -> nn.Conv2d:
    """Return an `nn.Conv2d` with the weights of a subclass's layer."""
    out_channels, channels, height, width = layer.weight.shape
    plain = nn.Conv2d(channels, out_channels, (height, width), padding=(height // 2, width // 2))
    plain.load_state_dict(layer.state_dict())
    return plain


# --- ONNX ---------------------------------------------------------------------------------------


def export_onnx(generator: GeneratorNetwork, half: bool = False, licence: str = "") -> bytes:
    """Return the ONNX model of a generator on the CPU in evaluation mode.

    Batch, height and width are dynamic; the input is called `input`, the output `output`. The
    architecture, the halo and the licence are in its metadata.
    """
    sides = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height"),
        3: torch.export.Dim("width"),
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            UnitGenerator(generator, half).eval(),
            (torch.zeros(2, 3, 24, 32),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=(sides,),
            verbose=False,
        )
    assert program is not None  # it is without `dynamo`
    model = program.model_proto
    for name, value in facts_of(generator, licence).items():
        model.metadata_props.add(key=name, value=str(value))
    return model.SerializeToString()


def run_onnx(model: bytes) -> Run:
    """Return what enlarges with an ONNX model in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda lr: session.run(["output"], {"input": lr})[0]


def facts_of(generator: GeneratorNetwork, licence: str) -> dict[str, Any]:
    """Return what an exported model says of itself."""
    facts = {
        **generator.architecture,
        "scale": generator.upscale,
        "halo": generator.halo,
        "range": "[0, 1]",
        "channels": "RGB",
    }
    if licence:
        facts["licence"] = licence
    return facts


# --- ncnn ---------------------------------------------------------------------------------------


def export_ncnn(generator: GeneratorNetwork) -> tuple[str, bytes]:
    """Return ncnn's description of a generator and its weights, the .param and the .bin file.

    The input is called `data` and the output `output`, as Upscayl expects.

    Raises:
        UserError: pnnx cannot convert it.
    """
    import pnnx

    with tempfile.TemporaryDirectory() as folder, silenced():
        pnnx.export(
            UnitGenerator(generator).eval(),
            f"{folder}/model.pt",
            (torch.zeros(1, 3, 32, 32),),
            (torch.zeros(1, 3, 24, 40),),  # a second size makes the sides dynamic
            fp16=False,  # which would lose up to five levels; ncnn converts on the GPU itself
        )
        description = Path(folder, "model.ncnn.param")
        if not description.exists():
            raise cli.UserError("pnnx cannot convert this generator to ncnn")
        text = re.sub(r"\bin0\b", "data", description.read_text())
        return re.sub(r"\bout0\b", "output", text), Path(folder, "model.ncnn.bin").read_bytes()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Discard what programs in the background print, such as pnnx's converter."""
    sys.stdout.flush()
    streams = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nothing:
        for number in (1, 2):
            os.dup2(nothing.fileno(), number)
    try:
        yield
    finally:
        for number, stream in zip((1, 2), streams, strict=True):
            os.dup2(stream, number)
            os.close(stream)


def run_ncnn(description: str, model: bytes) -> Run:
    """Return what enlarges with an ncnn model on the CPU, in fp32."""
    import ncnn

    network = ncnn.Net()
    network.opt.use_fp16_packed = False
    network.opt.use_fp16_storage = False
    network.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.param").write_text(description)
        Path(folder, "model.bin").write_bytes(model)
        network.load_param(f"{folder}/model.param")
        network.load_model(f"{folder}/model.bin")

    def run(lr: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        # A copy, because ncnn computes in place and would write to the array
        extractor.input("data", ncnn.Mat(np.ascontiguousarray(lr[0])).clone())
        _status, sr = extractor.extract("output")
        return np.array(sr)[None]

    return run


# --- comparing with PyTorch ---------------------------------------------------------------------


@torch.inference_mode()
def largest_difference(generator: GeneratorNetwork, run: Run, height: int, width: int) -> float:
    """Return how far a model is from PyTorch at most, in [0, 1], on a random LR image.

    Raises:
        RunError: the results differ in shape.
    """
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    sr = run(lr.numpy())
    expected = UnitGenerator(generator)(lr)
    if sr.shape != expected.shape:
        raise cli.RunError(
            f"the model gives shape {sr.shape} for an image of {height}x{width}, PyTorch "
            f"{tuple(expected.shape)}"
        )
    return (torch.from_numpy(sr) - expected).abs().max().item()


def check(generator: GeneratorNetwork, run: Run, tolerance: float) -> None:
    """Compare a model with PyTorch for images of three sizes.

    Raises:
        RunError: it differs by more than the tolerance.
    """
    for height, width in CHECKED_SIZES:
        difference = largest_difference(generator, run, height, width)
        print(f"LR {height}x{width}: differs by at most {difference:.1e} from PyTorch")
        if not difference <= tolerance:  # also if it is NaN
            raise cli.RunError(
                f"the model differs from PyTorch by {difference:.1e}, more than {tolerance}; "
                "nothing was written"
            )
