import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import run

import inference
from esrgan import RRDBGenerator, SmallUNetDiscriminator, UNetDiscriminator
from utils import cli, generator_file, images
from utils.pretrained import import_torchvision


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
    with pytest.raises(ValueError, match="supports only 4"):
        RRDBGenerator(2)


def test_a_file_of_ours_loads_in_spandrel(tmp_path, generator, spandrel, lr):
    generator_file.save(tmp_path / "g.pth", generator)
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "g.pth")
    assert theirs.architecture.id == "ESRGAN" and theirs.scale == 4
    with torch.inference_mode():
        assert torch.allclose(theirs.model(lr), ours(generator, lr), atol=1e-5)


def in_names_of_the_first_release(state: dict) -> dict:
    places = {"conv_first": 0, "conv_up1": 3, "conv_up2": 6, "conv_hr": 8, "conv_last": 10}
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    found = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("body."):
            _, block, dense, conv = layer.split(".")
            found[f"model.1.sub.{block}.{dense.upper()}.{conv}.0.{kind}"] = tensor
        elif layer == "conv_body":
            found[f"model.1.sub.{blocks}.{kind}"] = tensor
        else:
            found[f"model.{places[layer]}.{kind}"] = tensor
    return found


def in_names_of_the_current_repository(state: dict) -> dict:
    pairs = [
        ("body.", "RRDB_trunk."),
        ("rdb", "RDB"),
        ("conv_body", "trunk_conv"),
        ("conv_up", "upconv"),
        ("conv_hr", "HRconv"),
    ]
    found = {}
    for name, tensor in state.items():
        for ours, theirs in pairs:
            name = (
                name.replace(ours, theirs) if ours != "body." or name.startswith("body.") else name
            )
        found[name] = tensor
    return found


NAMINGS = {
    "first": in_names_of_the_first_release,
    "current": in_names_of_the_current_repository,
    "Real-ESRGAN": dict,
}


@pytest.mark.parametrize("wrapped", [None, "params", "params_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("naming", NAMINGS)
def test_released_files_load_here_as_in_spandrel(
    tmp_path, generator, spandrel, lr, naming, prefix, wrapped
):
    state = {
        prefix + name: tensor for name, tensor in NAMINGS[naming](generator.state_dict()).items()
    }
    assert len(state) == len(generator.state_dict())
    if naming == "current":
        names = (
            "RRDB_trunk.1.RDB3.conv5.bias",
            "trunk_conv.weight",
            "upconv1.weight",
            "upconv2.bias",
            "HRconv.weight",
        )
        assert {prefix + name for name in names} < state.keys()
    torch.save({wrapped: state} if wrapped else state, tmp_path / "released.pth")
    loaded = generator_file.load(tmp_path / "released.pth")
    assert loaded.architecture == generator.architecture
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "released.pth")
    with torch.inference_mode():
        assert torch.allclose(theirs.model(lr), ours(loaded, lr), atol=1e-5)


@pytest.mark.parametrize(
    "change", ["another scale", "another input", "ESRGAN+", "numbers for names"]
)
def test_relatives_that_are_not_this_network_are_refused_in_one_line(tmp_path, generator, change):
    state = in_names_of_the_current_repository(generator.state_dict())
    if change == "another scale":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("upconv2")}
    elif change == "another input":
        state["conv_first.weight"] = torch.rand(16, 12, 3, 3)  # Real-ESRGAN's x2
    elif change == "ESRGAN+":
        state = in_names_of_the_first_release(generator.state_dict())
        state |= {
            f"model.1.sub.{block}.RDB1.conv1x1.weight": torch.rand(32, 16, 1, 1)
            for block in range(2)
        }
    else:
        state[1] = torch.rand(3)
    torch.save(state, tmp_path / "released.pth")
    reason = "one of Real-ESRGAN's networks for x2" if change == "another input" else ""
    with pytest.raises(cli.UserError, match=rf"released\.pth: {reason}[^\n]*$"):
        generator_file.load(tmp_path / "released.pth")


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
    lr = astronaut[200:206, 100:228]
    whole, tiled = (inference.upscale(network, lr, tile=tile).astype(int) for tile in (0, 64))
    assert whole.std() > 5
    assert np.abs(whole - tiled).max() <= 1


def test_it_trains_resumes_and_starts_from_a_file(photos, tmp_path):
    command = [
        "--train-dir",
        photos[0],
        "--val-dir",
        photos[1],
        "--crop",
        32,
        "--batch-size",
        2,
        "--generator",
        "rrdb",
    ]
    command += [
        "--blocks",
        1,
        "--epochs",
        1,
        "--pretrain-epochs",
        1,
        "--perceptual-weight",
        0,
        "--device",
        "cpu",
    ]
    run("train.py", *command, "--out", tmp_path / "a")
    trained = tmp_path / "a" / "checkpoints" / "generator_last.pth"
    assert generator_file.load(trained).architecture["generator"] == "rrdb"
    assert "finished" in run("train.py", *command, "--out", tmp_path / "a").stdout
    run("train.py", *command, "--out", tmp_path / "b", "--init", trained)


# --- discriminator ------------------------------------------------------------------------------


def test_the_unet_has_real_esrgans_size_and_judges_every_pixel():
    discriminator = UNetDiscriminator()
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 4_376_897
    x = torch.rand(2, 3, 40, 44) * 2 - 1  # 44 cannot be halved three times
    discriminator.eval()
    assert discriminator(x).shape == (2, 1, 40, 44)
    assert torch.equal(discriminator(x), torch.sigmoid(discriminator.logits(x)))


def test_the_small_unet_has_half_the_channels():
    small, whole = SmallUNetDiscriminator(), UNetDiscriminator()
    halves = UNetDiscriminator(features=32)
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in halves.state_dict().items()}
    assert small.first.out_channels == whole.first.out_channels // 2
    assert small(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_the_unet_is_the_published_network():
    """Recomputed from its raw weights, divided by their largest singular values."""
    torch.manual_seed(2)
    discriminator = UNetDiscriminator(features=8)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    for _ in range(100):  # the power iteration converges
        discriminator.logits(x)
    discriminator.eval()

    def conv(module, x, stride=1):
        raw = module.parametrizations.weight.original
        return F.conv2d(
            x, raw / torch.linalg.matrix_norm(raw.flatten(1), 2), stride=stride, padding=1
        )

    first = F.leaky_relu(discriminator.first(x), 0.2)
    half = F.leaky_relu(conv(discriminator.down[0], first, 2), 0.2)
    quarter = F.leaky_relu(conv(discriminator.down[1], half, 2), 0.2)
    eighth = F.leaky_relu(conv(discriminator.down[2], quarter, 2), 0.2)
    y = eighth
    for module, skip in zip(discriminator.up, (quarter, half, first)):
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = F.leaky_relu(conv(module, y), 0.2) + skip
    y = F.leaky_relu(conv(discriminator.last[0], y), 0.2)
    y = F.leaky_relu(conv(discriminator.last[2], y), 0.2)
    assert torch.allclose(discriminator.last[4](y), discriminator.logits(x), atol=1e-4)


def test_the_unet_normalises_in_fp32_whatever_the_precision_of_the_run():
    discriminator = UNetDiscriminator(features=8)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    twin = UNetDiscriminator(features=8)
    twin.load_state_dict(discriminator.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator.logits(x)
    assert logits.dtype == torch.bfloat16
    twin.logits(x)
    ours, theirs = discriminator.state_dict(), twin.state_dict()
    assert all(
        torch.equal(ours[name], theirs[name]) for name in ours if name.endswith(("._u", "._v"))
    )
