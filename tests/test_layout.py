import ast
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS = {path.stem for path in ROOT.glob("*.py")}  # modules of the root
SCRIPTS = {path.stem for path in ROOT.glob("*.py") if "__main__" in path.read_text()}
FOLDERS = ("video", "page", "utils")
MODULES = [*ROOT.glob("*.py"), *(path for name in FOLDERS for path in (ROOT / name).glob("*.py"))]


def imported(path: Path) -> set[str]:
    """The first parts of the names of all modules that a file imports, at its top or inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_what_is_below_it(path):
    room = path.parent.name if path.parent != ROOT else "root"
    names = imported(path)
    assert not names & SCRIPTS
    assert not names & {"page": {"video"}, "video": {"page"}, "utils": {"video", "page"}}.get(
        room, set()
    )
    if room == "utils":
        assert names & ROOMS <= {"networks", "model", "esrgan"}


def test_the_scripts_are_those_that_users_know():
    assert {
        *("train", "test_image", "test_video", "test_benchmark", "app"),
        *("prepare_data", "plot_statistics", "export_model"),
    } == SCRIPTS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_args_stop_at_the_scripts(path):
    """Modules take explicit values; `weights` and `device` add options of several scripts."""
    takes_args = re.search(r"argparse\.Namespace", path.read_text())
    assert not takes_args or path.stem in SCRIPTS | {"options", "weights", "cli"}


def test_no_message_leaves_the_plural_open():
    """`cli.counted` gives "1 image" and "2 images"."""
    for path in MODULES:
        assert "(s)" not in path.read_text(), path


def test_a_range_conversion_exists_once():
    for path in MODULES:
        if path.stem != "images":
            assert "127.5" not in path.read_text(), path


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_everything_but_torch_is_locked_by_hash_at_the_version_that_is_asked_for(name):
    asked = re.findall(r"^([\w-]+)==(\S+)", (ROOT / f"{name}.txt").read_text(), re.M)
    locked = {}
    for block in re.split(r"\n(?=\S)", (ROOT / f"{name}.lock").read_text()):
        package, version = re.match(r"([\w-]+)==(\S+)", block).groups()
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), package
        locked.setdefault(package, set()).add(version)
    assert len(asked) > 8
    for package, version in asked:
        assert package in ("torch", "torchvision") or version in locked[package], package
    assert not {"torch", "torchvision"} & locked.keys()


@pytest.mark.parametrize(
    "name",
    [
        "Makefile",
        "requirements.txt",
        "requirements-dev.txt",
        "requirements.lock",
        "requirements-dev.lock",
    ],
)
def test_packages_come_from_the_index_that_is_configured(name):
    assert not re.search(r"://|--(default-|extra-)?index", (ROOT / name).read_text())


STOPPED_TWICE = """
import os, signal, time
from utils import cli

me = os.getpid()
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
cli._ECHO_SECONDS = 600  # a busy machine may need more than two seconds
with cli.StopRequest() as stop:
    os.kill(me, signal.SIGHUP)
    assert stop.number is None and signal.SIGHUP not in cli.heeded_signals()
    os.kill(me, signal.SIGTERM)
    assert stop.number == signal.SIGTERM and signal.SIGINT in cli.heeded_signals()
    os.kill(me, signal.SIGTERM)  # the group's copy of the same request, as `timeout` sends it
    print("still here", flush=True)
    cli._ECHO_SECONDS = 0
    os.kill(me, signal.SIGTERM)
    time.sleep(10)
print("too late")
"""


def test_sighup_under_nohup_stays_ignored_and_a_repeated_signal_counts_once():
    words = [sys.executable, "-c", STOPPED_TWICE]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "still here\n"
    assert done.returncode == 128 + signal.SIGTERM
