import json

import numpy as np
import pytest
import torch
from conftest import ROOT, run, the_error
from test_inference import new_generator

import inference
import metrics
from dataloader import TestDatasetFromFolder
from utils import cli, files, generator_file, images, int8, openvino, weights

pytest.importorskip("openvino")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def path(tmp_path):
    """A generator file, x2 with two blocks."""
    generator_file.save(tmp_path / "mine.pth", new_generator(2))
    return tmp_path / "mine.pth"


def engine_of(path, backend="openvino"):
    return inference.open_engine(weights.Weights(path), backend=backend)


def psnr_y(sr, hr):
    pair = (images.uint8_to_unit(images.to_tensor(image)) for image in (sr, hr))
    return metrics.psnr_ssim_y(*pair, 4)[0].item()


def test_the_ranges_are_read_once(path, monkeypatch):
    int8.write(path, int8.measure(inference.open_generator(path, torch.device("cpu")), []))
    reads = []
    read = int8.read
    monkeypatch.setattr(int8, "read", lambda path: reads.append(path) or read(path))
    engine = engine_of(path)
    for _frame in range(3):
        assert engine.precision_of("int8") == "int8"
    assert reads == [path]


# --- the files in weights/ ----------------------------------------------------------------------


@pytest.mark.parametrize("name", weights.known())
def test_each_weight_file_has_its_ranges(name):
    path = weights.weights_file(name)
    ranges = int8.read(path)
    assert len(ranges) == 35 and {"trunk.0.conv1", "fusion.0", "upsample.1.conv"} <= ranges.keys()
    assert int8.ranges_file(path).stat().st_size < 3000


@pytest.mark.parametrize("name", weights.known())
def test_int8_is_nearly_as_good_on_a_photograph(name, astronaut):
    hr = astronaut[:128, 96:256]
    lr = images.downscale(hr, 4)
    engine = engine_of(weights.weights_file(name))
    exact = inference.upscale(engine, lr)
    rounded = inference.upscale(engine, lr, precision="int8")
    difference = np.abs(exact.astype(int) - rounded)
    assert 0 < difference.mean() < 1.5 and difference.max() < 40
    assert psnr_y(rounded, hr) > psnr_y(exact, hr) - 0.1


def test_int8_loses_at_most_six_hundredths_of_a_decibel_on_set5(set5):
    engine = engine_of(weights.FAITHFUL)  # which loses the most
    lost = []
    for _name, lr, hr in TestDatasetFromFolder(set5 / "x4" / "LR", set5 / "x4" / "HR", 4):
        lr, hr = images.to_array(lr), images.to_array(hr)
        exact, rounded = (
            psnr_y(inference.upscale(engine, lr, precision=precision), hr)
            for precision in ("fp32", "int8")
        )
        lost.append(exact - rounded)
    assert np.mean(lost) <= 0.06


# --- how it works -------------------------------------------------------------------------------


def test_the_inner_convolutions_and_their_weights_are_rounded(path):
    model = openvino.convert(inference.open_generator(path, torch.device("cpu")))
    names = ["trunk.0.conv1", "trunk.1.conv2", "fusion.0", "upsample.0.conv", "head.9", "none"]
    found = int8.quantised(model, dict.fromkeys(names, (-1.0, 2.0)))
    kinds = [operation.get_type_name() for operation in found.get_ordered_ops()]
    assert kinds.count("FakeQuantize") == 2 * 4


def test_the_inner_convolutions_compute_with_integers(path, astronaut):
    int8.write(path, int8.measure(inference.open_generator(path, torch.device("cpu")), [astronaut]))
    engine = engine_of(path)
    inference.upscale(engine, astronaut[:30, :40], precision="int8")
    operations = engine._requests["int8"].get_compiled_model().get_runtime_model().get_ordered_ops()
    kinds = []
    for operation in operations:
        facts = operation.get_rt_info()
        if facts["layerType"].astype(str) == "Convolution":
            kinds.append(facts["runtimePrecision"].astype(str))
    assert kinds.count("u8") + kinds.count("i8") == 6  # of two blocks, fusion and upsampling
    assert len(kinds) > 6


def test_tiles_give_the_result_of_the_whole_image(path, astronaut):
    int8.write(path, int8.measure(inference.open_generator(path, torch.device("cpu")), [astronaut]))
    engine = engine_of(path)
    lr = astronaut[:60, :70]
    whole = inference.upscale(engine, lr, 0, "int8").astype(int)
    assert np.abs(whole - inference.upscale(engine, lr, 32, "int8")).max() <= 1


def test_ranges_are_those_of_the_inputs_and_hold_zero(path):
    generator = inference.open_generator(path, torch.device("cpu"))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    seen = []
    generator.trunk[0].conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ranges = int8.measure(generator, [picture])
    low, high = np.quantile(seen[0].numpy(), [1e-4, 1 - 1e-4])
    assert ranges["trunk.0.conv1"] == pytest.approx((min(low, 0), high), rel=0.02)
    assert not {"head.0", "tail"} & ranges.keys()
    assert all(low <= 0 <= high for low, high in ranges.values())


# --- bad input ----------------------------------------------------------------------------------


def test_missing_foreign_and_damaged_ranges_are_one_line_each(path):
    with pytest.raises(cli.UserError, match=r"mine\.int8\.json: no such file.*--format int8"):
        engine_of(path).precision_of("int8")
    int8.write(path, {"trunk.0.conv1": (-1.0, 1.0)})
    assert engine_of(path).precision_of("int8") == "int8"
    content = json.loads(int8.ranges_file(path).read_text())
    for damaged in (
        "{",
        "[]",
        json.dumps(content | {"ranges": [1]}),
        json.dumps(content | {"ranges": {"trunk.0.conv1": [1]}}),
        json.dumps(content | {"ranges": {"trunk.0.conv1": [1, -1]}}),
        json.dumps(content | {"ranges": {"trunk.0.conv1": [-1, float("inf")]}}),
    ):
        int8.ranges_file(path).write_text(damaged)
        with pytest.raises(cli.UserError, match=r"mine\.int8\.json: damaged; make it"):
            engine_of(path).precision_of("int8")
    int8.ranges_file(path).write_text(json.dumps(content | {"generator": "0" * 64}))
    with pytest.raises(cli.UserError, match="made for other weights"):
        engine_of(path).precision_of("int8")


def test_int8_needs_openvino_and_one_file(path):
    with pytest.raises(cli.UserError, match="int8 needs OpenVINO"):
        engine_of(path, "torch").precision_of("int8")
    blend = weights.Weights(weights.FAITHFUL, weights.TEXTURED, 0.5)
    with pytest.raises(cli.UserError, match="leave out --texture"):
        inference.open_engine(blend, backend="openvino").precision_of("int8")


# --- the command line ---------------------------------------------------------------------------


def test_a_generator_is_prepared_and_used(path, photos, tmp_path):
    done = run("export_model.py", "--format", "int8", "--weights", path, "--images", photos[1])
    assert done.stdout.splitlines()[-1] == str(int8.ranges_file(path))
    lr = photos[1] / "image_0.png"
    words = ["--weights", path, "--backend", "openvino", "--out"]
    run("test_image.py", lr, *words, tmp_path / "a.png", "--precision", "int8")
    run("test_image.py", lr, *words, tmp_path / "b.png", "--precision", "fp32")
    assert files.sha256(tmp_path / "a.png") != files.sha256(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "int8"], "--format int8 --images DIR: each needs the other"),
        (["--images", "."], "--format int8 --images DIR: each needs the other"),
        (["--format", "int8", "--images", ROOT / "docs", "--half"], "leave out --half"),
        (["--format", "int8", "--images", ROOT / "docs", "--texture", 0.5], "leave out --half"),
        (["--format", "int8", "--images", ROOT / "none"], "none"),
        (["--format", "int8", "--images", ROOT / "tests"], "no image"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, message):
    assert message in the_error(run("export_model.py", *options, status=2))


def test_training_has_no_int8():
    assert "invalid choice: 'int8'" in run("train.py", "--precision", "int8", status=2).stderr


def test_a_model_keeps_its_own_weights(path):
    model = openvino.convert(inference.open_generator(path, torch.device("cpu")))
    before = len(model.get_ordered_ops())
    assert len(int8.quantised(model, {"trunk.0.conv1": (0.0, 1.0)}).get_ordered_ops()) > before
    assert len(model.get_ordered_ops()) == before
