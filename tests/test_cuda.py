"""What the other tests show on the CPU, on a GPU; skipped where there is none."""

import copy

import numpy as np
import pytest
import torch
from conftest import run
from test_cli_train import command, rows_of
from test_distributed import launched

import inference
import metrics
import train
from model import Generator
from utils import images
from utils.device import autocast

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (CUDA)")


def stepped(
    device: str, precision: str, *options: str, steps: int = 2
) -> tuple[train.Models, list[dict[str, float]]]:
    """A few adversarial updates on fixed data; the models and the values of each update."""
    words = ["--perceptual", "squeezenet", "--perceptual-weights", "random", "--blocks", "2"]
    words += ["--ema", "0.9", "--grid-weight", "100", "--seed", "3"]
    words += ["--device", device, "--precision", precision, *options]
    args = train.get_args_parser().parse_args(words)
    train.options.resolve(args)
    models = train.Models(args)
    models.loss = train.new_loss(args, train.load_perceptual(args)).to(models.device)
    for optimizer in (models.optimizer_g, models.optimizer_d):
        optimizer.param_groups[0]["lr"] = 1e-4
    data = torch.Generator().manual_seed(1)
    values = []
    for step in range(steps):
        lr = torch.rand(args.batch_size, 3, 12, 12, generator=data) * 2 - 1
        hr = torch.rand(args.batch_size, 3, 48, 48, generator=data) * 2 - 1
        models.loss.draw_view(np.random.default_rng(step))
        found = train.adversarial_step(models, lr.to(models.device), hr.to(models.device))
        models.update_average()
        values.append({name: value.item() for name, value in found.items()})
    return models, values


def weights_of(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().cpu().double().flatten() for weight in network.parameters()])


def test_a_step_in_fp32_is_the_cpus():
    ours, found = stepped("cuda", "fp32", "--batch-size", "4")
    theirs, expected = stepped("cpu", "fp32", "--batch-size", "4")
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    # There were two updates of 1e-4 each
    assert weights_of(ours.generator).allclose(weights_of(theirs.generator), atol=5e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_in_half_precision_is_close_to_fp32(precision):
    models, found = stepped("cuda", precision, "--batch-size", "4", steps=3)
    _, expected = stepped("cuda", "fp32", "--batch-size", "4", steps=3)
    for one, other in zip(found, expected, strict=True):
        for name in ("Loss_Pixel", "Loss_Perceptual", "Loss_D"):
            assert one[name] == pytest.approx(other[name], rel=0.05), name
    assert models.scaler.is_enabled() == (precision == "fp16")
    for parameter in models.generator.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()


def test_fp16_skips_an_update_whose_gradients_overflow():
    models, _ = stepped("cuda", "fp16", "--batch-size", "2", steps=1)
    before = weights_of(models.generator)
    assert models.scaler.get_scale() > 1
    models.scaler.update(2.0**60)
    models.loss.draw_view(np.random.default_rng(0))
    lr = torch.rand(2, 3, 12, 12, device=DEVICE)
    hr = torch.rand(2, 3, 48, 48, device=DEVICE)
    train.adversarial_step(models, lr, hr)
    assert models.scaler.get_scale() < 2.0**60
    assert torch.equal(weights_of(models.generator), before)


def test_compiled_steps_are_the_eager_ones():
    _, found = stepped("cuda", "fp32", "--batch-size", "4", "--compile")
    _, expected = stepped("cuda", "fp32", "--batch-size", "4")
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_ends_and_resumes(photos, tmp_path, precision):
    """Not bit for bit: cuDNN sums gradients in no fixed order. Nothing else may be lost."""
    options = ["--pretrain-epochs", 1, "--ema", 0.9, "--degradation", "photo"]
    options += ["--device", "cuda", "--precision", precision]
    run("train.py", *command(photos, tmp_path / "a", "--epochs", 2, *options))
    run("train.py", *command(photos, tmp_path / "b", "--epochs", 1, *options))
    done = run("train.py", *command(photos, tmp_path / "b", "--epochs", 2, *options))
    assert "resuming at epoch 3" in done.stdout
    assert "not bit-exact" not in done.stdout
    one = rows_of(tmp_path / "a")
    other = rows_of(tmp_path / "b")
    assert [row["Epoch"] for row in one] == [row["Epoch"] for row in other] == ["1", "2", "3"]
    for name in ("PSNR", "Loss_Pixel", "Learning_Rate"):
        expected = [float(row[name]) for row in other]
        assert [float(row[name]) for row in one] == pytest.approx(expected, rel=0.02), name


def test_a_run_of_the_gpu_goes_on_on_the_cpu(photos, tmp_path):
    run("train.py", *command(photos, tmp_path, "--epochs", 1, "--device", "cuda"))
    done = run("train.py", *command(photos, tmp_path, "--epochs", 2))
    assert "not bit-exact" in done.stdout
    assert len(rows_of(tmp_path)) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_tiles_give_the_result_of_the_whole_image(astronaut, precision):
    torch.manual_seed(0)
    generator = inference.prepared(Generator(4, 2))
    generator.to(device=DEVICE, memory_format=torch.channels_last)
    lr = astronaut[:150, :170]
    whole = inference.upscale(generator, lr, 0, precision).astype(int)
    tiled = inference.upscale(generator, lr, 64, precision).astype(int)
    assert np.abs(whole - tiled).max() <= 1
    on_cpu = inference.upscale(copy.deepcopy(generator).to("cpu"), lr, 0, "fp32").astype(int)
    assert np.abs(whole - on_cpu).max() <= (1 if precision == "fp32" else 4)


def test_metrics_are_the_cpus(astronaut):
    hr = images.to_tensor(astronaut[:200, :240])
    sr = images.to_tensor(images.upscale_bicubic(images.downscale(astronaut[:200, :240], 4), 4))

    def measured(sr, hr):
        y = metrics.psnr_ssim_y(images.uint8_to_unit(sr), images.uint8_to_unit(hr), 4)
        texture = metrics.beyond_psnr(sr, hr, 4, torch.nn.ModuleDict())
        return [*metrics.psnr_ssim_rgb(sr, hr), *map(float, y), *texture.values()]

    expected = measured(sr, hr)
    torch.backends.cuda.matmul.allow_tf32 = True  # must not matter, nor must autocast
    torch.backends.cudnn.allow_tf32 = True
    with autocast(DEVICE, "bf16"):
        found = measured(sr.to(DEVICE), hr.to(DEVICE))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_leave_one_run(photos, tmp_path):
    options = ["--batch-size", 4, "--perceptual-weight", 0, "--device", "cuda"]
    arguments = command(photos, tmp_path / "out", *options, "--epochs", 2)
    first, second = launched(2, "train.py", *arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert len(rows_of(tmp_path / "out")) == 2


def test_the_same_command_on_a_finished_run_changes_nothing(photos, tmp_path):
    arguments = command(photos, tmp_path / "a", "--epochs", 1, "--device", "cuda")
    run("train.py", *arguments)
    last = tmp_path / "a" / "checkpoints" / "last.pth"
    before = last.read_bytes()
    assert "finished" in run("train.py", *arguments).stdout
    assert last.read_bytes() == before
