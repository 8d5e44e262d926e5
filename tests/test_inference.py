import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run, the_error
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import inference
from esrgan import RRDBGenerator
from model import Generator
from utils import cli, generator_file, images, weights

CPU = torch.device("cpu")


def new_generator(upscale: int = 4, blocks: int = 2) -> Generator:
    """A generator whose every layer matters: no weight at its zero, no statistic at 0 or 1."""
    torch.manual_seed(0)
    generator = Generator(upscale, blocks)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return generator.eval().to(memory_format=torch.channels_last)


def trained(generator: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The generator with random weights and statistics and a strong contrast, as if trained."""
    torch.manual_seed(seed)
    for name, tensor in generator.state_dict().items():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.copy_(0.05 * torch.randn(tensor.shape))
        else:
            tensor.fill_(seed)
    return generator.eval()


GENERATORS = {scale: new_generator(scale) for scale in (2, 3, 4)}


def test_the_whole_image_is_what_the_network_gives(astronaut):
    lr = astronaut[:20, :31]
    with torch.inference_mode():
        sr = GENERATORS[4](images.uint8_to_signed(images.to_tensor(lr)))
    expected = images.to_array(images.signed_to_uint8(sr))
    assert np.array_equal(inference.upscale(GENERATORS[4], lr), expected)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([2, 3, 4]), st.integers(7, 40))
def test_tiles_give_the_result_of_the_whole_image(astronaut, height, width, scale, tile):
    lr = astronaut[100 : 100 + height, 100 : 100 + width]
    whole = inference.upscale(GENERATORS[scale], lr, tile=0)
    assert whole.shape == (height * scale, width * scale, 3)
    tiled = inference.upscale(GENERATORS[scale], lr, tile=tile)
    assert np.abs(whole.astype(int) - tiled).max() <= 1  # rounding of sums taken in another order
    assert (whole != tiled).mean() < 1e-3


@pytest.mark.parametrize(
    ("scale", "height", "width", "tile"), [(2, 20, 50, 16), (3, 27, 30, 20), (4, 20, 33, 12)]
)
def test_tiles_give_the_result_of_the_whole_image_in_bf16(astronaut, scale, height, width, tile):
    lr = astronaut[:height, :width]
    whole = inference.upscale(GENERATORS[scale], lr, 0, "bf16").astype(int)
    tiled = inference.upscale(GENERATORS[scale], lr, tile, "bf16").astype(int)
    assert np.abs(whole - tiled).max() <= 2  # 0 where the kernels sum in one order at all sizes
    assert (whole != tiled).mean() < 0.01


@pytest.mark.parametrize(("precision", "levels"), [("fp32", 1), ("bf16", 6)])
def test_tiles_of_esrgans_generator_are_close_to_the_whole_image(astronaut, precision, levels):
    torch.manual_seed(0)
    generator = RRDBGenerator(blocks=8, features=16, growth=8).eval()
    for parameter in generator.body.parameters():
        parameter.data *= 12  # every block matters
    generator.conv_last.weight.data *= 10  # contrast
    generator.conv_last.bias.data += 0.4
    lr = astronaut[200:206, 100:220]  # as wide as the receptive field, which exceeds the halo
    whole = inference.upscale(generator, lr, 0, precision).astype(int)
    tiled = inference.upscale(generator, lr, 40, precision).astype(int)
    assert whole.std() > 20
    assert np.abs(whole - tiled).max() <= levels


def test_every_tile_is_reported_and_what_the_report_raises_ends_the_work(astronaut):
    lr = astronaut[:20, :30]
    seen = []
    passes = []
    generator = new_generator()
    generator.register_forward_pre_hook(lambda *_: passes.append(1))
    inference.upscale(generator, lr, 12, on_tile=lambda *counts: seen.append(counts))
    assert seen == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert len(passes) == 6

    def stop(done, total):
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        inference.upscale(generator, lr, 12, on_tile=stop)
    assert len(passes) == 6 + 2


def test_a_halo_narrower_than_the_receptive_field_shows_seams(astronaut, monkeypatch):
    generator = new_generator()
    whole = inference.upscale(generator, astronaut[:64, :64], tile=0)
    monkeypatch.setattr(Generator, "halo", 2)
    assert (whole != inference.upscale(generator, astronaut[:64, :64], tile=16)).mean() > 1e-3


@pytest.mark.parametrize(
    "make", [lambda: Generator(2, 2), lambda: RRDBGenerator(4, 1, 8, 4)], ids=["srresnet", "rrdb"]
)
def test_a_blend_is_the_mean_of_the_files_tensors_weighted_by_texture(tmp_path, make):
    first = tmp_path / "a.pth"
    second = tmp_path / "b.safetensors"
    generator_file.save(first, trained(make(), 0))
    generator_file.save(second, trained(make(), 1))
    lr = torch.rand(1, 3, 12, 10) * 2 - 1
    with torch.inference_mode():
        alone = [inference.open_generator(file, CPU)(lr) for file in (first, second)]

        def blend(texture):
            return inference.open_generator(first, CPU, second, texture)(lr)

        assert torch.equal(blend(0.0), alone[0])
        assert torch.equal(blend(1.0), alone[1])
        other_state = trained(make(), 1).state_dict()
        for texture in (0.3, 0.75):
            mean = {}
            for name, tensor in trained(make(), 0).state_dict().items():
                mean[name] = (1 - texture) * tensor.double() + texture * other_state[name].double()
            expected = make().eval()
            expected.load_state_dict(mean)
            assert torch.allclose(blend(texture), expected(lr), atol=1e-5)
            for result in alone:  # far from either end
                assert (blend(texture) - result).abs().max() > 1e-2


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_a_blend_includes_the_running_statistics(tmp_path, statistic):
    generator = trained(Generator(2, 1), 0)
    for name, value in (("a", 0.5), ("b", 1.5), ("between", 0.75)):
        for module in generator.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                getattr(module, statistic).fill_(value)
        generator_file.save(tmp_path / f"{name}.pth", generator)
    blended = inference.open_generator(tmp_path / "a.pth", CPU, tmp_path / "b.pth", 0.25)
    expected = inference.open_generator(tmp_path / "between.pth", CPU)
    for ours, theirs in zip(blended.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("other", [Generator(4, 1), Generator(2, 2), RRDBGenerator(4, 1, 8, 4)])
def test_files_of_two_architectures_are_not_blended(tmp_path, other):
    generator_file.save(tmp_path / "a.pth", Generator(2, 1))
    generator_file.save(tmp_path / "b.pth", other)
    other_holds = generator_file.architecture_text(other.architecture)
    held = (
        r"a\.pth holds generator srresnet, upscale 2, blocks 1 and .*"
        rf"b\.pth holds {other_holds};"
    )
    with pytest.raises(cli.UserError, match=held):
        inference.open_generator(tmp_path / "a.pth", CPU, tmp_path / "b.pth", 0.0)


@pytest.mark.parametrize("wrap", [lambda engine: engine, inference.Ensemble])
def test_tiles_are_multiples_of_what_the_engine_wants_even_when_memory_runs_out(wrap, capsys):
    torch_engine = inference.TorchEngine(Generator(2, 1).eval())
    torch_engine.tile_multiple = 48
    sides = []

    def exhausted(patch, *_):
        sides.append(patch.shape[0])
        raise MemoryError

    torch_engine.enlarge = exhausted
    engine = wrap(torch_engine)
    engine.halo = 0
    with pytest.raises(MemoryError):
        inference.upscale(engine, np.zeros((400, 400, 3), np.uint8), tile=250)
    assert sides == [240, 96, 48]
    assert "continuing with tiles of 48 pixels" in capsys.readouterr().err


def chosen(*options, **default) -> weights.Weights:
    parser = cli.ArgumentParser()
    weights.add_weights_option(parser, **default)
    return weights.chosen_weights(parser.parse_args([str(option) for option in options]))


def test_pictures_benchmarks_and_blends_have_defaults_of_their_own():
    assert chosen() == weights.Weights(weights.weights_file("photo_x4"))
    assert chosen().stem == "photo_x4"
    assert chosen(default=weights.FAITHFUL).stem == "srresnet_x4"
    assert chosen("--weights", "srgan_x4", default=weights.FAITHFUL).stem == "srgan_x4"
    a, b = (weights.WEIGHTS_FOLDER / f"{name}.pth" for name in ("srresnet_x4", "srgan_x4"))
    assert chosen("--texture", 0.25) == weights.Weights(a, b, 0.25)
    assert chosen("--texture", 0.25).stem == "srresnet_x4_srgan_x4_0.25"
    photo = tuple(weights.WEIGHTS_FOLDER / f"{name}.pth" for name in ("photo_x4_pixel", "photo_x4"))
    for name, pair in (
        ("photo_x4", photo),
        (os.path.relpath(photo[1]), photo),
        ("photo_x4_pixel", photo),
        ("srgan_x4", (a, b)),
        ("mine/other.pth", (Path("mine/other.pth"), b)),
    ):
        assert chosen("--weights", name, "--texture", 0.5) == weights.Weights(*pair, 0.5)
    named = chosen("--texture", 0, "--weights", "srgan_x4", "--texture-weights", "mine/other.pth")
    assert named == weights.Weights(weights.weights_file("srgan_x4"), Path("mine/other.pth"), 0.0)
    with pytest.raises(cli.UserError, match="--texture-weights needs --texture T"):
        chosen("--texture-weights", "srgan_x4")


def test_a_link_to_itself_is_no_file_of_a_pair(tmp_path):
    loop = tmp_path / "loop.pth"
    loop.symlink_to(loop)
    blend = chosen("--weights", loop, "--texture", 0.5)
    assert blend == weights.Weights(loop, weights.TEXTURED, 0.5)


@pytest.mark.parametrize("texture", ["-0.1", "1.0001", "nan", "inf", "half", ""])
def test_a_texture_outside_0_to_1_is_refused(texture, capsys):
    with pytest.raises(SystemExit, match="2"):
        chosen("--texture", texture)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"argument --texture: {texture!r} is not a number from 0 to 1" in error


def test_a_benchmark_of_a_blend_has_a_folder_of_its_own(tmp_path, astronaut):
    (tmp_path / "hr").mkdir()
    Image.fromarray(astronaut[:24, :32]).save(tmp_path / "hr" / "a.png")
    first = tmp_path / "a.pth"
    second = tmp_path / "b.pth"
    generator_file.save(first, trained(Generator(2, 1), 0))
    generator_file.save(second, trained(Generator(2, 1), 1))
    script = ["test_benchmark.py", "--hr", "hr", "--device", "cpu"]
    blend = ["--texture", 0.3, "--weights", first, "--texture-weights", second]
    run(*script, *blend, cwd=tmp_path)
    sr = images.read_picture(tmp_path / "results" / "benchmark_a_b_0.3_hr" / "a_x2.png").rgb
    generator = inference.open_generator(first, CPU, second, 0.3)
    expected = inference.upscale(generator, images.downscale(astronaut[:24, :32], 2))
    assert np.abs(sr.astype(int) - expected).max() <= 1
    error = the_error(run(*script, "--sr", "hr", "--texture", 0, cwd=tmp_path, status=None))
    assert "cannot be combined with --sr" in error
    assert "nor can --texture" in error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
    ids=["cpu", "cuda", "no engine", "cudnn"],
)
def test_when_memory_runs_out_the_tile_is_halved(astronaut, monkeypatch, capsys, error):
    lr = astronaut[:64, :64]
    generator = new_generator()
    seen = []
    forward = Generator.forward

    def limited(self, lr):
        seen.append(lr.shape[-1])
        if lr.shape[-1] > 45:
            raise error
        return forward(self, lr)

    expected = inference.upscale(generator, lr, tile=16)
    monkeypatch.setattr(Generator, "forward", limited)
    assert np.array_equal(inference.upscale(generator, lr, tile=0), expected)
    assert seen[:2] == [64, 32 + generator.halo]
    assert "tiles of 32" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_exhausted_memory(astronaut, monkeypatch):
    def broken(self, lr):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Generator, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        inference.upscale(new_generator(), astronaut[:64, :64], tile=0)


class Overflowing(torch.nn.Module):
    """Repeats pixels, but has a value that is not finite under autocast, or in fp32 as well."""

    upscale, halo = 2, 0

    def __init__(self, in_fp32_too: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.in_fp32_too = in_fp32_too
        self.attempts = []

    def forward(self, lr):
        self.attempts.append("bf16" if torch.is_autocast_enabled("cpu") else "fp32")
        result = torch.nn.functional.interpolate(lr, scale_factor=2)
        if self.attempts[-1] == "bf16" or self.in_fp32_too:
            result[..., -1, -1] = float("nan")
        return result


def test_a_tile_that_is_not_finite_is_computed_again_in_fp32(astronaut, capsys):
    generator = Overflowing(in_fp32_too=False)
    inference._say_once.cache_clear()
    sr = inference.upscale(generator, astronaut[:16, :32], 16, "bf16")
    assert np.array_equal(sr, astronaut[:16, :32].repeat(2, 0).repeat(2, 1))
    assert generator.attempts == ["bf16", "fp32"] * 2
    assert capsys.readouterr().err.count("bf16 produces values that are not finite") == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_result_that_is_not_finite_is_an_error_instead_of_black(astronaut, precision):
    with pytest.raises(cli.RunError, match="not finite, even in fp32"):
        inference.upscale(Overflowing(in_fp32_too=True), astronaut[:8, :8], precision=precision)


def test_a_generator_that_overflows_leaves_no_picture(astronaut, tmp_path):
    Image.fromarray(astronaut[:8, :8]).save(tmp_path / "a.png")
    generator = new_generator()
    generator.tail.weight.data *= 1e38
    generator.upsample[0].conv.weight.data *= 1e38
    generator_file.save(tmp_path / "weights.pth", generator)
    options = ["--weights", tmp_path / "weights.pth", "--precision", "fp32"]
    done = run("test_image.py", tmp_path / "a.png", *options, status=1)
    assert "values that are not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a_x4.png").exists()


@pytest.mark.parametrize(
    "generator",
    [Generator(4, 8), Generator(2, 16), RRDBGenerator(blocks=1)],
    ids=lambda g: f"{g.halo}",
)
def test_little_free_memory_makes_small_tiles_but_never_explodes_the_work(generator):
    free_bytes = [0, 100_000_000, 2 * 2**30, 8 * 2**30, 10**12, None]
    sides = [inference._tile_for_memory(generator, free) for free in free_bytes]
    assert sides == sorted(sides)
    assert sides[-1] > 2 * sides[0]
    assert (1 + 2 * generator.halo / sides[0]) ** 2 < 3
    assert sides[2] ** 2 * generator.upscale**2 * 64 * 4 * 4 <= 2**30  # half of what is free


def test_the_automatic_tile_is_that_of_the_free_memory(astronaut, monkeypatch):
    generator = new_generator()
    seen = []
    generator.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[-1]))
    smallest = (inference._LEAST_HALOS + 2) * generator.halo
    for free, largest in ((0, smallest), (2**33, 128)):
        monkeypatch.setattr(inference.TorchEngine, "free_memory", lambda _engine, free=free: free)
        seen.clear()
        inference.upscale(generator, astronaut[:64, :128])
        assert max(seen) == largest


def test_bf16_is_close_to_fp32(astronaut):
    generator = new_generator()
    lr = astronaut[:40, :40]
    fp32 = inference.upscale(generator, lr, precision="fp32").astype(float)
    bf16 = inference.upscale(generator, lr, precision="bf16").astype(float)
    assert 10 * np.log10(255**2 / ((fp32 - bf16) ** 2).mean()) > 40


def test_memory_beyond_a_tile_is_less_than_8_bytes_per_output_pixel():
    one, four = (int(run("tests/enlarge_memory.py", megapixels).stdout) for megapixels in (1, 4))
    assert four - one < 8 * 16 * 3_000_000
    assert four > 3 * 16 * 3_000_000 * 0.9  # the result itself: the measure does see memory


def test_alpha_is_enlarged_by_the_generator_and_stays_exact_where_it_is_flat():
    rows, columns = np.mgrid[:160, :200]
    inside = np.hypot(rows - 80, (columns - 100) / 1.2) < 55
    hr = (255 * (inside ^ (np.abs(columns - rows) < 9))).astype(np.uint8)
    alpha = images.resize_bicubic(hr, 50, 40)
    rgb = np.full((40, 50, 3), (20, 90, 200), np.uint8)
    generator = inference.open_generator(weights.FAITHFUL, CPU)
    result = inference.upscale_picture(generator, images.Picture(rgb, alpha)).alpha
    bicubic = images.upscale_bicubic(alpha, 4)
    error, of_bicubic = (np.square(a.astype(float) - hr).mean() for a in (result, bicubic))
    assert error < 0.7 * of_bicubic
    assert (result[152:, 180:] == 0).all() and (result[48:60, 100:112] == 255).all()
