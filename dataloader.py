"""Folders of images as uint8 tensors, for training, validation and testing.

`TrainDatasetFromFolder` gives random crops. `EpochSampler` numbers them (epoch, i), and each sample is a pure function of
(seed, epoch, i), so a resumed run continues with exactly the samples that come next. `new_loader` combines the two.
`ValDatasetFromFolder` and `TestDatasetFromFolder` give whole images.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

import degradations
from utils import cli, images
from utils.pixel_cache import ImageStore, Layout, cache_folder_for


class TrainDatasetFromFolder(Dataset):
    """Random crops as (LR, HR), uint8 (3, crop/upscale, crop/upscale) and (3, crop, crop), in all eight orientations.

    LR crops are cut from the whole LR image, so they look as they do at test time; HR crops start at multiples of the scale.
    With the degradation "photo", they are made from the HR image around each crop instead.

    A sample has one of two kinds of index. (epoch, i) always gives the same crop, in any process and at any time. A plain i,
    as in `DataLoader(dataset, shuffle=True)`, gives a new crop at each access. Its position comes from PyTorch's global
    generator, as in torchvision's random transforms: `torch.manual_seed` makes it repeatable, and `DataLoader` seeds its
    workers differently in each pass.

    Args:
        folder: folder of HR images; subfolders are included.
        crop_size: side of the HR crop in pixels, a multiple of the scale.
        upscale: the scale.
        lr_folder: LR images made elsewhere, paired by name; None to make LR with bicubic.
        crops_per_image: samples per image in each epoch.
        seed: determines the crops with an (epoch, i) index.
        cache_folder: where decoded pixels are kept; None to decode an image for every crop.
        skip_bad: leave out images that cannot be read.
        headers_only: without a cache, read only the images' headers instead of decoding each image once to check it.
        degradation: "bicubic" or "photo", see degradations.py.

    Raises:
        UserError: the crop is not a multiple of the scale, no image is as large as the crop, both `lr_folder` and a
            degradation are given, or as for `ImageStore.open`.
    """

    def __init__(
        self,
        folder: str | Path,
        crop_size: int = 88,
        upscale: int = 4,
        *,
        lr_folder: str | Path | None = None,
        crops_per_image: int = 1,
        seed: int = 0,
        cache_folder: str | Path | None = None,
        skip_bad: bool = False,
        headers_only: bool = False,
        degradation: str = "bicubic",
    ):
        if crop_size < upscale or crop_size % upscale:
            raise cli.UserError(f"crop size {crop_size} is not a multiple of the scale {upscale}")
        self.crop_size, self.upscale, self.crops_per_image, self.seed = (
            crop_size,
            upscale,
            crops_per_image,
            seed,
        )
        self.recipe = degradations.describe("files" if lr_folder else degradation)
        self.degraded = _checked(degradation, lr_folder) != "bicubic"
        self.store = store = ImageStore.open(
            Layout(folder, upscale, lr_folder), cache_folder, skip_bad, headers_only=headers_only
        )
        fits = [min(entry.height, entry.width) >= crop_size for entry in store.entries]
        self.usable = [index for index, fit in enumerate(fits) if fit]
        self.too_small = [store.entries[index].name for index, fit in enumerate(fits) if not fit]
        if not self.usable:
            largest = max(
                store.entries, key=lambda entry: min(entry.height, entry.width), default=None
            )
            seen = (
                f"the largest is {largest.name}, {largest.width}x{largest.height}"
                if largest
                else "none can be read"
            )
            raise cli.UserError(
                f"{store.layout.folder}: no image is as large as {crop_size}x{crop_size} ({seen}); use a smaller --crop"
            )
        self._draws: tuple[int | None, np.ndarray | None] = (None, None)

    def __len__(self) -> int:
        return len(self.usable) * self.crops_per_image

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the LR and HR crops for i or (epoch, i)."""
        lr, hr = self.batch([index])
        return lr[0], hr[0]

    def batch(self, indices: list[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return several samples at once: LR (N, 3, crop/upscale, crop/upscale) and HR (N, 3, crop, crop), uint8."""
        lr_side = self.crop_size // self.upscale
        hr_batch = np.empty((len(indices), self.crop_size, self.crop_size, 3), np.uint8)
        lr_batch = np.empty((len(indices), lr_side, lr_side, 3), np.uint8)
        for position, index in enumerate(indices):
            if isinstance(index, tuple):
                epoch, sample = index
                down, across, turn = self._draw_epoch(epoch)[sample]
                seeds = [self.seed, epoch, sample, 3]
            else:
                sample, (down, across, turn) = index, torch.rand(3).tolist()
                seeds = torch.randint(2**62, (1,)).tolist() if self.degraded else []
            hr, lr = self.store[self.usable[sample // self.crops_per_image]][:2]
            top, left = (
                int(down * (lr.shape[0] - lr_side + 1)),
                int(across * (lr.shape[1] - lr_side + 1)),
            )
            if self.degraded:
                lr = degradations.degrade_crop(
                    hr, top, left, lr_side, self.upscale, np.random.default_rng(seeds)
                )
            else:
                lr = lr[top : top + lr_side, left : left + lr_side]
            top, left = top * self.upscale, left * self.upscale
            hr = hr[top : top + self.crop_size, left : left + self.crop_size]
            _copy_turned(lr, int(turn * 8), lr_batch[position])
            _copy_turned(hr, int(turn * 8), hr_batch[position])
        return _channels_first(lr_batch), _channels_first(hr_batch)

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """Return three numbers in [0, 1) per sample of an epoch: the crop's position, down and across, and its orientation."""
        if self._draws[0] != epoch:
            self._draws = epoch, np.random.default_rng([self.seed, epoch]).random((len(self), 3))
        return self._draws[1]


def _checked(degradation: str, lr_folder: str | Path | None) -> str:
    """Return the name of a degradation; raise UserError if LR is read from files."""
    if degradation != "bicubic" and lr_folder is not None:
        raise cli.UserError(
            f"LR files of {lr_folder} with --degradation {degradation}: LR is read or made, not both"
        )
    return degradation


def _copy_turned(image: np.ndarray, turn: int, target: np.ndarray) -> None:
    """Copy (H, H, 3) to `target` in one of the eight orientations of a square, 0 to 7."""
    if turn & 1:
        image = image[:, ::-1]
    if turn & 2:
        image = image[::-1]
    if turn & 4:
        image = image.transpose(1, 0, 2)
    if (
        turn & 5
    ):  # rows are no longer contiguous: numpy copies one long strided channel faster than pixels of three bytes
        for channel in range(3):
            target[..., channel] = image[..., channel]
    else:
        target[...] = image


def _channels_first(batch: np.ndarray) -> Tensor:
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


class _WholeBatches(Dataset):
    """A training set from which `DataLoader` fetches whole batches, so that collating does not copy the samples again."""

    def __init__(self, dataset: TrainDatasetFromFolder):
        self.dataset = dataset

    def __getitems__(self, indices: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        return self.dataset.batch(indices)


def _unchanged(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch  # not a lambda, which cannot be sent to a spawned worker


def new_loader(
    dataset: TrainDatasetFromFolder,
    batch_size: int,
    seed: int,
    workers: int,
    pin: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return a loader of (LR, HR) batches, uint8 (N, 3, H, W), for the epoch set in its `batch_sampler`.

    `batch_size` counts the crops of all `world_size` processes together; the loader gives the share of process `rank`.

    Workers pay off only when an image is decoded or degraded for every crop. Otherwise, cutting 16 crops of 88 pixels
    takes about 0.5 ms, but passing them on from a worker takes 2 ms: most of that is the handshake for the file descriptors
    of the two tensors, the rest is fresh pages of shared memory.
    """
    return DataLoader(
        _WholeBatches(dataset),
        batch_sampler=EpochSampler(len(dataset), batch_size, seed, rank, world_size),
        collate_fn=_unchanged,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=cli.outlive_signals,
    )


@contextlib.contextmanager
def workers_of(loader: DataLoader) -> Iterator[None]:
    """Context manager that shuts down the loader's worker processes on leaving, rather than when Python exits."""
    try:
        yield
    finally:
        if loader.num_workers and loader._iterator is not None:
            loader._iterator._shutdown_workers()


def describe_left_out(dataset: "TrainDatasetFromFolder | ValDatasetFromFolder") -> str:
    """Return one line per reason for leaving out images, with their number and names; empty if none are left out."""
    bad = [entry.name for entry in dataset.store.bad]
    text = ""
    for names, why in ((dataset.too_small, "too small"), (bad, "cannot be read")):
        if names:
            text += f"{dataset.store.layout.folder}: {len(names)} image(s) left out, {why}: {cli.listed(names)}\n"
    return text


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, i): every i below `length` once, in an order that is a pure function of (seed, epoch).

    Set `epoch` and `first_batch` before iterating; the sampler keeps no other state. The last batch may be smaller.
    With several processes, each gets its share of every batch. The `left_out` samples of the last batch that cannot be shared
    evenly are skipped in that epoch.

    Raises:
        UserError: the number of processes does not divide the batch size, or there are fewer samples than processes.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        if batch_size % world_size:
            raise cli.UserError(
                f"--batch-size {batch_size} cannot be shared evenly by {world_size} processes"
            )
        self.left_out = length % batch_size % world_size
        if length < world_size:
            raise cli.UserError(
                f"{length} crops per epoch are too few for {world_size} processes; use more --crops-per-image"
            )
        self.length, self.batch_size, self.seed = length - self.left_out, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(
            self.length + self.left_out
        )
        order = order[: self.length].tolist()
        for start in range(self.first_batch * self.batch_size, self.length, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield [(self.epoch, sample) for sample in batch[self.rank :: self.world_size]]


class ValDatasetFromFolder(Dataset):
    """Whole images: (name, LR, bicubic, HR), each uint8 (1, 3, H, W); HR cropped to a multiple of the scale.

    `bicubic` is LR enlarged to the size of HR. Names have no suffix and are unique even if case is ignored.

    Args:
        folder, upscale, lr_folder, cache_folder, skip_bad, headers_only: as for training.
        degradation: as for training, and the same at every access.
        count: use only the first `count` images.

    Raises:
        UserError: no image is as large as the scale, or as for `ImageStore.open`.
    """

    def __init__(
        self,
        folder: str | Path,
        upscale: int = 4,
        *,
        lr_folder: str | Path | None = None,
        count: int | None = None,
        cache_folder: str | Path | None = None,
        skip_bad: bool = False,
        headers_only: bool = False,
        degradation: str = "bicubic",
    ):
        made = {
            "make_lr": degradations.degrade_file,
            "recipe": degradations.describe(degradation)["version"],
        }
        layout = Layout(
            folder,
            upscale,
            lr_folder,
            bicubic=True,
            **({} if degradation == "bicubic" or lr_folder else made),
        )
        self.store = store = ImageStore.open(
            layout, cache_folder, skip_bad, headers_only=headers_only
        )
        usable = [
            index for index, entry in enumerate(store.entries) if entry.height and entry.width
        ]
        self.too_small = [
            entry.name for entry in store.entries if not (entry.height and entry.width)
        ]
        if not usable:
            raise cli.UserError(
                f"{store.layout.folder}: no image is as large as {store.layout.upscale}x{store.layout.upscale}"
            )
        self.usable = usable[:count]
        self.names = images.result_names(store.entries[index].name for index in self.usable)
        self.bicubic_scores: dict[
            int, dict[str, float]
        ] = {}  # kept from one validation to the next

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor, Tensor]:
        if index >= len(self):
            raise IndexError(index)
        hr, lr, bicubic = self.store[self.usable[index]]
        return (
            self.names[index],
            images.to_tensor(lr),
            images.to_tensor(bicubic),
            images.to_tensor(hr),
        )


class TestDatasetFromFolder(Dataset):
    """Whole LR images with their HR images, if any: (name, LR, HR or None), each uint8 (1, 3, H, W).

    Names are as for validation.

    Args:
        lr_folder: LR images; None to make them from `hr_folder` with bicubic.
        hr_folder: HR images, paired by name; None if there are none.
        upscale: the scale between LR and HR; not used without HR.

    Raises:
        UserError: neither folder is given, or as for `ImageStore.open`.
    """

    __test__ = False  # not a pytest class

    def __init__(
        self, lr_folder: str | Path | None, hr_folder: str | Path | None = None, upscale: int = 4
    ):
        if lr_folder is None and hr_folder is None:
            raise cli.UserError("pass a folder of LR images, of HR images, or both")
        self.lr_paths = None if hr_folder else images.list_images(lr_folder)
        self.store = (
            ImageStore.open(Layout(hr_folder, upscale, lr_folder), None) if hr_folder else None
        )
        self.names = images.result_names(
            [entry.name for entry in self.store.entries]
            if self.store
            else [path.relative_to(lr_folder).as_posix() for path in self.lr_paths]
        )

    def __len__(self) -> int:
        return len(self.lr_paths or self.store)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        if index >= len(self):
            raise IndexError(index)
        if self.store is None:
            return (
                self.names[index],
                images.to_tensor(images.read_picture(self.lr_paths[index]).rgb),
                None,
            )
        name, arrays = self.store.entries[index].name, self.store[index]
        if not arrays:
            raise cli.UserError(
                f"{self.store.layout.folder / name}: smaller than {self.store.layout.upscale} pixels"
            )
        return self.names[index], images.to_tensor(arrays[1]), images.to_tensor(arrays[0])


def open_datasets(args: argparse.Namespace) -> tuple[TrainDatasetFromFolder, ValDatasetFromFolder]:
    """Open the two folders named by train.py's options, through their caches; print which images are left out."""
    for folder, option in ((args.train_dir, "--train-dir"), (args.val_dir, "--val-dir")):
        if not folder.is_dir():
            advice = (
                f"get DIV2K with `python prepare_data.py div2k`, or name your own with {option}"
            )
            raise cli.UserError(f"{folder}: no such folder; {advice}")

    def shared(folder: Path, lr_folder: Path | None) -> dict[str, Any]:
        cache = (
            None
            if args.no_cache or args.dry_run
            else cache_folder_for(folder, args.cache, args.out)
        )
        common = {
            "upscale": args.upscale,
            "skip_bad": args.skip_bad_images,
            "headers_only": args.dry_run,
        }
        common["degradation"] = args.degradation
        return {"lr_folder": lr_folder, "cache_folder": cache, **common}

    options = {
        "crops_per_image": args.crops_per_image,
        "seed": args.seed,
        **shared(args.train_dir, args.train_lr_dir),
    }
    train_set = TrainDatasetFromFolder(args.train_dir, args.crop, **options)
    val_set = ValDatasetFromFolder(
        args.val_dir, count=args.val_images, **shared(args.val_dir, args.val_lr_dir)
    )
    for dataset in (train_set, val_set):
        print(describe_left_out(dataset), end="")
    return train_set, val_set
