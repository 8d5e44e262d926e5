"""Every command of the README runs as written, in a copy of the repository with small stand-ins for the user's files.

Trainings get `--dry-run` and small batches, except one that is short; what needs a download is only parsed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, run
from PIL import Image

import prepare_data
import train

DOWNLOADS = (
    "prepare_data.py div2k",
    "DIV2K",
    "pip install",
    "git clone",
    "make demo",
    "make test",
    "make bench",
    "make torture",
    "-m venv",
)
SMALL = ("--dry-run", "--crop", "64", "--batch-size", "2")  # an option that is repeated counts as it was last given


def commands() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


def needs_download(command: str) -> bool:
    without = ("--vgg-weights random", "--perceptual-weight 0", "--epochs 0")
    trains_on_imagenet = "train.py" in command and not any(options in command for options in without)
    return any(word in command for word in DOWNLOADS) or (trains_on_imagenet and "--help" not in command)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, astronaut):
    """The scripts, and in `my_photos` and `data` the files that the README's commands speak of."""
    folder = tmp_path_factory.mktemp("readme")
    for path in [*ROOT.glob("*.py"), ROOT / "weights", ROOT / "utils"]:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
    for place in ("my_photos/train", "my_photos/valid"):
        (folder / place).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(astronaut[index * 100 : index * 100 + 96, :96]).save(folder / place / f"{index}.png")
    Image.fromarray(astronaut[:24, :32]).save(folder / "photo.jpg")
    return folder


def test_every_command_of_the_readme_runs_or_is_parsed(workplace):
    found = commands()
    assert len(found) >= 10
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for command in found:
        words = shlex.split(command)
        if needs_download(command):
            if words[:2] == ["python", "train.py"]:
                train.get_args_parser().parse_args(words[2:])
            elif words[:2] == ["python", "prepare_data.py"]:
                prepare_data.get_args_parser().parse_args(words[2:])
            else:
                assert words[0] in ("git", "cd", "make", "python3", "pip", ".venv/bin/pip"), command
            continue
        if "train.py" in command and "--epochs 1 " not in command and "--help" not in command:
            words += SMALL
        if words[0] == "python":
            run(*words[1:], cwd=workplace)
        else:
            done = subprocess.run(words, cwd=workplace, capture_output=True, text=True, timeout=240, env=environment)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran >= 10


def test_every_option_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for action in train.get_args_parser()._actions:
        assert any(f"`{option}" in text for option in action.option_strings), action.option_strings
