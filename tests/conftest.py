import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
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
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="srgan-tests-")


def run(
    script: str, *args, status: int | None = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Run a script as a user does, in a process of its own, and check its exit status."""
    done = started_script(script, *args, cwd=cwd)()
    if status is not None:
        assert done.returncode == status, done.stdout + done.stderr
    return done


def started_script(script: str, *args, cwd: Path | None = None, environment: dict | None = None):
    """Start a script in its own process; return a function that waits for its status and output.

    Unless the test chooses, PyTorch runs the generator: most tests compare with it, and to convert
    a small generator of their own would take longer than to enlarge with it.
    """
    arguments = [str(script), *map(str, args)]
    for place, name in enumerate(arguments):
        if name in ENLARGING_SCRIPTS and not {"--backend", "--sr"} & set(arguments):
            arguments[place + 1 : place + 1] = ["--backend", "torch"]
    folder = tempfile.TemporaryDirectory()
    out, errors = (Path(folder.name, name) for name in ("out", "errors"))
    variables = dict(os.environ) | {name: str(value) for name, value in (environment or {}).items()}
    process = _processes.Process(
        target=_run_script, args=(arguments, (out, errors), str(cwd or Path.cwd()), variables)
    )
    process.start()

    def finish() -> subprocess.CompletedProcess:
        process.join(240)
        if process.exitcode is None:
            process.kill()
            pytest.fail(f"{arguments} did not end")
        with folder:
            return subprocess.CompletedProcess(
                arguments, process.exitcode, out.read_text(), errors.read_text()
            )

    return finish


def _run_script(
    arguments: list[str], streams: tuple[Path, Path], cwd: str, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.argv = arguments
    runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


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
