"""Export a generator for other programs, as ONNX or ncnn, or prepare it for int8.

python export_model.py                                         writes srresnet_x4.onnx
python export_model.py --weights photo_x4 --half               fp16 inside, half the size
python export_model.py --weights photo_x4 --format ncnn        writes photo_x4.param and .bin
python export_model.py --weights mine.pth --format int8 --images lr/   writes mine.int8.json

ONNX is for chaiNNer, vs-mlrt, onnxruntime, OpenVINO, TensorRT or a browser; ncnn is for Upscayl and
Real-ESRGAN-ncnn-vulkan. The model takes RGB images of any size in [0, 1], (N, 3, H, W), and returns
enlarged images in [0, 1]. It is written only if its results for images of three sizes match
PyTorch's.

With --format int8, the file stays in this project: `--precision int8` of test_image.py and others
needs it beside the generator file.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import inference
from utils import cli, files, images, int8, weights

if TYPE_CHECKING:
    from networks import GeneratorNetwork

# Largest differences from PyTorch in [0, 1]; one 8-bit level is 4e-3
TOLERANCES = {"onnx": 1e-4, "ncnn": 1e-3}
HALF_TOLERANCE = 4e-3
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "ncnn": ("pnnx", "ncnn"),
    "int8": (),
}
MEASURED_IMAGES = 100  # of a folder, at equal distances


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="export_model.py", description=__doc__)
    weights.add_weights_option(parser, default=weights.FAITHFUL)
    parser.add_argument(
        "--format",
        choices=PACKAGES,
        default="onnx",
        help="what the other program reads; int8: what --precision int8 needs",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help=f"for int8: pictures like those you enlarge; up to {MEASURED_IMAGES} are measured",
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


def write_ranges(
    args: argparse.Namespace, chosen: weights.Weights, generator: GeneratorNetwork
) -> None:
    """Measure a generator on a folder of pictures, and write what int8 needs.

    Raises:
        UserError: an option is for the other formats or for a blend.
    """
    if args.half or args.licence or args.out or chosen.texture_path:
        raise cli.UserError(
            "--format int8 writes beside --weights: leave out --half, --licence, --out, --texture"
        )
    names = images.list_image_names(args.images, recursive=True)
    some = names[:: -(-len(names) // MEASURED_IMAGES)]
    bar = cli.progress_bar(some, desc="measuring", unit="image")
    pictures = (images.read_picture(args.images / name).rgb for name in bar)
    int8.write(chosen.path, int8.measure(generator, pictures))
    print(int8.ranges_file(chosen.path))


def main(args: argparse.Namespace) -> None:
    """Export, check and write."""
    import torch

    from utils import exporting

    # Plan
    if args.half and args.format == "ncnn":
        raise cli.UserError("--half is for ONNX; ncnn itself computes in fp16 where a GPU can")
    if args.licence and args.format == "ncnn":
        raise cli.UserError("--licence is for ONNX; ncnn's files have no place for it")
    if (args.images is None) == (args.format == "int8"):
        raise cli.UserError(
            "--format int8 --images DIR: each needs the other; the folder holds pictures like "
            "those you enlarge"
        )
    check_packages(PACKAGES[args.format])
    chosen = weights.chosen_weights(args)
    generator = inference.open_generator(device=torch.device("cpu"), **vars(chosen))
    if args.format == "int8":
        return write_ranges(args, chosen, generator)
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
        model = exporting.export_onnx(generator, args.half, args.licence)
        exporting.check(generator, exporting.run_onnx(model), tolerance)
        written = {out: model}
    else:
        description, model = exporting.export_ncnn(generator)
        exporting.check(generator, exporting.run_ncnn(description, model), tolerance)
        written = {out.with_suffix(".bin"): model, out: description.encode()}

    # Write
    for path, content in written.items():
        with files.write_atomic(path) as file:
            file.write(content)
        print(path)


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
