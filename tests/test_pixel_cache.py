import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloader import TrainDatasetFromFolder, ValDatasetFromFolder
from degradations import BICUBIC, DEGRADATIONS, Bicubic
from utils import cli, distributed, pixel_cache


def test_the_cache_is_used_again_and_rebuilt_when_a_file_changes(photos, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=cache)
    (first,) = cache.glob("x4-*")
    with monkeypatch.context() as patch:
        patch.setattr(pixel_cache, "_build_cache", lambda *_: pytest.fail("was built again"))
        TrainDatasetFromFolder(photos[0], 64, 4, cache_folder=cache)
    Image.new("RGB", (102, 75), "red").save(photos[0] / "image_0.png")
    changed = TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=cache)
    (second,) = cache.glob("x4-*")
    assert second != first
    assert changed[0][1].float().std((1, 2)).max() == 0


def test_a_build_that_fails_leaves_no_cache(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pixel_cache.files, "check_free_space", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == ["lock"]


@pytest.mark.parametrize("damage", ["cut", "a hole", "other version", "index", "tail"])
def test_a_damaged_cache_is_noticed_and_built_again(photos, tmp_path, capsys, damage):
    good = TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("x4-*")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-20])
    elif damage == "a hole":
        path.write_bytes(content[:1000] + content[1100:])
    else:
        data = bytearray(content)
        data[
            {
                "other version": -5,
                "index": content.index(b'"height"') + 10,
                "tail": -28,
            }[damage]
        ] ^= 1
        path.unlink()
        path.write_bytes(data)
    again = TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    message = capsys.readouterr().err
    assert (
        str(path) in message
        and message.count("\n") == 1
        and message.endswith("; decoding the images again\n")
    )
    assert path.read_bytes() == content and again.store.fingerprint() == good.store.fingerprint()
    TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    assert capsys.readouterr().err == ""


def damaged_cache(photos, tmp_path) -> tuple[TrainDatasetFromFolder, Path]:
    """A training set of which one pixel of the first image has changed in the cache."""
    TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("x4-*")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.unlink()
    path.write_bytes(content)
    return TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache"), path


def test_a_damaged_image_is_noticed_at_its_first_use_and_decoded_again(photos, tmp_path, capsys):
    good = TrainDatasetFromFolder(photos[0], 32, 4)
    dataset, path = damaged_cache(photos, tmp_path)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        for index in range(4):
            for ours, expected in zip(dataset.store[index], good.store[index], strict=True):
                assert np.array_equal(ours, expected)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith(f"{path}: image_0.png has changed since it was written")


@pytest.mark.parametrize("fault", ["changed", "gone"])
def test_a_damaged_image_that_cannot_be_decoded_again_ends_the_run(photos, tmp_path, fault):
    dataset, path = damaged_cache(photos, tmp_path)
    (photos[0] / "image_0.png").unlink()
    if fault == "changed":
        Image.new("RGB", (102, 75)).save(photos[0] / "image_0.png")
        with pytest.raises(cli.UserError, match=rf"{path}: image_0\.png is damaged.*delete the c"):
            dataset[(1, 0)]
    else:
        with pytest.raises(OSError, match="image_0"):
            dataset[(1, 0)]


def test_a_start_reads_the_index_but_not_the_pixels(photos, tmp_path, monkeypatch):
    options = {"cache_folder": tmp_path / "cache"}
    TrainDatasetFromFolder(photos[0], 32, 4, **options)
    crc32 = pixel_cache.zlib.crc32
    read = []

    def counted_crc32(data, *start):
        read.append(memoryview(data).nbytes)
        return crc32(data, *start)

    monkeypatch.setattr(pixel_cache.zlib, "crc32", counted_crc32)
    dataset = TrainDatasetFromFolder(photos[0], 32, 4, **options)
    assert 0 < sum(read) < dataset.store.cache_file.stat().st_size - 4 * 72 * 100 * 3


def test_an_image_that_has_become_readable_is_added(photos, tmp_path, monkeypatch):
    def unreadable(path, *_):
        if "image_1" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    read = pixel_cache.images.read_picture
    options = {"cache_folder": tmp_path / "cache", "skip_bad": True}
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(pixel_cache.images, "read_picture", unreadable)
            assert len(TrainDatasetFromFolder(photos[0], 32, 4, **options)) == 3
    with monkeypatch.context() as patch:  # only the first process of a machine tries again
        patch.setattr(distributed, "first_on_machine", lambda: False)
        assert len(TrainDatasetFromFolder(photos[0], 32, 4, **options)) == 3
    assert len(TrainDatasetFromFolder(photos[0], 32, 4, **options)) == 4


@pytest.mark.parametrize("cached", [True, False])
def test_bad_images_are_named_or_skipped(photos, tmp_path, cached):
    cache = tmp_path / "cache" if cached else None
    folder = photos[0]
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.png").write_bytes((folder / "image_0.png").read_bytes()[:3000])
    with pytest.raises(
        ValueError,
        match=r"3 images cannot be read: cut\.png: .*empty\.png: .*text\.jpg: "
        r".*--skip-bad-images",
    ):
        TrainDatasetFromFolder(folder, 32, 4, cache_folder=cache)
    dataset = TrainDatasetFromFolder(folder, 32, 4, cache_folder=cache, skip_bad=True)
    assert len(dataset) == 4 and len(dataset.store.bad) == 3


def test_lr_files_made_elsewhere_are_paired_by_name(photos, tmp_path):
    lr_folder = tmp_path / "lr"
    lr_folder.mkdir()
    for index in range(4):
        Image.new("RGB", (25, 18), (index, 0, 0)).save(
            lr_folder / f"image_{index}{'x4' if index % 2 else ''}.png"
        )
    dataset = TrainDatasetFromFolder(
        photos[0], 32, 4, lr_folder=lr_folder, cache_folder=tmp_path / "cache"
    )
    assert [int(dataset[index][0].max()) for index in range(4)] == [0, 1, 2, 3]
    (lr_folder / "image_0.png").unlink()
    Image.new("RGB", (24, 18)).save(lr_folder / "image_2.png")
    with pytest.raises(
        ValueError,
        match=r"2 image.*image_0\.png: no LR image.*image_2\.png: "
        r".*24x18 pixels do not fit .* 102x75",
    ):
        TrainDatasetFromFolder(
            photos[0], 32, 4, lr_folder=lr_folder, cache_folder=tmp_path / "cache"
        )


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((26, 18), None),  # HR is 101x72: the division may be rounded up
        ((25, 18), None),
        ((27, 18), "27x18 pixels do not fit the HR image of 101x72 at x4\\. Fix"),
        ((25, 19), "25x19 pixels do not fit the HR image of 101x72 at x4\\. Fix"),
        ((50, 36), "50x36 .* at x4: it is an LR image for x2\\. Fix"),
        ((101, 72), "101x72 .* at x4: it is as large\\. Fix"),
        ((101, 36), "101x36 .* at x4\\. Fix"),
    ],
)
def test_lr_files_of_another_scale_are_refused(tmp_path, size, reason):
    for name, sides in (("hr", (101, 72)), ("lr", size)):
        (tmp_path / name).mkdir()
        Image.new("RGB", sides).save(tmp_path / name / "a.png")
    layout = pixel_cache.Layout(tmp_path / "hr", 4, tmp_path / "lr")
    if reason is None:
        assert pixel_cache.ImageStore.open(layout, None)[0][1].shape == (18, 25, 3)
        return
    with pytest.raises(cli.UserError, match=reason):
        _ = pixel_cache.ImageStore.open(layout, None)[0]


def test_a_cache_from_before_the_scale_of_lr_files_was_checked_is_built_anew(tmp_path, monkeypatch):
    for name, sides in (("hr", (96, 72)), ("lr", (48, 36))):
        (tmp_path / name).mkdir()
        Image.new("RGB", sides).save(tmp_path / name / "a.png")
    layout = pixel_cache.Layout(tmp_path / "hr", 4, tmp_path / "lr")
    with monkeypatch.context() as before:
        cut = np.zeros((18, 24, 3), np.uint8)
        before.setattr(pixel_cache.Layout, "_read_lr", lambda *_: cut)
        file = pixel_cache.ImageStore.open(layout, tmp_path / "cache").cache_file
    states = [(tmp_path / name / "a.png").stat() for name in ("hr", "lr")]
    size, time = sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
    key = json.dumps(["bicubic-1", [["a.png", "a.png", size, time]]])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    file.rename(file.with_name(f"{file.name.rsplit('-', 1)[0]}-{digest}"))
    with pytest.raises(cli.UserError, match="it is an LR image for x2"):
        pixel_cache.ImageStore.open(layout, tmp_path / "cache")


def test_at_x1_lr_files_have_the_size_of_hr(tmp_path):
    for name, sides in (("hr", (101, 72)), ("lr", (101, 72)), ("short", (100, 72))):
        (tmp_path / name).mkdir()
        Image.new("RGB", sides).save(tmp_path / name / "a.png")
    layout = pixel_cache.Layout(tmp_path / "hr", 1, tmp_path / "lr")
    assert [array.shape for array in pixel_cache.ImageStore.open(layout, None)[0]] == 2 * [
        (72, 101, 3)
    ]
    layout = pixel_cache.Layout(tmp_path / "hr", 1, tmp_path / "short")
    with pytest.raises(cli.UserError, match=r"100x72 .* of 101x72 at x1\. Fix"):
        pixel_cache.ImageStore.open(layout, None)


def test_the_cache_goes_where_it_can_be_written(tmp_path, monkeypatch):
    assert pixel_cache.cache_folder_for(tmp_path, Path("chosen"), Path("out")) == Path("chosen")
    assert pixel_cache.cache_folder_for(tmp_path, None, Path("out")) == tmp_path / ".srgan-cache"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert pixel_cache.cache_folder_for(tmp_path, None, Path("out")) == Path("out", ".srgan-cache")


def test_several_processes_build_what_one_builds(tmp_path, astronaut):
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(24):
        Image.fromarray(astronaut[index : index + 50, :60]).save(folder / f"{index}.png")
    layout = pixel_cache.Layout(folder, 4, BICUBIC)
    stores = [
        pixel_cache.ImageStore.open(layout, tmp_path / f"cache{n}", processes=n) for n in (1, 3)
    ]
    assert stores[0].fingerprint() == stores[1].fingerprint()
    assert all(np.array_equal(a, b) for i in range(24) for a, b in zip(stores[0][i], stores[1][i]))


def test_lr_files_in_subfolders_are_paired_by_place_and_never_guessed(photos, tmp_path):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    for shade, place in enumerate(("one/a.png", "two/a.png", "b.png")):
        for folder, side in ((hr, 64), (lr, 16)):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (shade, 0, 0)).save(folder / place)
    dataset = ValDatasetFromFolder(hr, 4, lr_folder=lr)
    assert [(image[1][0, 0, 0, 0].item(), image[3][0, 0, 0, 0].item()) for image in dataset] == [
        (2, 2),
        (0, 0),
        (1, 1),
    ]
    (hr / "a.png").write_bytes((hr / "one" / "a.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"a.png: several LR images \(.*one/a.png, .*two/a.png\) named a or ax4"
    ):
        ValDatasetFromFolder(hr, 4, lr_folder=lr)
    (lr / "a.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"a\.png: No such file"):
        ValDatasetFromFolder(hr, 4, lr_folder=lr)


def test_a_cache_that_another_run_replaces_stays_open(photos, tmp_path):
    dataset = ValDatasetFromFolder(photos[1], 4, cache_folder=tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    assert len(list(dataset)) == 2


@dataclass(frozen=True)
class Black(Bicubic):
    def degrade(self, hr, upscale, rng, precision=np.float32):
        return np.zeros_like(hr[::upscale, ::upscale])


def test_another_version_of_a_degradation_makes_another_cache_and_removes_the_old_one(
    photos, tmp_path
):
    options = {"cache_folder": tmp_path / "cache"}
    old = TrainDatasetFromFolder(photos[0], 32, 4, **options)
    (first,) = (tmp_path / "cache").glob("x4-*")
    new = TrainDatasetFromFolder(photos[0], 32, 4, degradation=Black("bicubic-2"), **options)
    (second,) = (tmp_path / "cache").glob("x4-*")
    assert second != first
    assert old[(0, 0)][0].max() > 0
    assert new[(0, 0)][0].max() == 0
    assert (old[(0, 0)][1] == new[(0, 0)][1]).all()


def test_caches_have_the_names_that_earlier_versions_gave_them(photos, tmp_path):
    def digest(value):
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]

    hr, lr = photos[0], tmp_path / "lr"
    lr.mkdir()
    states = {None: [], lr: []}
    for index in range(4):
        name = f"image_{index}.png"
        Image.new("RGB", (25, 18)).save(lr / name)
        first, second = (hr / name).stat(), (lr / name).stat()
        states[None].append([name, None, first.st_size, first.st_mtime_ns])
        size, time = first.st_size + second.st_size, max(first.st_mtime_ns, second.st_mtime_ns)
        states[lr].append([name, name, size, time])
    photo = {"degradation": DEGRADATIONS["photo"]}
    files = {"lr_folder": lr}
    train, validation = "x4", "x4-validation"
    train_set = functools.partial(TrainDatasetFromFolder, crop_size=32)
    cases = [
        (train_set, {}, train, "bicubic-1"),
        (train_set, photo, train, "bicubic-1"),
        (train_set, files, train, "files-2"),
        (ValDatasetFromFolder, {}, validation, "bicubic-1"),
        (ValDatasetFromFolder, photo, f"{validation}-photo", "photo-1"),
        (ValDatasetFromFolder, files | photo, validation, "files-2"),
    ]
    for dataset, options, kind, version in cases:
        store = dataset(hr, upscale=4, cache_folder=tmp_path / "cache", **options).store
        lr_folder = options.get("lr_folder")
        place = digest([str(hr.resolve()), str(lr_folder and lr_folder.resolve())])
        assert store.cache_file.name == f"{kind}-{place}-{digest([version, states[lr_folder]])}"


def test_an_lr_file_is_never_paired_with_two_images(tmp_path):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    for place, side in (
        ("hr/one/a.png", 64),
        ("hr/two/a.png", 64),
        ("hr/b.png", 64),
        ("hr/b.jpg", 64),
        ("hr/c.png", 64),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(tmp_path / place)
    lr.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (16, 16)).save(lr / name)
    with pytest.raises(
        ValueError, match=r"4 image.*b\.jpg: .*b\.png is the LR image of 2 HR images.*two/a\.png"
    ):
        ValDatasetFromFolder(hr, 4, lr_folder=lr)
    options = {"lr_folder": lr, "cache_folder": tmp_path / "cache", "skip_bad": True}
    assert ValDatasetFromFolder(hr, 4, **options).names == ["c"]
    (built,) = (tmp_path / "cache").glob("x4-*")
    before = built.stat().st_mtime_ns
    assert (
        ValDatasetFromFolder(hr, 4, **options).names == ["c"] and built.stat().st_mtime_ns == before
    )
