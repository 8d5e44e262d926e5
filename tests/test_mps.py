"""The operators of a training step exist for Apple's MPS, by the table that PyTorch ships."""

import functools
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import torchgen
import yaml
from rehearsal import Record
from torch import nn

import generator_loss_functions
import model
import train


@functools.cache
def operators() -> dict[str, dict]:
    """PyTorch's list of operators, from which it is built, by name."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def exists_on_mps(name: str) -> bool:
    entry = operators()[name.removeprefix("aten::")]
    if "structured_delegate" in entry:
        entry = operators()[entry["structured_delegate"]]
    if "dispatch" not in entry:
        return True  # made of other operators
    keys = ", ".join(entry["dispatch"]).split(", ")
    return any(key == "MPS" or key.startswith("Composite") for key in keys)


def used_by_a_step(*words: str, precision: str = "fp32") -> set[str]:
    """The operators of an adversarial update, on CPU tensors but by other devices' paths."""
    common = ["--perceptual-weights", "random", "--device", "cpu", "--precision", "fp32"]
    common += ["--blocks", "1", "--ema", "0.9", "--grad-clip", "1"]
    args = train.get_args_parser().parse_args([*common, *words])
    train.options.resolve(args)
    args.precision = precision
    with (
        mock.patch.object(model, "is_trained_on_cpu", lambda _layer, _x: False),
        mock.patch.object(model.TailConv, "forward", nn.Conv2d.forward),
        mock.patch.object(train, "new_adam", lambda net: torch.optim.Adam(net.parameters())),
    ):
        models = train.Models(args)
        models.loss = train.new_loss(args, train.load_perceptual(args))
        models.loss.zoom = args.perceptual_zoom
        with Record("cpu") as record:
            side = models.discriminator.minimum_crop // 4 + 1
            lr = torch.rand(2, 3, side, side)
            train.adversarial_step(models, lr, torch.rand(2, 3, 4 * side, 4 * side))
            models.update_average()
    return set(record.operators)


ESRGAN = ["--discriminator", "unet", "--adversarial-loss", "relativistic", "--pixel-loss", "l1"]
TEXTURE = ["--perceptual", "squeezenet", "--grid-weight", "1", "--consistency-weight", "1"]


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("fp32", []),
        ("fp16", []),  # which adds casts and the gradient scaler
        ("fp32", ESRGAN + TEXTURE),
        ("fp32", ["--discriminator", "multiscale", "--perceptual", "vgg19"]),
    ],
)
def test_mps_has_all_operators_of_an_adversarial_step(precision, words):
    used = used_by_a_step(*words, precision=precision)
    assert {"aten::convolution_backward", "aten::_foreach_lerp_.Scalar"} <= used
    assert {name for name in used if not exists_on_mps(name)} == set()


def test_an_operator_that_mps_lacks_is_found(monkeypatch):
    def reduce_by_interpolation(image, upscale):
        size = [side // upscale for side in image.shape[-2:]]
        return F.interpolate(image, size, mode="bicubic", antialias=True)

    monkeypatch.setattr(generator_loss_functions, "reduce_bicubic", reduce_by_interpolation)
    used = used_by_a_step(*TEXTURE)
    missing = {name for name in used if not exists_on_mps(name)}
    assert missing == {"aten::_upsample_bicubic2d_aa_backward"}
