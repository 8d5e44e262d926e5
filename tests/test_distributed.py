import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, Running, run, started_script
from PIL import Image
from test_cli_train import assert_same_run, command, rows_of

import metrics
from dataloader import EpochSampler, ValDatasetFromFolder
from utils import cli, distributed, generator_file
from utils.checkpoint import Progress
from validation import validate

OPTIONS = ["--pretrain-epochs", 1, "--crops-per-image", 2, "--batch-size", 4, "--ema", 0.9]
OPTIONS += ["--perceptual-weight", 0]


def started_processes(
    world_size: int, script: str, *arguments, folders: list | None = None
) -> list[Running]:
    """Start a script in several processes with the variables that torchrun sets.

    If folders are given, each process works in its own.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    return [
        started_script(
            ROOT / script,
            *arguments,
            cwd=folder,
            environment={**shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank, folder in enumerate(folders or [None] * world_size)
    ]


def launched(*arguments, **options) -> list[subprocess.CompletedProcess]:
    """Run a script as `started_processes` does, to its end."""
    return [process() for process in started_processes(*arguments, **options)]


def torchrun(arguments: list, *options) -> subprocess.Popen:
    """A real torchrun of two processes, in a process group of its own."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += [*options, ROOT / "train.py", *arguments]
    return subprocess.Popen(
        [*map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def workers_of(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return [int(child) for child in children.split()]


def wait_for(path: Path, launcher: subprocess.Popen) -> None:
    while not path.exists():
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, astronaut):
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    photos = (folder / "train", folder / "valid")
    for place, count in zip(photos, (5, 3), strict=True):
        place.mkdir()
        for index in range(count):
            top = 60 * index
            Image.fromarray(astronaut[top : top + 72, 100:180]).save(place / f"{index}.png")
    arguments = command(photos, folder / "out", *OPTIONS, "--epochs", 2)
    first, second = launched(2, "train.py", *arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    return photos, folder / "out", first, second


def test_parameters_are_equal_after_every_step_and_parts_are_averaged_once():
    first, second = launched(2, "tests/ddp_steps.py")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "equal parameters in 2 processes" in first.stdout


def test_two_processes_leave_one_run(two_processes):
    _photos, out, first, second = two_processes
    assert "processes: 2" in first.stdout
    assert second.stdout == ""
    assert [row["Epoch"] for row in rows_of(out)] == ["1", "2", "3"]
    pictures = sorted(path.name for path in (out / "validation" / "epoch_003").iterdir())
    assert pictures == ["0.png", "1.png", "2.png"]
    assert not list(out.rglob(".srgan-*.tmp"))


def validated_alone(photos, out: Path, precision: str) -> float:
    """The PSNR in dB that one process measures of a run's last generator."""
    generator = generator_file.load(out / "checkpoints" / "generator_last.pth")
    val_set = ValDatasetFromFolder(photos[1], 4)
    return validate(generator, val_set, precision, None, 0, cli.StopRequest())["PSNR"]


def test_validation_is_that_of_one_process(two_processes):
    photos, out, *_ = two_processes
    alone = validated_alone(photos, out, "fp32")
    assert metrics.LARGEST_PSNR > alone == pytest.approx(float(rows_of(out)[-1]["PSNR"]), rel=1e-6)


def test_two_processes_in_bf16_validate_as_one_does(two_processes, tmp_path):
    photos, *_ = two_processes
    options = [*OPTIONS, "--epochs", 0, "--precision", "bf16"]
    first, second = launched(2, "train.py", *command(photos, tmp_path / "out", *options))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    alone = validated_alone(photos, tmp_path / "out", "bf16")
    assert float(rows_of(tmp_path / "out")[-1]["PSNR"]) == pytest.approx(alone)


def test_one_process_of_torchrun_is_the_plain_run(two_processes, tmp_path, monkeypatch):
    photos, *_ = two_processes
    arguments = command(photos, tmp_path / "torchrun", *OPTIONS, "--epochs", 1)
    (done,) = launched(1, "train.py", *arguments)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run("train.py", *command(photos, tmp_path / "plain", *OPTIONS, "--epochs", 1))
    assert_same_run(tmp_path / "torchrun", tmp_path / "plain")


def test_machines_that_do_not_share_one_out_folder_are_refused(two_processes, tmp_path):
    photos, whole, *_ = two_processes
    shutil.copytree(whole, tmp_path / "a" / "out")
    (tmp_path / "b").mkdir()
    arguments = command(photos, "out", *OPTIONS, "--epochs", 3)
    for done in launched(2, "train.py", *arguments, folders=[tmp_path / "a", tmp_path / "b"]):
        assert done.returncode == 2, done.stderr
        assert "is not the same folder for all processes" in done.stderr


def test_torchrun_restarts_a_killed_process_and_sigterm_saves_for_the_same_command(
    two_processes, tmp_path
):
    photos, whole, *_ = two_processes
    arguments = command(photos, tmp_path / "out", *OPTIONS, "--epochs", 2)
    launcher = torchrun(arguments, "--max-restarts=1")
    wait_for(tmp_path / "out" / "checkpoints" / "last.pth", launcher)
    first = workers_of(launcher)
    os.kill(first[1], signal.SIGKILL)
    while len(set(workers_of(launcher)) - set(first)) < 2:  # the launcher restarts both
        time.sleep(0.01)
    wait_for(tmp_path / "out" / "validation" / "epoch_002" / "0.png", launcher)
    # As a scheduler does; the launcher passes the signal on once more
    for process in (launcher.pid, *workers_of(launcher)):
        os.kill(process, signal.SIGTERM)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert errors.count("run the same command again to resume") == 1, errors
    assert len(rows_of(tmp_path / "out")) < 3
    for done in launched(2, "train.py", *arguments):
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "out", whole)


def test_a_killed_process_ends_the_other_and_the_same_command_carries_on(two_processes, tmp_path):
    photos, whole, *_ = two_processes
    arguments = command(photos, tmp_path / "out", *OPTIONS, "--epochs", 2)
    first, second = started_processes(2, "train.py", *arguments)
    second.wait_until((tmp_path / "out" / "checkpoints" / "last.pth").exists)
    os.kill(first.pid, signal.SIGKILL)
    left = second()
    assert left.returncode == 1 and "another process of this run has ended" in left.stderr
    assert first().returncode == -signal.SIGKILL
    assert len(rows_of(tmp_path / "out")) < 3
    for done in launched(2, "train.py", *arguments):
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "out", whole)


def test_shares_are_even_and_disjoint_and_left_out_samples_are_reported(two_processes, tmp_path):
    first = EpochSampler(11, 4, 0, 0, 2)
    second = EpochSampler(11, 4, 0, 1, 2)
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [2, 2, 1]
    assert first.left_out == 1
    together = [sorted(a + b) for a, b in zip(first, second, strict=True)]
    assert len({sample for batch in together for sample in batch}) == 10
    assert together[:2] == [sorted(batch) for batch in EpochSampler(11, 4, 0)][:2]
    with pytest.raises(ValueError, match="--batch-size 4 cannot be shared evenly by 3"):
        EpochSampler(11, 4, 0, 0, 3)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_the_same_message(
    two_processes, tmp_path
):
    photos, *_ = two_processes
    arguments = command(photos, tmp_path / "out", *OPTIONS, "--epochs", 0)
    lines = set()
    for done in launched(2, "tests/ddp_not_finite.py", *arguments):
        assert done.returncode == 1, done.stderr
        lines |= {line for line in done.stderr.splitlines() if "error" in line}
    (line,) = lines
    assert "error: Loss_Pixel not finite in epoch 1, by step " in line


def test_a_network_that_is_not_finite_in_one_process_ends_all(monkeypatch):
    """As the batch statistics, which are each process's own, may be."""
    monkeypatch.setattr(distributed, "gather", lambda wrong: [wrong, ["weights of the generator"]])
    with pytest.raises(cli.RunError, match="weights of the generator not finite in epoch 3"):
        Progress(epoch=3).check_weights(generator=torch.nn.Linear(1, 1))


def test_a_single_process_changes_nothing():
    values = torch.rand(3)
    network = torch.nn.Linear(1, 1)
    assert distributed.mean(values) is values
    assert distributed.wrap(network) is network
    assert distributed.gather("a") == ["a"]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_launcher_that_sets_less_than_torchrun_is_told_what_is_missing(monkeypatch, missing):
    """As under srun and mpirun, which number processes by variables of their own."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "0"}
    variables["MASTER_ADDR"] = "127.0.0.1"
    del variables[missing]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(cli.UserError, match=f"not {missing}: start the processes with torchrun"):
        with distributed.processes(torch.device("cpu")):
            pytest.fail("the processes cannot find each other")


def launch_alone(monkeypatch, port: int) -> None:
    """Set what torchrun sets for its only process."""
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}
    variables["MASTER_ADDR"] = "127.0.0.1"
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_a_port_that_is_taken_is_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        launch_alone(monkeypatch, port)
        with pytest.raises(
            cli.UserError, match=f"cannot connect through 127.0.0.1:{port} .*try an"
        ):
            with distributed.processes(torch.device("cpu")):
                pytest.fail("the port was free")


# --- GPUs, without one --------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """Pretend to be the only process of a machine with two GPUs; record what is done with them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launch_alone(monkeypatch, port)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "_gpu_group", None)
    gpus = mock.Mock()
    monkeypatch.setattr(torch.cuda, "set_device", gpus.set_device)
    monkeypatch.setattr(dist, "new_group", gpus.new_group)
    yield gpus
    if dist.is_initialized():
        dist.destroy_process_group()


CUDA = torch.device("cuda")


def test_gpus_wait_for_each_other_for_minutes_and_processes_for_hours(gpus):
    with distributed.processes(CUDA):
        assert dist.get_backend() == "gloo"
        assert distributed.gather("a") == ["a"]
    gpus.new_group.assert_called_once_with(backend="nccl", timeout=timedelta(minutes=10))


def test_a_run_that_ends_destroys_its_groups(gpus):
    with distributed.processes(CUDA):
        pass
    assert not dist.is_initialized()
    gpus.new_group().abort.assert_not_called()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_run_that_fails_aborts_what_others_wait_for_instead_of_waiting_for_them(gpus, error):
    destroy = mock.Mock()
    with mock.patch.object(dist, "destroy_process_group", destroy), pytest.raises(error):
        with distributed.processes(CUDA):
            raise error
    gpus.new_group().abort.assert_called_once_with()
    destroy.assert_not_called()


@pytest.mark.parametrize(
    ("local", "visible", "torchrun", "chosen"),
    [(1, 2, True, 1), (1, 2, False, 1), (3, 1, False, 0), (0, 1, True, 0)],
)
def test_a_process_takes_its_own_gpu(gpus, monkeypatch, local, visible, torchrun, chosen):
    """Under srun --gpus-per-task=1, each process sees its own GPU alone, as number 0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with distributed.processes(CUDA):
        gpus.set_device.assert_called_once_with(chosen)


@pytest.mark.parametrize(("local", "visible", "torchrun"), [(2, 2, False), (1, 1, True)])
def test_more_processes_than_gpus_are_refused(gpus, monkeypatch, local, visible, torchrun):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    message = f"LOCAL_RANK is {local}, but the number of visible GPUs is {visible}: .*torchrun"
    with pytest.raises(cli.UserError, match=message), distributed.processes(CUDA):
        pytest.fail("two processes share a GPU")
