"""Networks of other projects, read with spandrel; here small ones with random weights."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import test_image
from utils import cli, foreign, generator_file, images, openvino, weights
from utils.pretrained import import_torchvision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def spandrel():
    import_torchvision()
    return pytest.importorskip("spandrel", reason="spandrel is not installed")


def span(features: int, upscale: int) -> torch.nn.Module:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=features, upscale=upscale)


def compact(features: int, layers: int, upscale: int, channels: int = 3) -> torch.nn.Module:
    from spandrel.architectures.Compact import Compact

    sides = {"num_in_ch": channels, "num_out_ch": channels}
    return Compact(**sides, num_feat=features, num_conv=layers, upscale=upscale)


def network(name: str, upscale: int = 2, channels: int = 3) -> torch.nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN
    from spandrel.architectures.SAFMN import SAFMN

    torch.manual_seed(0)
    made = {
        "SPAN": lambda: span(8, upscale),
        "RealESRGAN Compact": lambda: compact(8, 4, upscale, channels),
        "SAFMN": lambda: SAFMN(dim=8, n_blocks=1, upscaling_factor=upscale),  # sides of 8 pixels
        "ESRGAN": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=upscale, shuffle_factor=2),
    }
    return made[name]()


def save(path, name: str, *options):
    torch.save({"params": network(name, *options).state_dict()}, path)
    return path


@pytest.mark.parametrize("name", ["SPAN", "RealESRGAN Compact", "SAFMN", "ESRGAN"])
def test_the_result_is_that_of_spandrel(tmp_path, spandrel, astronaut, capsys, name):
    path = save(tmp_path / "other.pth", name)
    engine = inference.open_engine(weights.Weights(path), "cpu", "auto")
    said = capsys.readouterr().err
    assert said.startswith(f"{path}: {name}, x2, read with spandrel\n")
    lr = astronaut[:19, :30]  # not multiples of 8
    theirs = spandrel.ModelLoader().load_from_file(path)
    unit = theirs(images.uint8_to_unit(images.to_tensor(lr)))
    expected = images.to_array((unit * 255).round().byte())
    sr = inference.upscale(engine, lr)
    assert sr.shape == (38, 60, 3) and np.ptp(sr) > 20
    assert np.abs(sr.astype(int) - expected).max() <= 1
    tiny = inference.upscale(engine, astronaut[:1, :1])
    assert tiny.shape == (2, 2, 3)


@pytest.mark.parametrize("name", ["SPAN", "RealESRGAN Compact"])
def test_tiles_give_the_result_of_the_whole_image(tmp_path, spandrel, astronaut, name):
    path = save(tmp_path / "other.pth", name)
    generator = inference.open_generator(path, CPU, foreign=True)
    lr = astronaut[:24, :240]
    whole = inference.upscale(generator, lr, tile=0).astype(int)
    assert np.abs(inference.upscale(generator, lr, tile=80) - whole).max() <= 1


def test_tiles_begin_where_the_pixels_of_the_network_do(tmp_path, spandrel, astronaut):
    """With tiles of another size, this network's cells of 2x2 pixels would lie elsewhere."""
    path = save(tmp_path / "other.pth", "ESRGAN")
    generator = inference.open_generator(path, CPU, foreign=True)
    lr = astronaut[:24, :240]
    whole = inference.upscale(generator, lr, tile=0).astype(int)
    assert np.abs(inference.upscale(generator, lr, tile=83) - whole).max() <= 1


def test_the_halo_covers_what_these_networks_see_at_full_depth(spandrel):
    """By the gradient of one pixel of the result."""
    halo = foreign._HALO
    for made in (span(4, 2), compact(4, 32, 2)):
        lr = torch.rand(1, 3, 2 * halo + 1, 3, requires_grad=True)
        made.eval()(lr)[0, :, 2 * halo, 3].sum().backward()
        seen = lr.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        assert 0 < seen.min() <= seen.max() < 2 * halo


def test_the_command_line_enlarges_with_it(tmp_path, spandrel, astronaut, capsys):
    path = save(tmp_path / "x2.pth", "SPAN")
    Image.fromarray(astronaut[:20, :30]).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--weights", path, "--device", "cpu"]
    assert test_image.main(test_image.get_args_parser().parse_args(map(str, arguments))) == 0
    with Image.open(tmp_path / "a_x2.png") as result:
        assert result.size == (60, 40)
    assert "x2.pth: SPAN, x2, read with spandrel" in capsys.readouterr().err


def test_what_cannot_be_used_is_one_line(tmp_path, spandrel):
    cases = {
        "restoring": (network("SPAN", 1).state_dict(), "SPAN, a network that does not enlarge"),
        "gray": (
            network("RealESRGAN Compact", 2, 1).state_dict(),
            "RealESRGAN Compact with 1 channel in and 1 out, not the three of RGB",
        ),
        "unknown": ({"a.weight": torch.rand(3)}, "spandrel does not know it either"),
        "no dict": ([1, 2], "not a generator file of this project"),
        "absurd": (
            network("RealESRGAN Compact").state_dict() | {"body.999999999.weight": torch.rand(3)},
            "not a generator file of this project",
        ),
    }
    broken = network("SPAN").state_dict()
    del broken["block_2.c1_r.sk.weight"]
    cases["broken"] = (broken, "spandrel cannot build its network")
    infinite = network("SPAN").state_dict()
    infinite["conv_cat.weight"][0] = np.inf
    cases["infinite"] = (infinite, "values that are not finite")
    for name, (content, reason) in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(cli.UserError, match=rf"{name}\.pth: [^\n]*{reason}[^\n]*$"):
            generator_file.load(tmp_path / f"{name}.pth", foreign=True)


def test_it_can_only_enlarge(tmp_path, spandrel):
    path = save(tmp_path / "other.pth", "SPAN")
    with pytest.raises(cli.UserError, match="not a generator file of this project"):
        generator_file.load(path)  # as train.py and export_model.py do
    with pytest.raises(cli.UserError, match="not a generator file of this project"):
        inference.open_generator(path, CPU, path, 0.5, foreign=True)
    generator = inference.open_generator(path, CPU, foreign=True)
    with pytest.raises(openvino.UnusableError, match="SPAN does not run on OpenVINO"):
        openvino.convert(generator)


def test_spandrel_is_asked_only_for_other_networks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)  # which no import can find
    assert inference.open_generator(weights.FAITHFUL, CPU, foreign=True).upscale == 4
    torch.save({"a.weight": torch.rand(3)}, tmp_path / "other.pth")
    with pytest.raises(cli.UserError, match="pip install spandrel, which knows many other"):
        generator_file.load(tmp_path / "other.pth", foreign=True)
