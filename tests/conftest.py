import contextlib
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
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


@pytest.fixture(scope="session")
def vgg19_files() -> dict[str, Path]:
    """VGG19 up to conv3_1, and a network distilled from it up to conv5_1."""
    folder = SHARED / "perceptual"
    files = {
        "slice": folder / "vgg19_conv3_1.pth",
        "distilled": folder / "vgg19_distilled_conv5_1.pth",
    }
    if not all(path.exists() for path in files.values()):
        pytest.skip("VGG19's first layers are not here")
    return files


@pytest.fixture(scope="session")
def squeezenet_file() -> Path:
    path = SHARED / "squeezenet" / "squeezenet1_0_imagenet.pth"
    if not path.exists():
        pytest.skip("SqueezeNet's ImageNet weights are not here")
    return path


# Scripts run in processes forked from a server that has already imported PyTorch: it is quicker.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
)
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["preload"])


ENLARGING_SCRIPTS = {"test_image.py", "test_video.py", "test_benchmark.py", "app.py"}

# Converted generators are kept here, not in the user's folder
_cache = tempfile.TemporaryDirectory(prefix="srgan-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name


def run(
    script: str, *args, status: int | None = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Run a script as a user does, in a process of its own, and check its exit status."""
    done = started_script(script, *args, cwd=cwd)()
    if status is not None:
        assert done.returncode == status, done.stdout + done.stderr
    return done


def started_script(
    script: str, *args, cwd: Path | None = None, environment: dict | None = None
) -> "Running":
    """Start a script in its own process.

    Unless the test chooses, PyTorch runs the generator: most tests compare with it, and to convert
    a small generator of their own would take longer than to enlarge with it.
    """
    arguments = [str(script), *map(str, args)]
    for place, name in enumerate(arguments):
        if name in ENLARGING_SCRIPTS and not {"--backend", "--sr"} & set(arguments):
            arguments[place + 1 : place + 1] = ["--backend", "torch"]
    return Running(arguments, cwd or Path.cwd(), environment or {})


class Running:
    """A script in a process and a process group of its own; call it to wait for its end."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict):
        import preload  # here, since it imports PyTorch, which the controller of xdist can spare

        self.arguments = arguments
        self._folder = tempfile.TemporaryDirectory()
        self._streams = tuple(Path(self._folder.name, name) for name in ("out", "errors"))
        variables = dict(os.environ)
        variables |= {name: str(value) for name, value in environment.items()}
        self._process = _processes.Process(
            target=preload.run_script, args=(arguments, self._streams, str(cwd), variables)
        )
        self._process.start()
        self.pid = self._process.pid

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the script does, such as to write a file."""
        while not condition():
            assert self._process.exitcode is None, self.errors()
            time.sleep(0.01)

    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self._streams[1].read_text() if self._streams[1].exists() else ""

    def __call__(self) -> subprocess.CompletedProcess:
        self._process.join(240)
        if self._process.exitcode is None:
            self._process.kill()
            pytest.fail(f"{self.arguments} did not end")
        with self._folder:
            out, errors = (stream.read_text() for stream in self._streams)
            return subprocess.CompletedProcess(self.arguments, self._process.exitcode, out, errors)


def tensors(path: Path) -> dict:
    """Every tensor in a file of nested data, by its path in the data."""
    import torch

    found = {}

    def walk(value, name):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}")
        elif isinstance(value, torch.Tensor):
            found[name] = value

    walk(torch.load(path, weights_only=True), "")
    return found


def the_error(done: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a script that refused its input."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and ": error: " in lines[0], done.stderr
    return lines[0]


def quick_in(precision: str) -> contextlib.AbstractContextManager:
    """Compute without oneDNN in fp16, whose gradients take it five times as long on a CPU."""
    if precision == "fp16":
        import torch

        return torch.backends.mkldnn.flags(enabled=False)
    return contextlib.nullcontext()
