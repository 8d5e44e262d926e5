"""The recipes of docs/extending.md, applied from its text to a copy of the code, work together."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from conftest import ROOT

from utils import images

RECIPES = (ROOT / "docs" / "extending.md").read_text()


def apply_patch(patch: str, folder: Path) -> None:
    """Apply a unified diff by its text alone; line numbers may be out of date."""
    for part in re.split(r"^--- a/.*\n\+\+\+ b/", patch, flags=re.M)[1:]:
        name, _, hunks = part.partition("\n")
        path = folder / name
        text = path.read_text()
        for hunk in re.split(r"^@@.*\n", hunks, flags=re.M)[1:]:
            lines = [line or " " for line in hunk.splitlines()]
            old = "\n".join(line[1:] for line in lines if line[0] != "+")
            new = "\n".join(line[1:] for line in lines if line[0] != "-")
            assert text.count(old) == 1, f"{name} has no such place (or several):\n{old}"
            text = text.replace(old, new)
        path.write_text(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the code with all recipes applied."""
    tree = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("utils", "video", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=skip)
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, tree)
    patches = re.findall(r"^```diff\n(.*?)^```", RECIPES, re.S | re.M)
    assert len(patches) == len(re.findall("^## ", RECIPES, re.M)) == 6
    for patch in patches:
        apply_patch(patch, tree)
    return tree


def python(tree: Path, *words) -> str:
    """Run Python in the tree, without this repository's modules on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_recipes_train_resume_enlarge_blend_export_and_measure(tree, photos, tmp_path):
    train = ["train.py", "--train-dir", photos[0], "--val-dir", photos[1], "--crop", 32]
    train += ["--batch-size", 2, "--device", "cpu", "--perceptual-weight", 0]
    train += ["--generator", "plain", "--width", 4, "--discriminator", "patch"]
    train += ["--adversarial-loss", "hinge", "--charbonnier-weight", 0.5, "--degradation", "fade"]
    train += ["--pretrain-epochs", 1, "--out", tmp_path / "out"]

    # Train and resume
    python(tree, *train, "--epochs", 0)
    resumed = python(tree, *train, "--epochs", 1)
    assert "resuming at epoch 2" in resumed
    table = pandas.read_csv(tmp_path / "out" / "statistics.csv")
    assert (table["MAE"] > 0).all() and table["Loss_Charbonnier"][1] > 0

    # Enlarge a blend in tiles
    checkpoints = tmp_path / "out" / "checkpoints"
    first = checkpoints / "generator_pretrained.pth"
    second = checkpoints / "generator_last.pth"
    blend = ["--weights", first, "--texture", 0.5, "--texture-weights", second, "--tile", 16]
    picture = photos[1] / "image_0.png"
    python(tree, "test_image.py", picture, *blend, "--out", tmp_path / "sr.png")
    assert images.read_picture(tmp_path / "sr.png").rgb.shape == (300, 408, 3)

    # Export and measure
    python(tree, "export_model.py", "--weights", second, "--out", tmp_path / "plain.onnx")
    assert (tmp_path / "plain.onnx").exists()
    bench = ["test_benchmark.py", "--hr", photos[1], "--weights", second]
    assert "MAE" in python(tree, *bench, "--out", tmp_path / "bench")
    degraded = ["prepare_data.py", "degraded", photos[1], "--degradation", "fade"]
    python(tree, *degraded, "--out", tmp_path / "faded")


def test_the_suite_accepts_the_recipes(tree):
    names = ("generator_loss_functions", "networks", "choices")
    tests = [f"tests/test_{name}.py" for name in names]
    python(tree, "-m", "pytest", "-q", "-x", *tests)
