"""Every script with unusual names of files and folders, and with loops of links."""

import os
import sys

import pandas
import pytest
from conftest import run
from PIL import Image

import test_image
from utils import images

NAMES = [
    "a b.png",
    "new\nline.png",
    "写真 ü.png",
    "x" * 251 + ".png",
    "-rf.png",
    "$(touch x) %s {}.png",
    'it\'s "so".png',
]
if sys.platform == "linux":
    NAMES.append(os.fsdecode(b"\xff\xfe.png"))  # no text in any encoding that is in use


@pytest.fixture(scope="module")
def place(tmp_path_factory, astronaut):
    """A folder with an odd name; in it, `train` and `valid` hold odd names and links in a loop."""
    place = tmp_path_factory.mktemp("names") / "a folder\nof übung 写真"
    for part in ("train", "valid"):
        (place / part).mkdir(parents=True)
        for index, name in enumerate(NAMES):
            Image.fromarray(astronaut[index : index + 40, 200:240]).save(place / part / name)
        (place / part / "loop").symlink_to(place / part)
        (place / part / "self").symlink_to("self")
    return place


@pytest.fixture(scope="module")
def weights(place):
    """A generator trained on those folders; this also checks the run's own files."""
    options = ["--crop", 32, "--batch-size", 4, "--blocks", 1, "--device", "cpu"]
    options += ["--pretrain-epochs", 1, "--epochs", 0]
    folders = ["--train-dir", place / "train", "--val-dir", place / "valid"]
    folders += ["--out", place / "out\nput"]
    for _ in range(2):  # the second finds it finished
        done = run("train.py", *folders, *options, "--val-triplets", len(NAMES))
    assert "nothing to do" in done.stdout
    assert len(list((place / "out\nput" / "validation" / "epoch_001").iterdir())) == len(NAMES)
    run("plot_statistics.py", place / "out\nput" / "statistics.csv")
    assert (place / "out\nput" / "statistics.png").exists()
    return place / "out\nput" / "checkpoints" / "generator_last.pth"


def test_enlarging(place, weights):
    options = ["--weights", weights, "--out"]
    run("test_image.py", place / "valid", *options, place / "lärge", "--compare")
    expected = []
    for name in NAMES:
        stem = images.fitting_name(name.removesuffix(".png"))
        expected += [f"{stem}_x4.png", f"{stem}_x4_compare.png"]
    assert sorted(os.listdir(place / "lärge")) == sorted(expected)
    run("test_image.py", *options, place / "-\n.webp", "--", place / "valid" / "-rf.png")
    assert images.read_picture(place / "-\n.webp").rgb.shape == (160, 160, 3)
    longest = test_image.plan_outputs([place / "valid"], None, "é" * 25, compare=True)
    assert max(len(os.fsencode(f"{target.stem}_compare.png")) for target in longest.values()) <= 255
    assert len(set(longest.values())) == len(longest) == len(NAMES)


def test_the_benchmark(place, weights, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    out = place / "bench\nmark"
    run("test_benchmark.py", "--hr", place / "valid", "--weights", weights, "--out", out)
    table = pandas.read_csv(out / "benchmark.csv")
    assert len(table) == len(NAMES) + 1
    assert {"a b", "new\nline", "写真 ü", "-rf"} <= set(table["Image"])


def test_export_and_preparation(place, weights):
    run("export_model.py", "--weights", weights, "--out", place / "mod\nel ü.onnx")
    run("prepare_data.py", "demo", "--data", place / "da\nta")
    assert (place / "mod\nel ü.onnx").exists()
    assert (place / "da\nta" / "demo" / "valid" / "chelsea.png").exists()
