import numpy as np
import pytest
import torch
from conftest import run
from hypothesis import given, settings
from hypothesis import strategies as st

import inference
from model import Generator
from utils import images
from utils.device import resolve_device, resolve_precision


def new_generator(upscale: int = 4, blocks: int = 2) -> Generator:
    """A generator whose every layer matters: weights away from their zeros, statistics away from 0 and 1."""
    torch.manual_seed(0)
    generator = Generator(upscale, blocks)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return generator.eval().to(memory_format=torch.channels_last)


GENERATORS = {scale: new_generator(scale) for scale in (2, 3, 4)}


def test_the_whole_image_is_what_the_network_gives(astronaut):
    lr = astronaut[:20, :31]
    with torch.inference_mode():
        expected = images.to_array(images.signed_to_uint8(GENERATORS[4](images.uint8_to_signed(images.to_tensor(lr)))))
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


def test_a_halo_narrower_than_the_receptive_field_shows_seams(astronaut, monkeypatch):
    generator = new_generator()
    whole = inference.upscale(generator, astronaut[:64, :64], tile=0)
    monkeypatch.setattr(Generator, "halo", 2)
    assert (whole != inference.upscale(generator, astronaut[:64, :64], tile=16)).mean() > 1e-3


def test_when_memory_runs_out_the_tile_is_halved(astronaut, monkeypatch, capsys):
    generator, seen = new_generator(), []
    forward = Generator.forward

    def limited(self, lr):
        seen.append(lr.shape[-1])
        if lr.shape[-1] > 45:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return forward(self, lr)

    expected = inference.upscale(generator, astronaut[:64, :64], tile=16)
    monkeypatch.setattr(Generator, "forward", limited)
    assert np.array_equal(inference.upscale(generator, astronaut[:64, :64], tile=0), expected)
    assert seen[:2] == [64, 32 + generator.halo] and "tiles of 32" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_exhausted_memory(astronaut, monkeypatch):
    def broken(self, lr):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Generator, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        inference.upscale(new_generator(), astronaut[:64, :64], tile=0)


def test_devices_and_precisions():
    cpu = resolve_device("cpu")
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("auto", cpu) in ("fp32", "bf16")
    with pytest.raises(ValueError, match="fp16 is for GPUs"):
        resolve_precision("fp16", cpu)
    if not torch.cuda.is_available():
        assert resolve_device("auto").type in ("cpu", "mps")
        with pytest.raises(ValueError, match="'cuda' is not available"):
            resolve_device("cuda")


def test_bf16_is_close_to_fp32(astronaut):
    generator = new_generator()
    fp32, bf16 = (inference.upscale(generator, astronaut[:40, :40], precision=p).astype(float) for p in ("fp32", "bf16"))
    assert 10 * np.log10(255**2 / ((fp32 - bf16) ** 2).mean()) > 40


def test_memory_beyond_a_tile_is_less_than_8_bytes_an_output_pixel():
    taken = {megapixels: int(run("tests/enlarge_memory.py", megapixels).stdout) for megapixels in (1, 12)}
    assert taken[12] - taken[1] < 8 * 16 * 11_000_000
    assert taken[12] > 3 * 16 * 11_000_000 * 0.9  # the result itself: the measure does see memory
