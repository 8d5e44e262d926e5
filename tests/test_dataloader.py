import pickle
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dataloader import (
    EpochSampler,
    Stream,
    TestDatasetFromFolder,
    TrainDatasetFromFolder,
    ValDatasetFromFolder,
    new_loader,
    random_stream,
)
from utils import images


def epoch_of(dataset, epoch: int, workers: int = 0, first_batch: int = 0):
    loader = new_loader(dataset, 3, workers=workers)
    loader.batch_sampler.epoch, loader.batch_sampler.first_batch = epoch, first_batch
    return list(loader)


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b) for x, y in zip(one, two)
    )


@pytest.fixture
def dataset(photos, tmp_path) -> TrainDatasetFromFolder:
    return TrainDatasetFromFolder(
        photos[0], 32, 4, crops_per_image=2, seed=4, cache_folder=tmp_path / "cache"
    )


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
    assert all(
        torch.equal(a, b)
        for a, b in zip(dataset[(5, 3)], pickle.loads(pickle.dumps(dataset))[(5, 3)])
    )


@pytest.mark.parametrize(
    ("upscale", "checksums"),
    [
        (4, [(3418566890, 2404959509), (716592270, 3802613554), (2363131515, 2265747739)]),
        (3, [(3680169235, 507499556), (1217432870, 2328314341), (25601164, 2426861004)]),
    ],
)
def test_the_samples_of_an_epoch_are_those_that_earlier_versions_gave(tmp_path, upscale, checksums):
    for index in range(3):
        y, x, channel = np.ogrid[: 60 + 8 * index, :70, :3]
        pixels = (x * 7 + y * (5 + index) + x * y // 9 + channel * 40) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{index}.png")
    loader = new_loader(
        TrainDatasetFromFolder(tmp_path, 24, upscale, crops_per_image=4, seed=11),
        5,
        workers=0,
    )
    loader.batch_sampler.epoch = 3
    assert next(iter(loader.batch_sampler)) == [(3, 8), (3, 9), (3, 4), (3, 6), (3, 11)]
    found = [
        tuple(zlib.crc32(images.contiguous().numpy()) for images in (hr, lr)) for lr, hr in loader
    ]
    assert found == checksums


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_plain_loader_gives_new_crops_in_every_pass_and_the_same_ones_after_the_same_seed(
    dataset, workers, persistent
):
    def passes():
        torch.manual_seed(1)
        loader = DataLoader(
            dataset, 4, shuffle=True, num_workers=workers, persistent_workers=persistent
        )
        return [list(loader) for _ in range(3)]

    first, again = passes(), passes()
    assert all(lr.shape == (4, 3, 8, 8) and hr.shape == (4, 3, 32, 32) for lr, hr in first[0])
    crops = {hr.numpy().tobytes() for batches in first for _, hrs in batches for hr in hrs}
    assert len(crops) > 20  # of 24: two may be the same by chance
    assert all(same(a, b) for a, b in zip(first, again))


def test_a_sample_of_an_epoch_does_not_depend_on_the_global_generator(dataset):
    def sample(seed):
        torch.manual_seed(seed)
        return dataset[3], dataset[(5, 3)]

    (plain, numbered), (other_plain, other_numbered) = sample(1), sample(2)
    assert same([numbered], [other_numbered]) and not same([plain], [other_plain])


def test_the_sampler_works_in_a_plain_dataloader(dataset):
    sampler = EpochSampler(len(dataset), 3, seed=4)
    sampler.epoch = 5
    assert same(list(DataLoader(dataset, batch_sampler=sampler)), epoch_of(dataset, 5))


def test_crops_start_on_the_grid_and_have_the_lr_of_the_whole_image_in_all_orientations(
    dataset, photos
):
    image = images.crop_to_multiple(images.read_picture(photos[0] / "image_1.png").rgb, 4)
    lr_image = images.downscale(image, 4)
    places, turns = set(), set()
    for epoch in range(30):
        lr, hr = (
            t.permute(1, 2, 0).numpy() for t in dataset[(epoch, 2)]
        )  # samples 2 and 3 are of image 1
        found = False
        for turn in range(8):
            turned = np.rot90(hr if turn < 4 else hr[:, ::-1], turn % 4)
            for top in range(0, image.shape[0] - 31, 4):
                for left in range(0, image.shape[1] - 31, 4):
                    if np.array_equal(image[top : top + 32, left : left + 32], turned):
                        back = np.rot90(lr if turn < 4 else lr[:, ::-1], turn % 4)
                        assert np.array_equal(
                            lr_image[top // 4 : top // 4 + 8, left // 4 : left // 4 + 8], back
                        )
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


@pytest.mark.parametrize("cached", [True, False])
def test_an_image_narrower_than_the_scale_is_too_small_and_not_damaged(photos, tmp_path, cached):
    Image.new("RGB", (40, 3)).save(photos[0] / "narrow.png")
    dataset = TrainDatasetFromFolder(
        photos[0], 32, 4, cache_folder=tmp_path / "cache" if cached else None
    )
    assert dataset.too_small == ["narrow.png"] and not dataset.store.bad


def test_more_processes_than_samples_are_refused():
    with pytest.raises(ValueError, match="5 crops per epoch: too few for 8 processes"):
        EpochSampler(5, 8, world_size=8)


def test_small_images_are_left_out(photos):
    Image.new("RGB", (40, 30)).save(photos[0] / "small.png")
    assert TrainDatasetFromFolder(photos[0], 32, 4).too_small == ["small.png"]
    with pytest.raises(
        ValueError, match=r"no image is as large as 88x88 \(the largest is .*, 100x72\)"
    ):
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
        assert np.array_equal(
            images.to_array(bicubic), images.upscale_bicubic(images.to_array(lr), 4)
        )
    assert len(ValDatasetFromFolder(photos[1], 4, count=1)) == 1


def test_names_are_unique_even_if_case_is_ignored(photos):
    image = Image.open(photos[1] / "image_0.png")
    for name in ("A.png", "a.jpg", "Sub/B.png", "sub_b.png"):
        (photos[1] / name).parent.mkdir(exist_ok=True)
        image.save(photos[1] / name)
    for dataset in (ValDatasetFromFolder(photos[1], 4), TestDatasetFromFolder(None, photos[1])):
        assert len(dataset) == 6 and len({name.lower() for name in dataset.names}) == 6


def test_the_test_dataset_makes_or_reads_lr(photos, tmp_path):
    name, lr, hr = TestDatasetFromFolder(None, photos[1], 3)[0]
    assert name == "image_0" and lr.shape == (1, 3, 25, 34) and hr.shape == (1, 3, 75, 102)
    for index in range(2):
        Image.new("RGB", (34, 25), "red").save(tmp_path / f"image_{index}x3.png")
    name, lr, hr = TestDatasetFromFolder(tmp_path, photos[1], 3)[0]
    assert name == "image_0" and lr.shape == (1, 3, 25, 34) and hr.shape == (1, 3, 75, 102)
    assert lr[0, :, 0, 0].tolist() == [255, 0, 0]
    Image.new("RGB", (2, 2)).save(photos[1] / "tiny.png")
    with pytest.raises(ValueError, match=r"tiny\.png: smaller than 3 pixels"):
        list(TestDatasetFromFolder(None, photos[1], 3))


def test_the_test_dataset_decodes_every_image_once(photos, monkeypatch):
    decoded = []
    read = images.read_picture

    def counted(path, *options):
        decoded.append(path.name)
        return read(path, *options)

    monkeypatch.setattr(images, "read_picture", counted)
    list(TestDatasetFromFolder(None, photos[1], 3))
    assert decoded == ["image_0.png", "image_1.png"]
    (photos[1] / "image_1.png").write_bytes((photos[1] / "image_0.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"image_1\.png: cut short"):
        list(TestDatasetFromFolder(None, photos[1], 3))


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63 - 1])
def test_random_streams_are_those_that_saved_runs_rely_on(seed):
    for stream, index, expected in [
        (Stream.CROPS, [], [seed, 7]),
        (Stream.ORDER, [], [seed, 7, 1]),
        (Stream.VIEW, [12], [seed, 7, 12, 2]),
        (Stream.DEGRADATION, [34], [seed, 7, 34, 3]),
    ]:
        found = random_stream(stream, seed, 7, *index).bit_generator.state
        assert found == np.random.default_rng(expected).bit_generator.state
