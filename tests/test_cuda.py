"""What the other tests show on the CPU, on a GPU.

The tests of computations also run on the CPU, once as they are and then with faults put into the
device's side, which they have to notice.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT, quick_in, run
from test_cli_train import command, rows_of
from test_distributed import launched
from torch import nn

import inference
import metrics
import train
from model import Generator
from utils import files, filters, generator_file, images
from utils.device import autocast

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (CUDA)")


def with_faults(
    *faults: Callable, precisions: tuple[str, ...] = ("fp32",), gpu_only: tuple[str, ...] = ()
) -> pytest.MarkDecorator:
    """Run a test on the GPU, on the CPU, and on the CPU with each of the faults.

    Args:
        faults: what is put into the device's side.
        precisions: those of the test; the faults are tried in the first.
        gpu_only: those in which it would take too long on a CPU.
    """
    cases = [pytest.param("cuda", one, None, marks=needs_gpu) for one in precisions]
    cases += [pytest.param("cpu", one, None) for one in precisions if one not in gpu_only]
    cases += [pytest.param("cpu", precisions[0], fault, id=fault.__name__) for fault in faults]
    return pytest.mark.parametrize(("device", "precision", "fault"), cases)


def noticed(fault: object) -> contextlib.AbstractContextManager:
    """What follows has to fail if there is a fault."""
    return pytest.raises(AssertionError) if fault else contextlib.nullcontext()


# --- steps --------------------------------------------------------------------------------------


@dataclass
class Steps:
    """What a few adversarial updates from a trained generator leave."""

    models: train.Models
    values: list[dict[str, float]]  # of each update
    gradients: dict[str, torch.Tensor]  # of each network, from the first update
    moved: torch.Tensor  # how far the generator's weights went


def stepped(
    device: str,
    precision: str,
    *options: str,
    photograph: np.ndarray,
    steps: int = 2,
    fault: Callable[[train.Models], object] | None = None,
) -> Steps:
    words = ["--perceptual", "squeezenet", "--perceptual-weights", "random", "--blocks", "16"]
    words += ["--ema", "0.9", "--grid-weight", "100", "--consistency-weight", "100", "--seed", "3"]
    words += ["--device", device, "--precision", "fp32", "--batch-size", "1"]
    words += ["--no-compile", *options]
    args = train.get_args_parser().parse_args(words)
    train.options.resolve(args)
    args.precision = precision  # train.py refuses fp16 on a CPU
    models = train.Models(args, generator_file.load(ROOT / "weights" / "srresnet_x4.pth"))
    models.loss = train.new_loss(args, train.load_perceptual(args)).to(models.device)
    for optimizer in (models.optimizer_g, models.optimizer_d):
        optimizer.param_groups[0]["lr"] = 1e-4
    if fault:
        fault(models)
    before = weights_of(models.generator)
    values = []
    gradients = {}
    for step in range(steps):
        crops = [photograph[64 * step :, 48 * n :][:48, :48] for n in range(args.batch_size)]
        lr = torch.cat([images.to_tensor(images.downscale(crop, 4)) for crop in crops])
        hr = torch.cat([images.to_tensor(crop) for crop in crops])
        models.loss.draw_view(np.random.default_rng(step))
        lr = images.uint8_to_signed(lr.to(models.device))
        hr = images.uint8_to_signed(hr.to(models.device))
        with quick_in(precision):
            found = train.adversarial_step(models, lr, hr)
        models.update_average()
        values.append({name: value.item() for name, value in found.items()})
        if step == 0:
            for name in ("generator", "discriminator"):
                network = getattr(models, name)
                gradients[name] = flat([weight.grad for weight in network.parameters()])
    return Steps(models, values, gradients, weights_of(models.generator) - before)


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])


def weights_of(network: nn.Module) -> torch.Tensor:
    return flat(list(network.parameters()))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def assert_same_values(ours: Steps, theirs: Steps, tolerance: float) -> None:
    for one, other in zip(ours.values, theirs.values, strict=True):
        assert one == pytest.approx(other, rel=tolerance)


def weaken_a_block(models: train.Models) -> None:
    with torch.no_grad():
        models.generator.trunk[7].bn2.weight.mul_(0.8)


def lose_a_gradient(models: train.Models) -> None:
    models.generator.trunk[15].register_full_backward_hook(
        lambda _block, _inputs, outputs: (outputs[0] * 0.5,)
    )


def move_twice_as_far(models: train.Models) -> None:
    models.optimizer_g.param_groups[0]["lr"] *= 2


@with_faults(weaken_a_block, lose_a_gradient, move_twice_as_far)
def test_a_step_in_fp32_is_the_cpus(device, precision, fault, astronaut):
    ours = stepped(device, precision, "--batch-size", "2", photograph=astronaut, fault=fault)
    theirs = stepped("cpu", "fp32", "--batch-size", "2", photograph=astronaut)
    with noticed(fault):
        assert_same_values(ours, theirs, 5e-3)
        for name, gradient in theirs.gradients.items():
            assert distance(ours.gradients[name], gradient) < 2e-2, name
        # Adam moves a weight whose gradient is almost 0 by its sign, which rounding may change
        assert distance(ours.moved, theirs.moved) < 0.3


# The largest relative errors of the losses, and of the generator's gradient
TOLERANCES = {"fp16": (0.02, 0.05), "bf16": (0.05, 0.6)}


@with_faults(weaken_a_block, lose_a_gradient, precisions=("fp16", "bf16"))
def test_a_step_in_half_precision_is_close_to_fp32(device, precision, fault, astronaut):
    ours = stepped(device, precision, photograph=astronaut, steps=1, fault=fault)
    theirs = stepped(device, "fp32", photograph=astronaut, steps=1)
    assert ours.models.scaler.is_enabled() == (precision == "fp16")
    for parameter in ours.models.generator.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
    of_losses, of_gradient = TOLERANCES[precision]
    with noticed(fault):
        for name in ("Loss_Pixel", "Loss_Perceptual", "Loss_TV", "Loss_D"):
            expected = pytest.approx(theirs.values[0][name], rel=of_losses)
            assert ours.values[0][name] == expected, name
        error = distance(ours.gradients["generator"], theirs.gradients["generator"])
        assert error < of_gradient


def update_regardless(models: train.Models) -> None:
    models.scaler.step = lambda optimizer: optimizer.step()


@with_faults(update_regardless, precisions=("fp16",))
def test_fp16_skips_an_update_whose_gradients_overflow(device, precision, fault, astronaut):
    models = stepped(device, precision, photograph=astronaut, steps=1).models
    before = weights_of(models.generator)
    assert models.scaler.get_scale() > 1
    models.scaler.update(2.0**60)
    if fault:
        fault(models)
    lr = torch.rand(2, 3, 12, 12, device=device)
    hr = torch.rand(2, 3, 48, 48, device=device)
    with noticed(fault):
        with quick_in(precision):
            train.adversarial_step(models, lr, hr)
        assert models.scaler.get_scale() == 2.0**59
        assert torch.equal(weights_of(models.generator), before)


@needs_gpu
def test_compiled_steps_are_the_eager_ones(astronaut):
    ours = stepped("cuda", "fp32", "--compile", photograph=astronaut)
    assert_same_values(ours, stepped("cuda", "fp32", photograph=astronaut), 5e-3)


# --- runs ---------------------------------------------------------------------------------------


def lose_adam(state: dict) -> None:
    state["models"]["optimizer_g"]["state"].clear()


def lose_the_average(state: dict) -> None:
    state["models"]["ema"] = {
        f"module.{name}": tensor for name, tensor in state["models"]["generator"].items()
    } | {"n_averaged": torch.tensor(0)}


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        *(pytest.param("cuda", one, marks=needs_gpu) for one in ("fp32", "bf16", "fp16")),
        ("cpu", "fp32"),
    ],
)
def test_a_run_ends_and_resumes(device, precision, photos, tmp_path):
    """Not bit for bit: cuDNN sums gradients in no fixed order. Nothing else may be lost."""
    generator = Generator(4, 1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    generator_file.save(tmp_path / "start.pth", generator)
    options = ["--init", tmp_path / "start.pth", "--pretrain-epochs", 1, "--ema", 0.9]
    options += ["--degradation", "photo", "--perceptual-weight", 0, "--learning-rate", 1e-3]
    options += ["--device", device, "--precision", precision, "--no-compile"]

    def moved(folder: Path) -> torch.Tensor:
        last = generator_file.load(folder / "checkpoints" / "generator_last.pth")
        return weights_of(last) - weights_of(generator)

    whole = tmp_path / "whole"
    run("train.py", *command(photos, whole, "--epochs", 2, *options))
    expected = rows_of(whole)
    run("train.py", *command(photos, tmp_path / "stopped", "--epochs", 1, *options))
    for fault in (None, lose_adam, lose_the_average):
        out = tmp_path / (fault.__name__ if fault else "resumed")
        shutil.copytree(tmp_path / "stopped", out)
        if fault:
            last = out / "checkpoints" / "last.pth"
            state = files.load_tensors(last)
            fault(state)
            files.save_tensors(last, state)
        done = run("train.py", *command(photos, out, "--epochs", 2, *options))
        assert "resuming at epoch 3" in done.stdout
        assert "not bit-exact" not in done.stdout
        rows = rows_of(out)
        assert [row["Epoch"] for row in rows] == ["1", "2", "3"]
        with noticed(fault):
            for name in ("PSNR", "Loss_Pixel", "Learning_Rate"):
                values = [float(row[name]) for row in expected]
                assert [float(row[name]) for row in rows] == pytest.approx(values, rel=0.02), name
            assert distance(moved(out), moved(whole)) < 0.1


@needs_gpu
def test_a_run_of_the_gpu_goes_on_on_the_cpu(photos, tmp_path):
    run("train.py", *command(photos, tmp_path, "--epochs", 1, "--device", "cuda"))
    done = run("train.py", *command(photos, tmp_path, "--epochs", 2))
    assert "not bit-exact" in done.stdout
    assert len(rows_of(tmp_path)) == 2


@needs_gpu
def test_the_same_command_on_a_finished_run_changes_nothing(photos, tmp_path):
    arguments = command(photos, tmp_path / "a", "--epochs", 1, "--device", "cuda")
    run("train.py", *arguments)
    last = tmp_path / "a" / "checkpoints" / "last.pth"
    before = last.read_bytes()
    assert "finished" in run("train.py", *arguments).stdout
    assert last.read_bytes() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_leave_one_run(photos, tmp_path):
    options = ["--batch-size", 4, "--perceptual-weight", 0, "--device", "cuda"]
    arguments = command(photos, tmp_path / "out", *options, "--epochs", 2)
    first, second = launched(2, "train.py", *arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert len(rows_of(tmp_path / "out")) == 2


# --- enlarging and measuring --------------------------------------------------------------------


def forget_the_halo():
    return mock.patch.object(Generator, "halo", 0)


def round_the_result():
    sound = images.signed_to_uint8
    return mock.patch.object(images, "signed_to_uint8", lambda image: sound(image) // 8 * 8)


@with_faults(
    forget_the_halo, round_the_result, precisions=("fp32", "bf16", "fp16"), gpu_only=("fp16",)
)
def test_tiles_give_the_result_of_the_whole_image(device, precision, fault, astronaut):
    on_cpu = inference.open_generator(
        ROOT / "weights" / "srresnet_x4.pth", device=torch.device("cpu")
    )
    generator = copy.deepcopy(on_cpu).to(device=torch.device(device))
    lr = astronaut[100:150, 200:256]
    expected = inference.upscale(on_cpu, lr, 0, "fp32").astype(int)
    with fault() if fault else contextlib.nullcontext():
        whole = inference.upscale(generator, lr, 0, precision).astype(int)
        tiled = inference.upscale(generator, lr, 28, precision).astype(int)
    with noticed(fault):
        assert np.abs(whole - tiled).max() <= 1
        assert np.abs(whole - expected).max() <= (1 if precision == "fp32" else 4)


def blur_in_bf16():
    sound = filters.convolved
    return mock.patch.object(
        filters, "convolved", lambda image, window: sound(image.bfloat16(), window).to(image.dtype)
    )


@with_faults(blur_in_bf16, precisions=("bf16",))
def test_metrics_are_the_cpus(device, precision, fault, astronaut):
    hr = images.to_tensor(astronaut[:200, :240])
    sr = images.to_tensor(images.upscale_bicubic(images.downscale(astronaut[:200, :240], 4), 4))

    def measured(sr, hr):
        y = metrics.psnr_ssim_y(images.uint8_to_unit(sr), images.uint8_to_unit(hr), 4)
        texture = metrics.beyond_psnr(sr, hr, 4, nn.ModuleDict())
        return [*metrics.psnr_ssim_rgb(sr, hr), *map(float, y), *texture.values()]

    expected = measured(sr, hr)
    torch.backends.cuda.matmul.allow_tf32 = True  # must not matter, nor must autocast
    torch.backends.cudnn.allow_tf32 = True
    place = torch.device(device)
    with autocast(place, precision), fault() if fault else contextlib.nullcontext():
        found = measured(sr.to(place), hr.to(place))
    with noticed(fault):
        assert found == pytest.approx(expected, abs=1e-4)
