import ast
import os
import re
import signal
import time

import pytest
from conftest import ROOT

import cli

# What each room may import of ours; `cli` (exit statuses, bars) is for all.
ROOMS = {
    "model": set(),
    "files": set(),
    "cli": set(),
    "compat": set(),
    "images": {"files"},
    "pixel_cache": {"files", "images"},
    "dataloader": {"files", "images", "pixel_cache"},
    "generator_loss_functions": {"compat", "files", "images"},
    "metrics": {"compat", "images"},
    "checkpoint": {"files", "model"},
    "inference": {"images", "model", "checkpoint"},
    "run_log": {"files", "images", "options"},
    "options": {"generator_loss_functions", "inference", "model"},
    "distributed": set(),
    "validation": {"dataloader", "distributed", "files", "images", "inference", "metrics"},
    "test_image": {"inference", "images"},
    "test_benchmark": {"inference", "metrics", "dataloader", "images", "files", "model"},
    "plot_statistics": {"files", "run_log"},
    "prepare_data": {"files", "images"},
    "export_onnx": {"files", "inference"},
}
SCRIPTS = {"train", "test_image", "test_benchmark", "plot_statistics", "prepare_data", "export_onnx"}


def imported(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_rooms_import_only_what_they_may(path):
    ours = imported(path) & {other.stem for other in ROOT.glob("*.py")} - {"cli"}
    assert ours <= (ROOMS.keys() - SCRIPTS if path.stem == "train" else ROOMS[path.stem])


def test_a_range_conversion_exists_once():
    for path in ROOT.glob("*.py"):
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


def test_a_hangup_that_nohup_ignores_stays_ignored_and_an_echo_of_a_signal_is_no_second_one(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with cli.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None and signal.SIGHUP not in cli.heeded_signals()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM and signal.SIGINT in cli.heeded_signals()
            os.kill(os.getpid(), signal.SIGTERM)  # the group's copy of the same request, as `timeout` sends it
            monkeypatch.setattr(cli, "_ECHO_SECONDS", 0)
            with pytest.raises(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
    finally:
        signal.signal(signal.SIGHUP, before)
