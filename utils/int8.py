"""8-bit integers in a generator on OpenVINO: faster on a CPU without bf16, at a small loss.

Each convolution's input is rounded to 256 levels, and its weights to 127. Those from and to RGB
stay as they are, because rounding them costs most. The range of each input is measured once, on
pictures, and lies beside the generator file: `srgan_x4.int8.json` beside `srgan_x4.pth`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import cli, files, images

if TYPE_CHECKING:
    from networks import GeneratorNetwork

Ranges = dict[str, tuple[float, float]]  # of inputs, by the name of the convolution

SIDE = 64  # LR pixels: of the pictures' middles, which are measured
_OUTSIDE = 1e-4  # share of values that may lie outside the range, at either end, in each picture
_LEVELS = 256
# Of 8 bits, weights use 7: without VNNI, a processor adds pairs of products in 16 bits
_WEIGHT_LEVELS = 255
_WEIGHT_RANGE = 2  # times the largest weight


def ranges_file(path: str | Path) -> Path:
    """Return where the ranges of a generator file are kept."""
    return Path(path).with_suffix(".int8.json")


# --- measuring ----------------------------------------------------------------------------------


def measure(generator: GeneratorNetwork, pictures: Iterable[np.ndarray]) -> Ranges:
    """Measure the ranges of what goes into a generator's convolutions.

    Args:
        generator: of `inference.open_generator`, on the CPU.
        pictures: (H, W, 3) uint8, such as the generator will enlarge.
    """
    import torch

    found: Ranges = {}

    def look(name: str, value: torch.Tensor) -> None:
        values = value.flatten()
        outside = max(1, round(_OUTSIDE * len(values)))
        low = values.kthvalue(outside).values.item()
        high = values.kthvalue(len(values) + 1 - outside).values.item()
        before = found.get(name, (0.0, 0.0))  # 0 belongs to it: borders are filled with zeros
        found[name] = (min(low, before[0]), max(high, before[1]))

    hooks = []
    for name, layer in _inner_convolutions(generator):
        hooks.append(
            layer.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        )
    with torch.inference_mode():
        for picture in pictures:
            middle = np.ascontiguousarray(images.crop_centre(picture, SIDE))
            generator(torch.from_numpy(images.array_to_signed(middle)))
    for hook in hooks:
        hook.remove()
    return found


def _inner_convolutions(generator: Any) -> list[tuple[str, Any]]:
    """Return a generator's convolutions that are neither from nor to RGB, by name."""
    from torch import nn

    return [
        (name, layer)
        for name, layer in generator.named_modules()
        if isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) > 3
    ]


def write(path: str | Path, ranges: Ranges) -> None:
    """Write the ranges of a generator file beside it."""
    content = {"generator": files.sha256(path), "ranges": ranges}
    files.write_text(ranges_file(path), json.dumps(content, indent=1) + "\n")


def read(path: str | Path) -> Ranges:
    """Read the ranges of a generator file.

    Raises:
        UserError: there are none, or they are damaged or those of other weights.
    """
    place = ranges_file(path)
    how = f"make it with: python export_model.py --format int8 --weights {path} --images FOLDER"
    try:
        content = json.loads(place.read_text("utf-8"))
        ranges = {
            name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()
        }
        generator = content["generator"]
    except FileNotFoundError as error:
        raise cli.UserError(f"{place}: no such file, and int8 needs it; {how}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise cli.UserError(f"{place}: damaged; {how}") from error
    if generator != files.sha256(path):
        raise cli.UserError(f"{place}: made for other weights than {path}; {how}")
    if not all(-np.inf < low <= 0 <= high < np.inf and low < high for low, high in ranges.values()):
        raise cli.UserError(f"{place}: damaged; {how}")
    return ranges


# --- the model ----------------------------------------------------------------------------------


def quantised(model: Any, ranges: Ranges) -> Any:
    """Return a copy of an OpenVINO model with 8-bit integers where ranges are known."""
    opset = importlib.import_module("openvino.opset13")

    def rounded(value: Any, low: np.ndarray, high: np.ndarray, levels: int) -> Any:
        low, high = (opset.constant(bound.astype(np.float32)) for bound in (low, high))
        return opset.fake_quantize(value, low, high, low, high, levels)

    model = model.clone()
    for convolution in model.get_ordered_ops():
        if convolution.get_type_name() != "Convolution":
            continue
        # Such as __module.trunk.0.conv1/aten::_convolution/Convolution
        layer = convolution.get_friendly_name().partition("/")[0].removeprefix("__module.")
        if layer not in ranges:
            continue

        # Inputs: the levels include 0, exactly
        low, high = ranges[layer]
        step = (high - low) / (_LEVELS - 1)
        below = round(-low / step)  # levels
        least = np.full((1, 1, 1, 1), -below * step)
        most = np.full((1, 1, 1, 1), (_LEVELS - 1 - below) * step)
        value = rounded(convolution.input_value(0), least, most, _LEVELS)
        convolution.input(0).replace_source_output(value.output(0))

        # Weights, by output channel
        weights = convolution.input_value(1)
        largest = np.abs(weights.get_node().get_data()).max((1, 2, 3), keepdims=True)
        most = _WEIGHT_RANGE * np.maximum(largest, 1e-12)
        value = rounded(weights, -most, most, _WEIGHT_LEVELS)
        convolution.input(1).replace_source_output(value.output(0))
    model.validate_nodes_and_infer_types()
    return model
