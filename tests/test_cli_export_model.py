import argparse
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import run, the_error

import export_model
import inference
from esrgan import RRDBGenerator
from model import Generator
from utils import cli, generator_file, weights


def trained(generator: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The generator with all its weights and statistics random, as after a training."""
    torch.manual_seed(seed)
    for name, tensor in generator.state_dict().items():
        if "running_var" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(0.05 * torch.randn(tensor.shape))
    return generator.eval()


def parsed(*arguments) -> argparse.Namespace:
    return export_model.get_args_parser().parse_args([str(argument) for argument in arguments])


def results(path, generator, shape) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    lr = torch.rand(shape) * 2 - 1
    with torch.inference_mode():
        return session.run(None, {"lr": lr.numpy()})[0], generator(lr).numpy()


@pytest.mark.parametrize(
    "generator", [Generator(3, 1), RRDBGenerator(4, 1)], ids=lambda g: type(g).__name__
)
def test_the_file_gives_pytorchs_result_at_any_size(generator, tmp_path):
    generator_file.save(tmp_path / "generator.pth", trained(generator))
    done = run("export_model.py", "--weights", tmp_path / "generator.pth", cwd=tmp_path)
    assert done.stdout.count("from PyTorch") == 3
    assert done.stderr == ""
    path = tmp_path / "generator.onnx"
    onnx.checker.check_model(path, full_check=True)
    metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert metadata["upscale"] == str(generator.upscale)
    scale = generator.upscale
    for count, height, width in [(1, 7, 5), (1, 61, 83), (3, 12, 12)]:
        result, expected = results(path, generator, (count, 3, height, width))
        assert result.shape == expected.shape == (count, 3, height * scale, width * scale)
        assert np.abs(result - expected).max() <= 1e-4


def test_the_default_weights_are_exported_without_options(tmp_path):
    run("export_model.py", cwd=tmp_path)
    generator = generator_file.load(weights.FAITHFUL)
    result, expected = results(tmp_path / "srresnet_x4.onnx", generator, (1, 3, 30, 20))
    assert np.abs(result - expected).max() <= 1e-4


def test_a_blend_is_exported_under_a_name_that_tells(tmp_path):
    first = tmp_path / "a.pth"
    second = tmp_path / "b.pth"
    generator_file.save(first, trained(Generator(2, 1), 0))
    generator_file.save(second, trained(Generator(2, 1), 1))
    options = ["--weights", first, "--texture", 0.75, "--texture-weights", second]
    done = run("export_model.py", *options, cwd=tmp_path)
    line = done.stdout.splitlines()[0]
    assert line == f"exporting {first} blended with {second} (--texture 0.75)"
    generator = inference.open_generator(first, torch.device("cpu"), second, 0.75)
    result, expected = results(tmp_path / "a_b_0.75.onnx", generator, (1, 3, 30, 20))
    assert np.abs(result - expected).max() <= 1e-4
    error = the_error(run("export_model.py", *options, "--out", second, status=None))
    assert "is the generator file itself" in error


def test_a_model_that_differs_is_not_written(tmp_path, monkeypatch):
    weights_file = tmp_path / "generator.pth"
    out = tmp_path / "generator.onnx"
    generator_file.save(weights_file, trained(Generator(2, 1)))
    other = trained(Generator(2, 1))
    other.tail.bias.data += 2e-4
    model = export_model.export(other)
    monkeypatch.setattr(export_model, "export", lambda _generator: model)
    with pytest.raises(cli.RunError, match="differs from PyTorch by 2"):
        export_model.main(parsed("--weights", weights_file, "--out", out))
    assert not out.exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"{package} is missing; pip install .*{package}"):
        export_model.main(parsed("--out", tmp_path / "a.onnx"))
    assert not list(tmp_path.iterdir())


def test_wrong_paths_are_one_line(tmp_path):
    path = tmp_path / "generator.pth"
    generator_file.save(path, Generator(2, 1))
    for arguments, reason in [
        (["--weights", tmp_path / "none.pth"], "no such generator file"),
        (["--weights", path, "--out", tmp_path], "is a folder"),
        (["--weights", path, "--out", path], "is the generator file itself"),
    ]:
        assert reason in the_error(run("export_model.py", *arguments, status=None))
