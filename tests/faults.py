"""What the fault tests and `make torture` share: a short run, one that meets a fault, and whether anything was lost."""

import csv
import shutil
from pathlib import Path

import numpy as np
import torch
from conftest import photograph, started_script, tensors
from PIL import Image

from utils import files, images

TIMES = {"Images_Per_Second", "Seconds"}
OPTIONS = [
    *(
        "--crop",
        32,
        "--batch-size",
        4,
        "--blocks",
        1,
        "--device",
        "cpu",
        "--ema",
        0.9,
        "--val-triplets",
        1,
    ),
    *(
        "--pretrain-epochs",
        2,
        "--epochs",
        1,
        "--perceptual-weight",
        0,
        "--perceptual-weights",
        "random",
    ),
    *("--degradation", "photo"),
]


def make_photos(folder: Path) -> None:
    """Six training images and a validation image."""
    astronaut = photograph("astronaut.png")
    for place, count in (("train", 6), ("valid", 1)):
        (folder / place).mkdir(parents=True)
        for index in range(count):
            top = 60 * index
            Image.fromarray(astronaut[top : top + 48, 200:264]).save(
                folder / place / f"{index}.png"
            )


def train_with(fault: str, number: int, folder: Path, place: Path):
    """Train on the photographs of `folder` in `place` with a fault; return the finished process."""
    words = ["train.py", "--train-dir", folder / "train", "--val-dir", folder / "valid"]
    words += ["--cache", place / "cache", "--out", place / "out", *OPTIONS]
    return started_script(
        "tests/faulty.py", fault, number, *words, environment={"OMP_NUM_THREADS": 1}
    )()


def state_of(place: Path) -> dict:
    """What has to be equal after a run: every tensor in its checkpoint and generator files, and the CSV except for its times."""
    paths = [
        path
        for path in sorted((place / "out" / "checkpoints").glob("*.pth"))
        if path.name != "previous.pth"
    ]
    found = {path.name + name: tensor for path in paths for name, tensor in tensors(path).items()}
    with open(place / "out" / "statistics.csv") as file:
        rows = [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]
    pictures = {
        str(path.relative_to(place)): np.asarray(Image.open(path))
        for path in place.rglob("validation/*/*.png")
    }
    return {**found, "csv": rows, **pictures}


def same(one: dict, other: dict) -> bool:
    """Tell whether two states are equal to the last bit."""
    if one.keys() != other.keys():
        return False
    equal = {torch.Tensor: torch.equal, np.ndarray: np.array_equal}
    return all(
        equal.get(type(one[name]), lambda a, b: a == b)(one[name], other[name]) for name in one
    )


def broken_files(place: Path) -> list[str]:
    """Return the incomplete files of a run, however it ended; temporary files do not count."""
    wrong = []
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        try:
            if path.suffix == ".pth":
                files.load_tensors(path)
            elif path.suffix == ".png":
                images.read_picture(path)
            elif path.name == "statistics.csv":
                assert path.read_text().endswith("\n")
        except (ValueError, AssertionError) as error:
            wrong.append(f"{path.name}: {error}")
    return wrong


def survives(fault: str, number: int, folder: Path, place: Path, expected: dict) -> str:
    """Run into a fault, look at what is left, run again; return what was lost, or nothing."""
    done = train_with(fault, number, folder, place)
    problems = broken_files(place)
    if fault == "kill":
        if done.returncode != -9:
            problems.append(f"status {done.returncode} instead of a kill: {done.stderr}")
    else:
        lines = [line for line in done.stderr.splitlines() if "error: " in line]
        reason = {"full": "No space left", "broken": "Input/output error"}[fault]
        kept = done.returncode == 0 and same(
            state_of(place), expected
        )  # it found another way: a copy if a link fails
        if not kept and (
            done.returncode != 2
            or len(lines) != 1
            or reason not in lines[0]
            or str(place) not in lines[0]
        ):
            problems.append(f"status {done.returncode}, {done.stderr.strip()[-300:]}")
        problems += [f"{path.name} was left behind" for path in place.rglob(".srgan-*.tmp")]
    again = train_with("kill", 0, folder, place)
    if again.returncode:
        problems.append(f"the restart failed: {again.stderr.strip()[-300:]}")
    elif not same(state_of(place), expected):
        problems.append("the restart ended differently")
    problems += [
        f"{path.name} was left behind after the restart" for path in place.rglob(".srgan-*.tmp")
    ]
    shutil.rmtree(place)
    return "; ".join(problems)
