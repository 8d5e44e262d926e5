"""Export a generator to ONNX, for onnxruntime, OpenVINO, TensorRT or a browser.

python export_model.py
python export_model.py --weights results/srgan_x4/checkpoints/generator_best.pth --out srgan.onnx

The model takes images of any size: input `lr` (N, 3, H, W) and output `sr` (N, 3, scale·H, scale·W)
are float32 RGB in [-1, 1], where -1 is black and 1 is white. The file is written only if
onnxruntime reproduces PyTorch's result for images of three sizes.
"""

import argparse
import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

import inference
from networks import GeneratorNetwork
from utils import cli, files, weights

CHECKED_SIZES = ((24, 32), (37, 19), (64, 50))  # LR height and width
TOLERANCE = 1e-4  # in a range of 2: about a hundredth of an 8-bit level


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="export_model.py", description=__doc__)
    weights.add_weights_option(parser, default=weights.FAITHFUL)
    parser.add_argument(
        "--out", type=Path, help="the ONNX file (default: <weights>.onnx in the current folder)"
    )
    return parser


def export(generator: GeneratorNetwork) -> bytes:
    """Return the ONNX model of a generator on the CPU in evaluation mode.

    Batch, height and width are dynamic. The generator's architecture and halo are in its metadata.

    Raises:
        UserError: the package `onnx` or `onnxscript` is missing.
    """
    try:
        import onnx  # noqa: F401 - PyTorch's exporter needs both
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise cli.UserError(
            f"package {error.name} is missing; pip install onnx onnxscript onnxruntime"
        ) from error

    # Export
    sides = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height"),
        3: torch.export.Dim("width"),
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        assert isinstance(generator, nn.Module)
        program = torch.onnx.export(
            generator,
            (torch.zeros(2, 3, 24, 32),),
            dynamo=True,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=(sides,),
            verbose=False,
        )
    assert program is not None  # it is without `dynamo`

    # Add the metadata
    model = program.model_proto
    facts = {
        **generator.architecture,
        "range": "[-1, 1]",
        "channels": "RGB",
        "halo": generator.halo,
    }
    for name, value in facts.items():
        model.metadata_props.add(key=name, value=str(value))
    return model.SerializeToString()


@torch.inference_mode()
def largest_difference(generator: GeneratorNetwork, model: bytes, height: int, width: int) -> float:
    """Return how far onnxruntime is from PyTorch at most, in [-1, 1], on a random LR image.

    Raises:
        UserError: the package `onnxruntime` is missing.
        RunError: the results differ in shape.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise cli.UserError("package onnxruntime is missing; pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (sr,) = session.run(["sr"], {"lr": lr.numpy()})
    expected = generator(lr)
    if sr.shape != expected.shape:
        raise cli.RunError(
            f"ONNX gives shape {sr.shape} for an image of {height}x{width}, PyTorch "
            f"{tuple(expected.shape)}"
        )
    return (torch.from_numpy(sr) - expected).abs().max().item()


def main(args: argparse.Namespace) -> None:
    """Export, check and write."""
    chosen = weights.chosen_weights(args)
    generator = inference.open_generator(device=torch.device("cpu"), **vars(chosen))
    out = args.out or Path(f"{chosen.stem}.onnx")
    if out.is_dir():
        raise cli.UserError(f"--out {out} is a folder; name a file")
    if out.resolve() in {path.resolve() for path in (chosen.path, chosen.texture_path) if path}:
        raise cli.UserError(f"--out {out} is the generator file itself; name another file")
    files.make_folder(out.parent)

    # Export
    print(f"exporting {chosen}")
    model = export(generator)

    # Check
    for height, width in CHECKED_SIZES:
        difference = largest_difference(generator, model, height, width)
        print(f"LR {height}x{width}: differs by at most {difference:.1e} from PyTorch")
        if not difference <= TOLERANCE:  # also if it is NaN
            raise cli.RunError(
                f"ONNX differs from PyTorch by {difference:.1e}, more than {TOLERANCE}; "
                "nothing was written"
            )

    # Write
    with files.write_atomic(out) as file:
        file.write(model)
    print(out)


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
