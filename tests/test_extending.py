"""The recipes of docs/extending.md, applied from its text to a copy of the code, work together."""

import json
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


# Runs command lines one after the other, since to import PyTorch takes longer than most of them
SCRIPTS = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    print(end="\\f")
"""


def run_scripts(tree: Path, *commands: list) -> list[str]:
    """Run scripts in the tree, without this repository's on the path; return what each prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    texts = [[str(word) for word in command] for command in commands]
    words = [sys.executable, "-c", SCRIPTS, json.dumps(texts)]
    done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\f")[:-1]


def test_the_recipes_train_resume_enlarge_blend_export_and_measure_and_pass_the_tests(
    tree, photos, tmp_path
):
    train = ["train.py", "--train-dir", photos[0], "--val-dir", photos[1], "--crop", 32]
    train += ["--batch-size", 2, "--device", "cpu", "--perceptual-weight", 0]
    train += ["--generator", "plain", "--width", 4, "--discriminator", "patch"]
    train += ["--adversarial-loss", "hinge", "--charbonnier-weight", 0.5, "--degradation", "fade"]
    train += ["--pretrain-epochs", 1, "--out", tmp_path / "out"]
    begun = [*train, "--epochs", 0]
    resumed = [*train, "--epochs", 1]
    checkpoints = tmp_path / "out" / "checkpoints"
    first = checkpoints / "generator_pretrained.pth"
    second = checkpoints / "generator_last.pth"
    blend = ["test_image.py", photos[1] / "image_0.png", "--weights", first]
    blend += ["--texture", 0.5, "--texture-weights", second, "--tile", 16]
    blend += ["--out", tmp_path / "sr.png"]
    export = ["export_model.py", "--weights", second, "--out", tmp_path / "plain.onnx"]
    bench = ["test_benchmark.py", "--hr", photos[1], "--weights", second]
    bench += ["--out", tmp_path / "bench"]
    degraded = ["prepare_data.py", "degraded", photos[1], "--degradation", "fade"]
    degraded += ["--out", tmp_path / "faded"]
    suite = [Path(pytest.__file__).parent / "__main__.py", "-q", "-x"]
    names = ("generator_loss_functions", "networks", "choices")
    suite += [f"tests/test_{name}.py" for name in names]
    suite += ["-k", "not vgg19 and not squeezenet"]  # which no recipe touches
    printed = run_scripts(tree, begun, resumed, blend, export, bench, degraded, suite)

    assert "resuming at epoch 2" in printed[1]
    table = pandas.read_csv(tmp_path / "out" / "statistics.csv")
    assert (table["MAE"] > 0).all() and table["Loss_Charbonnier"][1] > 0
    assert images.read_picture(tmp_path / "sr.png").rgb.shape == (300, 408, 3)
    assert (tmp_path / "plain.onnx").exists()
    assert "MAE" in printed[4]
    assert len(list((tmp_path / "faded").iterdir())) == 2
