import argparse
import sys
import types
from importlib.util import find_spec
from pathlib import Path

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
from utils import cli, exporting, generator_file, weights


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


def results(path, generator, shape, half=False) -> tuple[np.ndarray, np.ndarray]:
    """What onnxruntime and PyTorch make of the same random images in [0, 1]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    unit = torch.rand(shape)
    with torch.inference_mode():
        expected = (generator(unit * 2 - 1) + 1) / 2
    return session.run(None, {"input": unit.numpy()})[0], expected.clamp(0, 1).numpy()


@pytest.mark.parametrize(
    "generator",
    [Generator(3, 1), Generator(1, 1), RRDBGenerator(4, 1)],
    ids=lambda g: f"{type(g).__name__} x{g.upscale}",
)
def test_the_file_gives_pytorchs_result_at_any_size(generator, tmp_path):
    generator_file.save(tmp_path / "generator.pth", trained(generator))
    words = ["--weights", tmp_path / "generator.pth", "--licence", "CC0"]
    done = run("export_model.py", *words, cwd=tmp_path)
    assert done.stdout.count("from PyTorch") == 3
    assert done.stderr == ""
    path = tmp_path / "generator.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    scale = generator.upscale
    assert metadata["scale"] == metadata["upscale"] == str(scale)
    assert metadata["halo"] == str(generator.halo)
    assert metadata["range"] == "[0, 1]" and metadata["licence"] == "CC0"
    assert [opset.version for opset in model.opset_import if not opset.domain] == [18]
    for count, height, width in [(1, 7, 5), (1, 61, 83), (3, 12, 12)]:
        result, expected = results(path, generator, (count, 3, height, width))
        assert result.shape == expected.shape == (count, 3, height * scale, width * scale)
        assert np.abs(result - expected).max() <= 1e-4


@pytest.fixture(scope="module")
def default_export(tmp_path_factory) -> Path:
    """The file that is exported without options."""
    folder = tmp_path_factory.mktemp("default")
    run("export_model.py", cwd=folder)
    return folder / "srresnet_x4.onnx"


def test_the_default_weights_are_exported_without_options(default_export):
    generator = generator_file.load(weights.FAITHFUL)
    result, expected = results(default_export, generator, (1, 3, 30, 20))
    assert np.abs(result - expected).max() <= 1e-4


@pytest.mark.parametrize("size", [(40, 30), (33, 57), (16, 16)])
def test_onnx_and_ncnn_give_the_picture_of_test_image(exports, tmp_path, astronaut, size):
    """Within one 8-bit level."""
    lr = astronaut[100 : 100 + size[0], 60 : 60 + size[1]]
    generator = inference.open_generator(weights.FAITHFUL, torch.device("cpu"))
    expected = inference.upscale(generator, lr).astype(int)
    unit = np.ascontiguousarray(lr.transpose(2, 0, 1)[None], np.float32) / 255
    for name, enlarge in exports.items():
        sr = np.rint(enlarge(unit)[0].transpose(1, 2, 0) * 255).astype(int)
        assert np.abs(sr - expected).max() <= 1, name


@pytest.fixture(scope="module")
def exports(tmp_path_factory, default_export) -> dict[str, exporting.Run]:
    """What enlarges with the exported files of weights/srresnet_x4.pth."""
    found = {"onnx": exporting.run_onnx(default_export.read_bytes())}
    if find_spec("ncnn") and find_spec("pnnx"):
        folder = tmp_path_factory.mktemp("exports")
        run("export_model.py", "--format", "ncnn", cwd=folder)
        description = (folder / "srresnet_x4.param").read_text()
        assert (
            " data\n" in description and description.strip().splitlines()[-1].split()[5] == "output"
        )
        model = (folder / "srresnet_x4.bin").read_bytes()
        found["ncnn"] = exporting.run_ncnn(description, model)
    return found


def test_half_precision_halves_the_file(tmp_path):
    run("export_model.py", "--half", cwd=tmp_path)
    path = tmp_path / "srresnet_x4.onnx"
    assert 3.0e6 < path.stat().st_size < 3.5e6
    model = onnx.load(path)
    kinds = [
        value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    ]
    assert kinds == [onnx.TensorProto.FLOAT] * 2
    generator = generator_file.load(weights.FAITHFUL)
    result, expected = results(path, generator, (2, 3, 30, 20))
    assert 0 < np.abs(result - expected).max() <= 4e-3


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
    other.tail.bias.data += 4e-4
    model = exporting.export_onnx(other)
    monkeypatch.setattr(exporting, "export_onnx", lambda *_arguments: model)
    with pytest.raises(cli.RunError, match="differs from PyTorch by 2"):
        export_model.main(parsed("--weights", weights_file, "--out", out))
    assert not out.exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime", "pnnx", "ncnn"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "ncnn":
        monkeypatch.setitem(sys.modules, "pnnx", types.ModuleType("pnnx"))
    words = ["--format", "ncnn"] if "nn" in package.replace("onnx", "") else []
    with pytest.raises(ValueError, match=f"{package} is missing; pip install .*{package}"):
        export_model.main(parsed("--out", tmp_path / "a.param", *words))
    assert not list(tmp_path.iterdir())


def test_wrong_paths_are_one_line(tmp_path):
    path = tmp_path / "generator.pth"
    generator_file.save(path, Generator(2, 1))
    for arguments, reason in [
        (["--weights", tmp_path / "none.pth"], "no such generator file"),
        (["--weights", path, "--out", tmp_path], "is a folder"),
        (["--weights", path, "--out", path], "is the generator file itself"),
        (["--format", "ncnn", "--half"], "--half is for ONNX"),
        (["--format", "ncnn", "--licence", "CC0"], "--licence is for ONNX"),
        (["--format", "ncnn", "--out", "a.bin"], "a.bin: ncnn's description is a .param file"),
    ]:
        assert reason in the_error(run("export_model.py", *arguments, status=None))


def test_ncnns_weights_never_replace_the_generator_file(tmp_path):
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    path = tmp_path / "mine.bin"
    generator_file.save(tmp_path / "mine.pth", Generator(2, 1))
    (tmp_path / "mine.pth").rename(path)
    before = path.read_bytes()
    words = ["--weights", path, "--format", "ncnn"]
    error = the_error(run("export_model.py", *words, cwd=tmp_path, status=None))
    assert "mine.bin is the generator file itself" in error
    assert path.read_bytes() == before
