"""What the fault tests and `make torture` share: runs that meet a fault, and what they lost."""

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
from conftest import photograph, started_script, tensors
from PIL import Image

from utils import files, images

TIMES = {"Images_Per_Second", "Seconds"}
OPTIONS = ["--crop", 32, "--batch-size", 4, "--blocks", 1, "--device", "cpu", "--ema", 0.9]
OPTIONS += ["--pretrain-epochs", 2, "--epochs", 1, "--val-triplets", 1, "--degradation", "photo"]
OPTIONS += ["--perceptual-weight", 0, "--perceptual-weights", "random", "--workers", 0]


def make_photos(folder: Path) -> None:
    """Six training images and a validation image."""
    astronaut = photograph("astronaut.png")
    for place, count in (("train", 6), ("valid", 1)):
        (folder / place).mkdir(parents=True)
        for index in range(count):
            top = 60 * index
            photo = Image.fromarray(astronaut[top : top + 48, 200:264])
            photo.save(folder / place / f"{index}.png")


def train_with(fault: str, number: int, folder: Path, place: Path) -> subprocess.CompletedProcess:
    """Train on the photographs of `folder` in `place` with a fault of tests/faulty.py."""
    words = ["train.py", "--train-dir", folder / "train", "--val-dir", folder / "valid"]
    words += ["--cache", place / "cache", "--out", place / "out", *OPTIONS]
    environment = {"OMP_NUM_THREADS": 1}
    finish = started_script("tests/faulty.py", fault, number, *words, environment=environment)
    return finish()


def events_of(done: subprocess.CompletedProcess) -> list[str]:
    """The events that a run of `train_with` printed, in which no fault was due."""
    line = next(line for line in done.stderr.splitlines() if line.startswith("events: "))
    return line.split()[1:]


def state_of(place: Path) -> dict:
    """What has to be equal after a run.

    Every tensor in its checkpoint and generator files, the CSV except for its times, and the
    pictures.
    """
    state: dict = {}
    for path in sorted((place / "out" / "checkpoints").glob("*.pth")):
        if path.name != "previous.pth":
            for name, tensor in tensors(path).items():
                state[path.name + name] = tensor.numpy()
    with open(place / "out" / "statistics.csv") as file:
        for row in csv.DictReader(file):
            values = [value for name, value in row.items() if name not in TIMES]
            state[f"epoch {row['Epoch']}"] = np.array(values)
    for path in place.rglob("validation/*/*.png"):
        state[str(path.relative_to(place))] = np.asarray(Image.open(path))
    return state


def same(one: dict, other: dict) -> bool:
    """Tell whether two states are equal to the last bit."""
    if one.keys() != other.keys():
        return False
    return all(np.array_equal(one[name], other[name]) for name in one)


def broken_files(place: Path) -> list[str]:
    """Return the incomplete files of a run, however it ended; temporary files do not count."""
    wrong = []
    for path in sorted(place.rglob("*")):
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
    # Run into the fault
    done = train_with(fault, number, folder, place)
    problems = broken_files(place)
    if fault == "kill":
        if done.returncode != -9:
            problems.append(f"status {done.returncode} instead of a kill: {done.stderr}")
    else:
        lines = [line for line in done.stderr.splitlines() if "error: " in line]
        reason = {"full": "No space left", "broken": "Input/output error"}[fault]
        # It may have found another way, such as a copy where a link failed
        managed = done.returncode == 0 and same(state_of(place), expected)
        refused = done.returncode == 2 and len(lines) == 1
        if not managed and not (refused and reason in lines[0] and str(place) in lines[0]):
            problems.append(f"status {done.returncode}, {done.stderr.strip()[-300:]}")
        problems += [f"{path.name} was left behind" for path in place.rglob(".srgan-*.tmp")]

    # Run again
    again = train_with("kill", 0, folder, place)
    if again.returncode:
        problems.append(f"the restart failed: {again.stderr.strip()[-300:]}")
    elif not same(state_of(place), expected):
        problems.append("the restart ended differently")
    for path in place.rglob(".srgan-*.tmp"):
        problems.append(f"{path.name} was left behind after the restart")
    shutil.rmtree(place)
    return "; ".join(problems)
