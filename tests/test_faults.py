"""A few of the faults of `make torture`: kills and failing writes at moments spread over a run."""

import shutil

import faults
import pytest

from utils import checkpoint


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The photographs, and the state and the events of an undisturbed run."""
    folder = tmp_path_factory.mktemp("faults")
    faults.make_photos(folder)
    done = faults.train_with("kill", 0, folder, folder / "whole")
    assert done.returncode == 0, done.stderr
    return folder, faults.state_of(folder / "whole"), faults.events_of(done)


def test_a_run_has_every_kind_of_event(undisturbed):
    events = undisturbed[2]
    assert {"write", "flush", "rename", "link", "work"} == set(events)
    assert len(events) > 60


@pytest.mark.parametrize("moment", [0.04, 0.3, 0.55, 0.8, 0.97])
def test_a_killed_run_resumes_to_the_same_result(undisturbed, tmp_path, moment):
    folder, expected, events = undisturbed
    number = 1 + int(moment * len(events))
    assert faults.survives("kill", number, folder, tmp_path / "run", expected) == ""


@pytest.mark.parametrize(
    ("fault", "what", "which"),
    [("full", "write", -1), ("broken", "rename", 4), ("full", "link", 0)],
)
def test_a_failing_disk_loses_nothing(undisturbed, tmp_path, fault, what, which):
    folder, expected, events = undisturbed
    disk = [event for event in events if event != "work"]
    places = [number for number, event in enumerate(disk, 1) if event == what]
    assert faults.survives(fault, places[which], folder, tmp_path / "run", expected) == ""


def test_a_save_that_fails_after_a_damaged_checkpoint_leaves_the_one_before(undisturbed, tmp_path):
    folder, expected, _events = undisturbed

    def start(place, fault, number):
        shutil.copytree(folder / "whole", place)
        last = place / "out" / "checkpoints" / "last.pth"
        last.write_bytes(last.read_bytes()[:-1000])
        return faults.train_with(fault, number, folder, place)

    events = faults.events_of(start(tmp_path / "a", "broken", 0))
    last_rename = len(events) - events[::-1].index("rename")
    assert start(tmp_path / "b", "broken", last_rename).returncode == 2
    saved, problem = checkpoint.load_checkpoint(tmp_path / "b" / "out" / "checkpoints")
    assert saved["progress"]["epoch"] == 3
    assert not problem
    assert faults.train_with("broken", 0, folder, tmp_path / "b").returncode == 0
    assert faults.same(faults.state_of(tmp_path / "b"), expected)
