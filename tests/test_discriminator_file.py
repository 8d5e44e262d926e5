import functools

import pytest
import torch

import networks
from esrgan import UNetDiscriminator
from model import Generator
from utils import cli, discriminator_file, files, generator_file


@pytest.fixture
def small(monkeypatch) -> UNetDiscriminator:
    """A discriminator with few channels in the place of `unet`."""
    network = functools.partial(UNetDiscriminator, 4)
    monkeypatch.setitem(networks.DISCRIMINATORS, "unet", network)
    return network()


def as_checkpoint(state: dict, name: str, steps: dict) -> dict:
    """The parts of a run's checkpoint that are read."""
    return {
        "format": "srgan-checkpoint-1",
        "options": {"discriminator": name},
        "models": {"discriminator": state, "optimizer_d": {"state": steps}},
    }


def test_the_file_and_the_checkpoint_give_the_same_float32_weights(tmp_path, small):
    state = small.state_dict()
    discriminator_file.save(tmp_path / "d.pth", "unet", small, epoch=3)
    halves = {name: tensor.half() for name, tensor in state.items()}
    files.save_tensors(tmp_path / "half.pth", as_checkpoint(halves, "unet", {0: {}}))
    written = torch.load(tmp_path / "d.pth", weights_only=True)
    assert {name: value for name, value in written.items() if name != "state_dict"} == {
        "format": "srgan-discriminator-1",
        "discriminator": "unet",
        "epoch": 3,
    }
    exact = discriminator_file.load(tmp_path / "d.pth", "unet")
    rounded = discriminator_file.load(tmp_path / "half.pth", "unet")
    assert exact.keys() == rounded.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(exact[name], tensor)
        assert torch.equal(rounded[name], tensor.half().float())


def test_a_checkpoint_of_the_first_version_holds_srgans_discriminator(tmp_path, monkeypatch, small):
    monkeypatch.setitem(networks.DISCRIMINATORS, "vgg", functools.partial(UNetDiscriminator, 4))
    old = as_checkpoint(small.state_dict(), "unet", {0: {}})
    del old["options"]["discriminator"]
    files.save_tensors(tmp_path / "last.pth", old)
    assert discriminator_file.load(tmp_path / "last.pth", "vgg").keys() == small.state_dict().keys()


def test_files_without_a_fitting_discriminator_are_refused(tmp_path, small):
    state = small.state_dict()
    good = {"format": "srgan-discriminator-1", "discriminator": "unet", "state_dict": state}
    wide = UNetDiscriminator(8).state_dict()
    infinite = state | {"last.4.bias": torch.tensor([float("inf")])}
    neither = "neither a discriminator file of this project .* nor a run's last.pth"
    cases = {
        "another one": (
            good | {"discriminator": "vgg"},
            "holds the discriminator 'vgg', but this run trains 'unet'; pass --discriminator vgg",
        ),
        "an unknown one": (good | {"discriminator": "patch"}, "'patch'.*; use another file"),
        "a name of no kind": (good | {"discriminator": ["unet"]}, "use another file"),
        "other sizes": (good | {"state_dict": wide}, r"do not fit .* has the shape \(8, 3, 3, 3\)"),
        "not tensors": (good | {"state_dict": dict.fromkeys(state, 1)}, "first.weight is not a te"),
        "not finite": (good | {"state_dict": infinite}, "last.4.bias has values that are not fin"),
        "numbers for names": (good | {"state_dict": state | {1: torch.ones(1)}}, neither),
        "no weights": (good | {"state_dict": None}, neither),
        "weights alone": (state, neither),
        "a list": ([1, 2], neither),
        "another checkpoint": (as_checkpoint(state, "vgg", {0: {}}), "pass --discriminator vgg"),
        "an untrained one": (as_checkpoint(state, "unet", {}), "untrained, because the run has"),
        "an empty checkpoint": ({"format": "srgan-checkpoint-1"}, neither),
    }
    for what, (value, reason) in cases.items():
        torch.save(value, tmp_path / "d.pth")
        with pytest.raises(cli.UserError, match=rf"d\.pth: .*{reason}"):
            discriminator_file.load(tmp_path / "d.pth", "unet")
            pytest.fail(what)


def test_generators_and_damaged_or_hostile_files_are_refused(tmp_path, small):
    path = tmp_path / "d.pth"
    generator_file.save(path, Generator(2, 1))
    with pytest.raises(cli.UserError, match=r"a generator file, .*; use discriminator_last\.pth"):
        discriminator_file.load(path, "unet")
    discriminator_file.save(path, "unet", small)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(cli.UserError, match="damaged"):
        discriminator_file.load(path, "unet")
    torch.save({"format": "srgan-discriminator-1", "state_dict": print}, path)
    with pytest.raises(cli.UserError, match="would run code"):
        discriminator_file.load(path, "unet")
