from pathlib import Path

import pytest

import test_image
from utils import cli, outputs

PLAN = {Path(f"{name}.png"): Path(f"{name}_x4.png") for name in "abc"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("no room"), "test_image.py: error: b.png: out of memory: no room"),
        (RuntimeError("CUDA error: out of memory"), "test_image.py: error: b.png: out of memory: "),
        (cli.UserError("b.png: cut short"), "test_image.py: error: b.png: cut short"),
    ],
)
def test_one_picture_that_fails_does_not_end_the_others(error, message, capsys):
    done = []

    def enlarge(source, target):
        if source.stem == "b":
            raise error
        done.append(target.name)

    assert outputs.enlarge_each(test_image.IMAGES, PLAN, enlarge) == 2
    assert done == ["a_x4.png", "c_x4.png"]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(message)
    assert second == "test_image.py: error: 1 of 3 images could not be enlarged"


def test_a_fault_of_the_code_ends_them():
    def enlarge(source, target):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        outputs.enlarge_each(test_image.IMAGES, PLAN, enlarge)


def test_earlier_results_are_found_in_subfolders_with_the_systems_separators():
    names = ["a.png", "a_x4.png", str(Path("sub", "b.png")), str(Path("sub", "b_x4.png"))]
    names.append(str(Path("sub", "a_x4.png")))  # its source is elsewhere
    found = outputs.earlier_results(test_image.IMAGES, names, "_x4")
    assert found == {"a_x4.png", str(Path("sub", "b_x4.png"))}
