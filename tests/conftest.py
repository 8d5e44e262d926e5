import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def photograph(name: str) -> np.ndarray:
    """One of scikit-image's own pictures, RGB uint8."""
    import skimage

    return np.asarray(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    return photograph("astronaut.png")


@pytest.fixture
def photos(tmp_path, astronaut) -> tuple[Path, Path]:
    """Folders of four training and two validation images, cut from a photograph."""
    train, valid = tmp_path / "photos" / "train", tmp_path / "photos" / "valid"
    for folder, count in ((train, 4), (valid, 2)):
        folder.mkdir(parents=True)
        for index in range(count):
            top = 100 * index
            Image.fromarray(astronaut[top : top + 75, 200:302]).save(folder / f"image_{index}.png")
    return train, valid


@pytest.fixture
def set5() -> Path:
    if not (SHARED / "Set5").is_dir():
        pytest.skip("Set5 is not here")
    return SHARED / "Set5"


def run(script: str, *args, status: int | None = 0, **options) -> subprocess.CompletedProcess:
    """Run a script of the repository as a user does, and check its exit status."""
    environment = {**os.environ, "PYTHONWARNINGS": "error::UserWarning:__main__"}
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, **options)
    if status is not None:
        assert done.returncode == status, done.stdout + done.stderr
    return done


def the_error(done: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a script that refused its input."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and ": error: " in lines[0], done.stderr
    return lines[0]
