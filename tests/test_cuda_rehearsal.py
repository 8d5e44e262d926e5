"""What can be known about a GPU without one: devices, types and waiting (see `rehearsal.py`)."""

import json
from unittest import mock

import pytest
import torch
from conftest import run
from rehearsal import FAULTS, PRECISIONS, STEPS, Record
from torch import nn

import model
import train


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    done = run("tests/rehearsal.py", status=None)
    if "table of device guards" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def waits_of(case: dict) -> list[str]:
    assert "error" not in case, case["error"]
    return case["waits"]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_stays_on_the_gpu_and_never_waits_for_it(found, step):
    assert waits_of(found[step]) == []


@pytest.mark.parametrize("adam", ["fused", "unfused"])
def test_a_resumed_run_never_waits_either(found, adam):
    """In fp16, an unfused Adam asks whether the update overflowed."""
    assert waits_of(found[f"a run resumed from {adam} Adam"]) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_enlarging_waits_once_for_each_copy_and_for_the_check_of_the_result(found, precision):
    tile = ["copies to cuda", "reads a value", "copies to cpu"]
    expected = [f"inference.py: enlarge {wait}" for wait in tile] * 4
    assert waits_of(found[f"enlarging in {precision}"]) == expected


def test_validation_waits_only_for_images_and_figures(found):
    assert set(waits_of(found["validation"])) == {
        "inference.py: enlarge copies to cuda",
        "inference.py: enlarge reads a value",
        "inference.py: enlarge copies to cpu",
        "validation.py: validate copies to cuda",
        "metrics.py: psnr_ssim_rgb reads a value",
        "metrics.py: beyond_psnr reads a value",
        "metrics.py: texture reads a value",
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_step_is_found(found, fault):
    case = found[f"a step that {fault}"]
    errors = {"picks by a mask": "DynamicOutputShape", "mixes devices": "DeviceMismatch"}
    if fault in errors:
        assert errors[fault] in case["error"]
    else:
        fault = fault.replace("asks a question", "reads a value")
        assert set(waits_of(case)) == {f"train.py: adversarial_step {fault}"}


# --- backward passes, on the CPU ----------------------------------------------------------------


def reads_of(words: list[str]) -> list[str]:
    """The places of an update that read a value: on the CPU, but by other devices' paths."""
    small = ["--blocks", "1", "--perceptual-weights", "random", "--ema", "0.9", "--grad-clip", "1"]
    small += ["--device", "cpu", "--precision", "fp32"]
    args = train.get_args_parser().parse_args([*small, *words])
    train.options.resolve(args)
    models = train.Models(args)
    models.loss = train.new_loss(args, train.load_perceptual(args))
    models.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with (
        mock.patch.object(model, "is_trained_on_cpu", lambda _layer, _x: False),
        mock.patch.object(model.TailConv, "forward", nn.Conv2d.forward),
        Record("cpu") as record,
    ):
        train.adversarial_step(models, torch.rand(2, 3, 18, 18), torch.rand(2, 3, 72, 72))
    return record.waits


ESRGAN = ["--discriminator", "unet", "--adversarial-loss", "relativistic"]
TEXTURE = ["--perceptual", "squeezenet", "--grid-weight", "1", "--consistency-weight", "1"]


@pytest.mark.parametrize(
    "words", [[], ESRGAN + TEXTURE, ["--discriminator", "multiscale", "--perceptual", "vgg19"]]
)
def test_a_backward_pass_reads_no_value(words):
    assert reads_of(words) == []


def test_a_backward_pass_that_reads_a_value_is_found(monkeypatch):
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * bool(gradient.isfinite().all())

    sound = train.GeneratorLoss.viewed
    monkeypatch.setattr(
        train.GeneratorLoss, "viewed", lambda self, image: Reads.apply(sound(self, image))
    )
    assert reads_of([]) == ["train.py: adversarial_step reads a value"]
