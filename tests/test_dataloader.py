import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloader import EpochSampler, TestDatasetFromFolder, TrainDatasetFromFolder, ValDatasetFromFolder, new_loader
from utils import images, pixel_cache


def epoch_of(dataset, epoch: int, workers: int = 0, first_batch: int = 0):
    loader = new_loader(dataset, 3, seed=4, workers=workers)
    loader.batch_sampler.epoch, loader.batch_sampler.first_batch = epoch, first_batch
    return list(loader)


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for one, two in zip(a, b) for x, y in zip(one, two))


@pytest.fixture
def dataset(photos, tmp_path) -> TrainDatasetFromFolder:
    return TrainDatasetFromFolder(photos[0], 32, 4, crops_per_image=2, seed=4, cache_folder=tmp_path / "cache")


def test_samples_are_uint8_crops_and_the_tail_is_kept(dataset):
    batches = epoch_of(dataset, 1)
    assert [len(lr) for lr, _ in batches] == [3, 3, 2]
    assert all(lr.dtype == hr.dtype == torch.uint8 for lr, hr in batches)
    assert batches[0][0].shape == (3, 3, 8, 8) and batches[0][1].shape == (3, 3, 32, 32)


def test_samples_do_not_depend_on_workers_cache_or_where_the_epoch_is_resumed(dataset, photos):
    expected = epoch_of(dataset, 5)
    assert same(epoch_of(dataset, 5, workers=2), expected)
    assert same(epoch_of(dataset, 5, first_batch=1), expected[1:])
    plain = TrainDatasetFromFolder(photos[0], 32, 4, crops_per_image=2, seed=4)
    assert same(epoch_of(plain, 5), expected)
    assert not same(epoch_of(dataset, 6), expected)
    assert all(torch.equal(a, b) for a, b in zip(dataset[(5, 3)], pickle.loads(pickle.dumps(dataset))[(5, 3)]))


def test_every_crop_is_a_turned_piece_of_its_image_on_the_grid_with_the_lr_of_the_whole(dataset, photos):
    image = images.crop_to_multiple(images.read_picture(photos[0] / "image_1.png").rgb, 4)
    lr_image = images.downscale(image, 4)
    places, turns = set(), set()
    for epoch in range(30):
        lr, hr = (t.permute(1, 2, 0).numpy() for t in dataset[(epoch, 2)])  # samples 2 and 3 are of image 1
        found = False
        for turn in range(8):
            turned = np.rot90(hr if turn < 4 else hr[:, ::-1], turn % 4)
            for top in range(0, image.shape[0] - 31, 4):
                for left in range(0, image.shape[1] - 31, 4):
                    if np.array_equal(image[top : top + 32, left : left + 32], turned):
                        back = np.rot90(lr if turn < 4 else lr[:, ::-1], turn % 4)
                        assert np.array_equal(lr_image[top // 4 : top // 4 + 8, left // 4 : left // 4 + 8], back)
                        places.add((top, left))
                        turns.add(turn)
                        found = True
        assert found
    assert len(places) > 10 and len(turns) == 8


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 32), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_visits_every_sample_once(length, batch_size, seed, epoch):
    sampler = EpochSampler(length, batch_size, seed)
    sampler.epoch = epoch
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(index for batch in batches for _, index in batch) == list(range(length))
    assert {e for batch in batches for e, _ in batch} == {epoch}


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
    monkeypatch.setattr(pixel_cache.files, "check_free_space", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == ["lock"]


@pytest.mark.parametrize("damage", ["cut", "other version", "pixel", "index", "tail"])
def test_a_damaged_cache_is_noticed_and_built_again(photos, tmp_path, capsys, damage):
    good = TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("x4-*")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-20])
    else:
        data = bytearray(content)
        data[{"other version": -5, "pixel": 1000, "index": content.index(b'"height"') + 10, "tail": -28}[damage]] ^= 1
        path.unlink()
        path.write_bytes(data)
    again = TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    message = capsys.readouterr().err
    assert str(path) in message and message.count("\n") == 1 and message.endswith("; decoding the images again\n")
    assert path.read_bytes() == content and again.store.fingerprint() == good.store.fingerprint()
    TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache")
    assert capsys.readouterr().err == ""


def test_an_image_that_can_be_read_again_is_taken_up(photos, tmp_path, monkeypatch):
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
    assert len(TrainDatasetFromFolder(photos[0], 32, 4, **options)) == 4


@pytest.mark.parametrize("cached", [True, False])
def test_an_image_narrower_than_the_scale_is_too_small_and_not_damaged(photos, tmp_path, cached):
    Image.new("RGB", (40, 3)).save(photos[0] / "narrow.png")
    dataset = TrainDatasetFromFolder(photos[0], 32, 4, cache_folder=tmp_path / "cache" if cached else None)
    assert dataset.too_small == ["narrow.png"] and not dataset.store.bad


def test_more_processes_than_samples_are_refused():
    with pytest.raises(ValueError, match="5 crops an epoch are too few for 8 processes"):
        EpochSampler(5, 8, world_size=8)


@pytest.mark.parametrize("cached", [True, False])
def test_bad_images_are_named_or_skipped(photos, tmp_path, cached):
    cache = tmp_path / "cache" if cached else None
    folder = photos[0]
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.png").write_bytes((folder / "image_0.png").read_bytes()[:3000])
    with pytest.raises(
        ValueError, match=r"3 image\(s\) cannot be read: cut\.png: .*empty\.png: .*text\.jpg: .*--skip-bad-images"
    ):
        TrainDatasetFromFolder(folder, 32, 4, cache_folder=cache)
    dataset = TrainDatasetFromFolder(folder, 32, 4, cache_folder=cache, skip_bad=True)
    assert len(dataset) == 4 and len(dataset.store.bad) == 3


def test_small_images_are_left_out(photos):
    Image.new("RGB", (40, 30)).save(photos[0] / "small.png")
    assert TrainDatasetFromFolder(photos[0], 32, 4).too_small == ["small.png"]
    with pytest.raises(ValueError, match=r"no image has 88x88 pixels \(the largest is .* of 100x72\)"):
        TrainDatasetFromFolder(photos[0], 88, 4)
    with pytest.raises(ValueError, match="multiple of the scale 4"):
        TrainDatasetFromFolder(photos[0], 33, 4)


def test_validation_gives_whole_images_cropped_to_the_scale(photos, tmp_path):
    for cache in (None, tmp_path / "cache"):
        dataset = ValDatasetFromFolder(photos[1], 4, cache_folder=cache)
        name, lr, bicubic, hr = dataset[1]
        assert name == "image_1" and len(dataset) == 2
        assert lr.shape == (1, 3, 18, 25) and hr.shape == bicubic.shape == (1, 3, 72, 100)
        original = images.read_picture(photos[1] / "image_1.png").rgb
        assert np.array_equal(images.to_array(hr), original[:72, :100])
        assert np.array_equal(images.to_array(bicubic), images.upscale_bicubic(images.to_array(lr), 4))
    assert len(ValDatasetFromFolder(photos[1], 4, count=1)) == 1


def test_lr_files_made_elsewhere_are_paired_by_name(photos, tmp_path):
    lr_folder = tmp_path / "lr"
    lr_folder.mkdir()
    for index in range(4):
        Image.new("RGB", (25, 18), (index, 0, 0)).save(lr_folder / f"image_{index}{'x4' if index % 2 else ''}.png")
    dataset = TrainDatasetFromFolder(photos[0], 32, 4, lr_folder=lr_folder, cache_folder=tmp_path / "cache")
    assert [int(dataset[index][0].max()) for index in range(4)] == [0, 1, 2, 3]
    (lr_folder / "image_0.png").unlink()
    Image.new("RGB", (24, 18)).save(lr_folder / "image_2.png")
    with pytest.raises(
        ValueError, match=r"2 image.*image_0\.png: no LR image.*image_2\.png: .*24x18 pixels do not fit .* 100x72"
    ):
        TrainDatasetFromFolder(photos[0], 32, 4, lr_folder=lr_folder, cache_folder=tmp_path / "cache")


def test_the_test_dataset_takes_either_folder(photos):
    name, lr, hr = TestDatasetFromFolder(photos[1])[0]
    assert name == "image_0" and lr.shape == (1, 3, 75, 102) and hr is None
    name, lr, hr = TestDatasetFromFolder(None, photos[1], 3)[0]
    assert lr.shape == (1, 3, 25, 34) and hr.shape == (1, 3, 75, 102)


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
    layout = pixel_cache.Layout(folder, 4)
    stores = [pixel_cache.ImageStore.open(layout, tmp_path / f"cache{n}", processes=n) for n in (1, 3)]
    assert stores[0].fingerprint() == stores[1].fingerprint()
    assert all(np.array_equal(a, b) for i in range(24) for a, b in zip(stores[0][i], stores[1][i]))


def test_lr_files_in_subfolders_are_paired_by_place_and_never_guessed(photos, tmp_path):
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    for shade, place in enumerate(("one/a.png", "two/a.png", "b.png")):
        for folder, side in ((hr, 64), (lr, 16)):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (shade, 0, 0)).save(folder / place)
    dataset = ValDatasetFromFolder(hr, 4, lr_folder=lr)
    assert [(image[1][0, 0, 0, 0].item(), image[3][0, 0, 0, 0].item()) for image in dataset] == [(2, 2), (0, 0), (1, 1)]
    (hr / "a.png").write_bytes((hr / "one" / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"a.png: several LR images \(.*one/a.png, .*two/a.png\) a or ax4"):
        ValDatasetFromFolder(hr, 4, lr_folder=lr)
    (lr / "a.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"a\.png: No such file"):
        ValDatasetFromFolder(hr, 4, lr_folder=lr)


def test_a_cache_that_another_run_replaces_stays_open(photos, tmp_path):
    dataset = ValDatasetFromFolder(photos[1], 4, cache_folder=tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    assert len(list(dataset)) == 2
