"""Export a generator for other programs: to ONNX, or to ncnn for Upscayl.

python export_model.py                                         writes srresnet_x4.onnx
python export_model.py --weights photo_x4 --half               fp16 inside, half the size
python export_model.py --weights photo_x4 --format ncnn        writes photo_x4.param and .bin

ONNX is for chaiNNer, vs-mlrt, onnxruntime, OpenVINO, TensorRT or a browser; ncnn is for Upscayl and
Real-ESRGAN-ncnn-vulkan. The model takes RGB images of any size in [0, 1], (N, 3, H, W), and returns
enlarged images in [0, 1]. It is written only if its results for images of three sizes match
PyTorch's.
"""

import argparse
import contextlib
import copy
import importlib
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

import inference
from model import TailConv
from networks import GeneratorNetwork
from utils import cli, files, images, weights

CHECKED_SIZES = ((24, 32), (37, 19), (64, 50))  # LR height and width
# Largest differences from PyTorch in [0, 1]; one 8-bit level is 4e-3
TOLERANCES = {"onnx": 1e-4, "ncnn": 1e-3}
HALF_TOLERANCE = 4e-3
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "ncnn": ("pnnx", "ncnn")}
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


# --- the command line ---------------------------------------------------------------------------


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="export_model.py", description=__doc__)
    weights.add_weights_option(parser, default=weights.FAITHFUL)
    parser.add_argument(
        "--format", choices=PACKAGES, default="onnx", help="what the other program reads"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the .onnx or .param file (default: <weights>.onnx or .param in the current folder); "
        "ncnn's weights go to a .bin file beside it",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="compute in fp16 (ONNX only): half the size, and faster on most GPUs; images stay "
        "float32",
    )
    parser.add_argument(
        "--licence",
        default="",
        help="text for the metadata of the ONNX file",
    )
    return parser


def check_packages(names: tuple[str, ...]) -> None:
    """Raise UserError if a package is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise cli.UserError(
                f"package {name} is missing; pip install {' '.join(names)}"
            ) from error


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


def main(args: argparse.Namespace) -> None:
    """Export, check and write."""
    # Plan
    if args.half and args.format == "ncnn":
        raise cli.UserError("--half is for ONNX; ncnn itself computes in fp16 where a GPU can")
    if args.licence and args.format == "ncnn":
        raise cli.UserError("--licence is for ONNX; ncnn's files have no place for it")
    check_packages(PACKAGES[args.format])
    chosen = weights.chosen_weights(args)
    generator = inference.open_generator(device=torch.device("cpu"), **vars(chosen))
    suffix = {"onnx": ".onnx", "ncnn": ".param"}[args.format]
    out = args.out or Path(f"{chosen.stem}{suffix}")
    if out.is_dir():
        raise cli.UserError(f"--out {out} is a folder; name a file")
    if args.format == "ncnn" and out.suffix != suffix:
        raise cli.UserError(f"--out {out}: ncnn's description is a {suffix} file; name it so")
    written_files = {out} if args.format == "onnx" else {out, out.with_suffix(".bin")}
    sources = {path.resolve() for path in (chosen.path, chosen.texture_path) if path}
    for path in written_files:
        if path.resolve() in sources:
            raise cli.UserError(f"--out {path} is the generator file itself; name another file")
    files.make_folder(out.parent)

    # Export and check
    print(f"exporting {chosen}")
    tolerance = HALF_TOLERANCE if args.half else TOLERANCES[args.format]
    if args.format == "onnx":
        model = export_onnx(generator, args.half, args.licence)
        check(generator, run_onnx(model), tolerance)
        written = {out: model}
    else:
        description, model = export_ncnn(generator)
        check(generator, run_ncnn(description, model), tolerance)
        written = {out.with_suffix(".bin"): model, out: description.encode()}

    # Write
    for path, content in written.items():
        with files.write_atomic(path) as file:
            file.write(content)
        print(path)


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
