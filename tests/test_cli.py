"""What a script leaves on stderr, and its exit status, for each kind of failure."""

import argparse
import re
import subprocess
import sys

import pytest
from conftest import ROOT, run, started_script, the_error

from utils import cli

SCRIPT = """
import errno, multiprocessing, os
import numpy as np
import torch
from utils import cli, processes

multiprocessing.set_start_method("fork", force=True)


class Images(torch.utils.data.Dataset):
    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.fault(index)


def load(fault):
    list(torch.utils.data.DataLoader(Images(fault), num_workers=1))


def fail(error):
    raise error


def be_killed(_):
    os.kill(os.getpid(), 9)


def main(args):
    return {body}


cli.run_script(main, cli.ArgumentParser(prog="script.py"))
"""


@pytest.fixture
def script(tmp_path):
    """Run a script whose `main` returns the value of an expression."""

    def run_it(body: str, status: int, **environment):
        (tmp_path / "script.py").write_text(SCRIPT.replace("{body}", body))
        done = started_script(tmp_path / "script.py", environment=environment)()
        assert done.returncode == status, done.stderr
        return done

    return run_it


def lines_of(done) -> list[str]:
    """The lines on stderr, without PyTorch's log.

    A worker's death may be noticed while `record_function` imports a module. PyTorch logs that
    error with its traceback, and goes on.
    """
    log = re.compile(r"W\d{4} ")
    return [line for line in done.stderr.splitlines() if line.strip() and not log.match(line)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("fail(cli.UserError('a.png: too small'))", "a.png: too small"),
        ("open('/none/a.png')", "/none/a.png: No such file or directory"),
        ("open('x' * 300)", "File name too long; choose a shorter name"),
        ("load(lambda _: fail(cli.UserError('a.png: cut short')))", "a.png: cut short"),
        ("load(lambda _: open('/none/a.png'))", "No such file or directory: '/none/a.png'"),
    ],
)
def test_user_errors_are_one_line_and_status_2(script, body, message):
    line = the_error(script(body, 2))
    assert line.startswith("script.py: error: ")
    assert message in line


ENDED = "another process of this run has ended"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("fail(cli.RunError('the loss is not finite'))", "the loss is not finite"),
        ("fail(MemoryError())", "out of memory: MemoryError"),
        ("torch.empty(10**15)", "out of memory: "),
        ("fail(torch.OutOfMemoryError('CUDA out of memory.'))", "out of memory: CUDA out of"),
        ("fail(RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'))", "out of memory: cuDNN"),
        ("np.empty(10**15)", "out of memory: Unable to allocate"),
        ("fail(OSError(errno.ENOMEM, 'Cannot allocate'))", "out of memory: Cannot allocate"),
        ("load(lambda _: fail(MemoryError()))", "out of memory: MemoryError"),
        ("load(lambda _: np.empty(10**15))", "out of memory: Unable to allocate"),
        ("load(be_killed)", ENDED),
        ("processes.map_in_processes(be_killed, range(16), 2, 'images')", ENDED),
    ],
)
def test_run_failures_are_one_line_and_status_1(script, body, message):
    (line,) = lines_of(script(body, 1))
    assert line.startswith("script.py: error: ")
    assert message in line
    assert "Traceback" not in line


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("fail(ValueError('a fault of the code'))", "ValueError: a fault of the code"),
        ("torch.ones(2) @ torch.ones(3)", "RuntimeError: inconsistent tensor size"),
        ("fail(OSError(errno.EIO, 'Input/output error'))", "OSError: [Errno 5] Input/output error"),
        ("{}['typo']", "KeyError: 'typo'"),
        ("load(lambda _: fail(ValueError('a fault of the data')))", "ValueError: a fault of the"),
        ("load(lambda _: torch.ones(2) @ torch.ones(3))", "RuntimeError: inconsistent tensor size"),
        ("load(lambda _: {}['typo'])", "KeyError: 'typo'"),
        ("processes.map_in_processes(str.upper, range(16), 2, 'images')", "TypeError: "),
        ("fail(RuntimeError('NCCL error: invalid usage, Duplicate GPU'))", "Duplicate GPU"),
    ],
)
def test_everything_else_keeps_its_traceback(script, body, message):
    done = script(body, 1)
    assert "Traceback" in done.stderr
    assert message in done.stderr
    assert "another process" not in done.stderr
    assert "script.py: error" not in done.stderr


def test_the_traceback_behind_a_line_can_be_seen(script):
    done = script("fail(cli.UserError('a.png: too small'))", 1, SRGAN_TRACEBACK="1")
    assert "Traceback" in done.stderr
    assert lines_of(done)[-1].endswith("UserError: a.png: too small")


@pytest.mark.parametrize(("body", "status"), [("None", 0), ("0", 0), ("3", 3)])
def test_the_status_is_what_main_returns(script, body, status):
    assert script(body, status).stderr == ""


def test_a_wrong_option_is_one_line(tmp_path):
    for words in ("--epochs -1", "--epochs many", "--nonsense", "--learning-rate nan"):
        option = words.split()
        assert option[0] in the_error(run("train.py", *option, status=None))


SCRIPTS = [path.name for path in ROOT.glob("*.py") if "cli.run_script(" in path.read_text()]


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_every_script_tells_its_version(script):
    assert run(script, "--version").stdout == f"{script} {cli.VERSION}\n"


# Packages that take a tenth of a second or more to import
LARGE = {"torch", "torchvision", "pandas", "scipy", "skimage", "cv2", "matplotlib", "openvino"}
LARGE |= {"onnx", "onnxscript", "onnxruntime", "ncnn", "pnnx", "av", "gradio", "lpips"}


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--no-such-option", 2)])
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_the_command_line_is_parsed_before_large_packages_are_imported(script, option, status):
    words = [sys.executable, "-X", "importtime", str(ROOT / script), option]
    done = subprocess.run(words, capture_output=True, text=True)
    names = re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.M)
    assert done.returncode == status and "utils.cli" in names
    assert not {name.split(".")[0] for name in names} & LARGE


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("[/pytorch/third_party/gloo/gloo/pair.cc:534] Connection closed by peer [::1]:1", True),
        ("NCCL error: remote process exited or network error, ncclRemoteError: ...", True),
        ("DataLoader worker (pid 7) is killed by signal: Killed.", True),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", True),
        ("NCCL error: invalid usage, ncclInvalidUsage: Duplicate GPU detected", False),
        ("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (...):\n", False),
        ("The size of tensor a (2) must match the size of tensor b (3)", False),
    ],
)
def test_only_a_lost_process_is_reported_as_one(text, dead):
    assert cli.is_dead_helper(RuntimeError(text)) is dead
    assert not cli.is_dead_helper(ValueError(text))


def test_counts_have_their_noun_in_the_singular_or_plural():
    assert [cli.counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert cli.counted(1200, "update") == "1,200 updates"


CUDNN = "cuDNN error: CUDNN_STATUS_"


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        (f"{CUDNN}ALLOC_FAILED", True),
        (f"{CUDNN}INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        (f"{CUDNN}INTERNAL_ERROR_HOST_ALLOCATION_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("FIND was unable to find an engine to execute this computation", True),
        ("GET was unable to find an engine to execute this computation", True),
        (f"{CUDNN}INTERNAL_ERROR", False),  # since version 9, one of allocation says so
        (f"{CUDNN}EXECUTION_FAILED", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_exhausted_memory_of_a_gpu_is_recognised(text, memory):
    assert cli.is_out_of_memory(RuntimeError(text)) is memory
    assert not cli.is_out_of_memory(ValueError(text))


def test_long_lists_are_cut():
    assert cli.listed(range(3)) == "0, 1, 2"
    assert cli.listed(range(12), "; ", most=2) == "0; 1 and 10 more"


def test_numbers_of_options_are_in_range():
    assert cli.positive_int("3") == 3
    assert cli.non_negative_int("0") == 0
    assert cli.non_negative_float("1e-4") == 1e-4
    for parse, text in [
        (cli.positive_int, "0"),
        (cli.non_negative_int, "1.5"),
        (cli.non_negative_float, "inf"),
    ]:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
            parse(text)


def test_a_closed_pipe_is_no_error(tmp_path):
    """As in `python prepare_data.py demo | head -n 1`."""
    script = tmp_path / "chatty.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from utils import cli\n"
        "def main(args):\n"
        "    for _ in range(1000):\n"
        "        print('x' * 1000)\n"
        "cli.run_script(main, cli.ArgumentParser())\n"
    )
    words = ["bash", "-c", f"{sys.executable} {script} | head -n 1"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "x" * 1000 + "\n"
    assert done.stderr == ""
