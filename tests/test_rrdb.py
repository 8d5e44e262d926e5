import numpy as np
import pytest
import torch
from conftest import run

import esrgan
import inference
from esrgan import RRDBGenerator
from utils import checkpoint, images
from utils.compat import import_torchvision


@pytest.fixture(scope="module")
def generator() -> RRDBGenerator:
    torch.manual_seed(3)
    network = RRDBGenerator(blocks=2, features=16, growth=32)
    for parameter in network.body.parameters():
        parameter.data *= 10  # out of the small start, so that every block matters
    return network.eval()


@pytest.fixture(scope="module")
def spandrel():
    import_torchvision()
    import spandrel

    return spandrel


@pytest.fixture
def lr() -> torch.Tensor:
    return torch.rand(1, 3, 20, 24)


def ours(generator, lr):
    with torch.inference_mode():
        return (generator(lr * 2 - 1) + 1) / 2


def test_the_default_network_has_esrgans_size():
    with torch.device("meta"):
        network = RRDBGenerator()
    assert sum(parameter.numel() for parameter in network.parameters()) == 16_697_987
    with pytest.raises(ValueError, match="for 4 only"):
        RRDBGenerator(2)


def test_a_file_of_ours_loads_in_spandrel(tmp_path, generator, spandrel, lr):
    checkpoint.save_generator(tmp_path / "g.pth", generator)
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "g.pth")
    assert theirs.architecture.id == "ESRGAN" and theirs.scale == 4
    with torch.inference_mode():
        assert torch.allclose(theirs.model(lr), ours(generator, lr), atol=1e-5)


@pytest.mark.parametrize("wrapped", [None, "params", "params_ema"])
@pytest.mark.parametrize("old_names", [True, False])
def test_released_files_load_here(tmp_path, generator, spandrel, lr, wrapped, old_names):
    theirs = spandrel.ModelLoader().load_from_state_dict({n: t.clone() for n, t in generator.state_dict().items()}).model
    for parameter in theirs.parameters():
        parameter.data *= 1.01
    state = theirs.state_dict()
    assert "model.0.weight" in state  # spandrel's network has the names of the first files
    if not old_names:
        state = {esrgan._new_name(name): tensor for name, tensor in state.items()}
        assert state.keys() == generator.state_dict().keys()
    torch.save({wrapped: state} if wrapped else state, tmp_path / "released.pth")
    loaded = checkpoint.load_generator(tmp_path / "released.pth")
    assert loaded.architecture == generator.architecture
    with torch.inference_mode():
        assert torch.allclose(theirs(lr), ours(loaded, lr), atol=1e-5)


def test_a_released_file_enlarges_by_the_command_line(tmp_path, generator, astronaut):
    from PIL import Image

    Image.fromarray(astronaut[:20, :30]).save(tmp_path / "a.png")
    torch.save({"params_ema": generator.state_dict()}, tmp_path / "released.pth")
    run("test_image.py", tmp_path / "a.png", "--weights", tmp_path / "released.pth")
    expected = inference.upscale(generator, astronaut[:20, :30])
    assert np.abs(images.read_picture(tmp_path / "a_x4.png").rgb.astype(int) - expected).max() <= 1


def test_tiles_are_within_a_level_of_the_whole_image_at_full_depth(astronaut):
    torch.manual_seed(0)
    network = RRDBGenerator().eval()
    for parameter in network.body.parameters():
        parameter.data *= 5
    lr = astronaut[200:212, 100:292]
    whole, tiled = (inference.upscale(network, lr, tile=tile).astype(int) for tile in (0, 64))
    assert whole.std() > 5
    assert np.abs(whole - tiled).max() <= 1


def test_it_trains_resumes_and_starts_from_a_file(photos, tmp_path):
    command = ["--train-dir", photos[0], "--val-dir", photos[1], "--crop", 32, "--batch-size", 2, "--generator", "rrdb"]
    command += ["--blocks", 1, "--epochs", 1, "--pretrain-epochs", 1, "--vgg-weights", "random", "--device", "cpu"]
    run("train.py", *command, "--out", tmp_path / "a")
    trained = tmp_path / "a" / "checkpoints" / "generator_last.pth"
    assert checkpoint.load_generator(trained).architecture["generator"] == "rrdb"
    assert "finished" in run("train.py", *command, "--out", tmp_path / "a").stdout
    run("train.py", *command, "--out", tmp_path / "b", "--init", trained)
