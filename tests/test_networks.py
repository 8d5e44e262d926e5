"""Networks by name, and the contract that each of them keeps; test_extending.py adds one."""

import pytest
import torch
from torch import nn

import choices
import inference
import networks
from utils import generator_file


class Plainest(nn.Module):
    """The least that the contract asks for: no argument but the scale, and no `avoid_bf16`."""

    halo = 1
    upscale = 2

    def __init__(self, upscale: int):
        super().__init__()
        if upscale != 2:
            raise ValueError(f"upscale {upscale} is not 2")
        self.architecture = {"generator": "plainest", "upscale": 2}
        self.conv = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, lr):
        return nn.functional.pixel_shuffle(self.conv(lr), 2)


def test_a_generator_without_arguments_is_saved_loaded_and_enlarges(
    tmp_path, monkeypatch, astronaut
):
    monkeypatch.setitem(networks.GENERATORS, "plainest", Plainest)
    generator_file.save(tmp_path / "g.pth", Plainest(2))
    generator = inference.open_generator(tmp_path / "g.pth", torch.device("cpu"))
    whole = inference.upscale(generator, astronaut[:40, :50], tile=0)
    tiles = inference.upscale(generator, astronaut[:40, :50], tile=16)
    assert whole.shape == (80, 100, 3) and (whole == tiles).all()
    with pytest.raises(ValueError, match="upscale 4 is not 2"):
        networks.empty_generator("plainest", upscale=4)


def test_every_generator_and_discriminator_keeps_its_contract():
    for name, constructor in networks.GENERATORS.items():
        generator = constructor(upscale=4, **dict.fromkeys(choices.GENERATORS[name], 2))
        assert generator.architecture["generator"] == name and generator.upscale == 4
        assert isinstance(generator.halo, int)
        assert generator(torch.zeros(1, 3, 7, 5)).shape == (1, 3, 28, 20)
    for network in networks.DISCRIMINATORS.values():
        discriminator = network()
        crop = torch.zeros(2, 3, network.minimum_crop, network.minimum_crop)
        probability = discriminator(crop)
        assert ((probability > 0) & (probability < 1)).all()
        assert discriminator.logits(crop).isfinite().all()
