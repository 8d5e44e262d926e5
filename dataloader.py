"""Folders of images as uint8 tensors, for training, validation and testing.

`TrainDatasetFromFolder` gives random crops. `EpochSampler` numbers them (epoch, i), and each sample
is a pure function of (seed, epoch, i), so a resumed run goes on with exactly the samples that come
next. `new_loader` combines the two. `ValDatasetFromFolder` and `TestDatasetFromFolder` give whole
images.
"""

import contextlib
import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from degradations import BICUBIC, Degradation
from utils import cli, images
from utils.pixel_cache import ImageStore, Layout
from utils.processes import outlive_signals

# --- random numbers -----------------------------------------------------------------------------


class Stream(enum.IntEnum):
    """What random numbers are drawn for; saved runs rely on the values."""

    CROPS = 0  # of an epoch: the position and the orientation of every crop
    ORDER = 1  # of an epoch: the order of the crops
    VIEW = 2  # of a step: the perceptual loss's random shift and zoom
    DEGRADATION = 3  # of a crop


def random_stream(stream: Stream, seed: int, epoch: int, *index: int) -> np.random.Generator:
    """Return the random numbers of an epoch, or of a step or a crop with this index in it.

    They depend on nothing else, so a resumed run draws the same ones.
    """
    return np.random.default_rng([seed, epoch, *index, stream])


# --- training -----------------------------------------------------------------------------------


class TrainDatasetFromFolder(Dataset):
    """Random crops as (LR, HR), in all eight orientations.

    LR is (3, crop_size / upscale, crop_size / upscale) and HR (3, crop_size, crop_size), both
    uint8. LR crops are cut from the LR image of the whole image, so they look as they do at test
    time; HR crops start at multiples of the scale. If the degradation draws at random per crop, LR
    is made from the HR image around each crop instead.

    A sample has one of two kinds of index. (epoch, i) always gives the same crop, in any process
    and at any time. A plain i, as in `DataLoader(dataset, shuffle=True)`, gives a new crop at each
    access. It comes from PyTorch's global generator, as in torchvision's random transforms:
    `torch.manual_seed` makes it repeatable, and `DataLoader` seeds its workers differently in each
    pass.

    Args:
        folder: folder of HR images; subfolders are included.
        crop_size: side of the HR crop in pixels, a multiple of the scale.
        upscale: the scale.
        lr_folder: LR images made elsewhere, paired by name; None to make LR.
        degradation: how LR is made; it has to be bicubic if there is an `lr_folder`.
        crops_per_image: samples per image in each epoch.
        seed: determines the crops with an (epoch, i) index.
        cache_folder: where decoded pixels are kept; None to decode an image for every crop.
        skip_bad: leave out images that cannot be read.
        headers_only: without a cache, read only the images' headers, instead of decoding each image
            once to check it.

    Raises:
        UserError: the crop is not a multiple of the scale, no image is as large as the crop, both
            `lr_folder` and another degradation are given, or as for `ImageStore.open`.
    """

    def __init__(
        self,
        folder: str | Path,
        crop_size: int = 88,
        upscale: int = 4,
        *,
        lr_folder: str | Path | None = None,
        degradation: Degradation = BICUBIC,
        crops_per_image: int = 1,
        seed: int = 0,
        cache_folder: str | Path | None = None,
        skip_bad: bool = False,
        headers_only: bool = False,
    ):
        if crop_size < upscale or crop_size % upscale:
            raise cli.UserError(f"crop size {crop_size} is not a multiple of the scale {upscale}")
        if lr_folder is not None and degradation != BICUBIC:
            raise cli.UserError(
                f"LR files of {lr_folder} with the degradation {degradation.version}: "
                "LR is read or made, not both"
            )
        self.crop_size = crop_size
        self.upscale = upscale
        self.crops_per_image = crops_per_image
        self.seed = seed
        self.degradation = degradation
        self.degradation_record = degradation.record()

        # Where the store's LR comes from
        lr: Path | Degradation = degradation
        if lr_folder is not None:
            lr = Path(lr_folder)
            self.degradation_record = {"version": "files"}
        elif degradation.random_per_crop:
            lr = BICUBIC  # only HR is used; the cache is that of runs with bicubic
        layout = Layout(Path(folder), upscale, lr)
        self.store = ImageStore.open(layout, cache_folder, skip_bad, headers_only=headers_only)

        # Images as large as a crop
        entries = self.store.entries
        self.usable: list[int] = []
        self.too_small: list[str] = []
        for index, entry in enumerate(entries):
            if min(entry.height, entry.width) >= crop_size:
                self.usable.append(index)
            else:
                self.too_small.append(entry.name)
        if not self.usable:
            seen = "none can be read"
            if entries:
                largest = max(entries, key=lambda entry: min(entry.height, entry.width))
                seen = f"the largest is {largest.name}, {largest.width}x{largest.height}"
            raise cli.UserError(
                f"{folder}: no image is as large as {crop_size}x{crop_size} ({seen}); "
                "use a smaller --crop"
            )
        self._drawn_epoch: int | None = None
        self._draws = np.empty((0, 3))

    def __len__(self) -> int:
        return len(self.usable) * self.crops_per_image

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the LR and HR crops for i or (epoch, i)."""
        lr, hr = self.batch([index])
        return lr[0], hr[0]

    def batch(self, indices: Sequence[int | tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return several samples at once, as uint8.

        LR is (N, 3, crop_size / upscale, crop_size / upscale) and HR (N, 3, crop_size, crop_size).
        """
        lr_side = self.crop_size // self.upscale
        hr_batch = np.empty((len(indices), self.crop_size, self.crop_size, 3), np.uint8)
        lr_batch = np.empty((len(indices), lr_side, lr_side, 3), np.uint8)
        for position, index in enumerate(indices):
            # Place
            if isinstance(index, tuple):
                epoch, sample = index
                down, across, turn = self._draw_epoch(epoch)[sample]
            else:
                sample = index
                down, across, turn = torch.rand(3).tolist()
            hr, lr = self.store[self.usable[sample // self.crops_per_image]]
            top = int(down * (lr.shape[0] - lr_side + 1))
            left = int(across * (lr.shape[1] - lr_side + 1))

            # Crops
            if self.degradation.random_per_crop:
                rng = self._degradation_stream(index)
                lr, hr = self.degradation.crops(hr, top, left, lr_side, self.upscale, rng)
            else:
                lr = lr[top : top + lr_side, left : left + lr_side]
                top *= self.upscale
                left *= self.upscale
                hr = hr[top : top + self.crop_size, left : left + self.crop_size]
            _copy_turned(lr, int(turn * 8), lr_batch[position])
            _copy_turned(hr, int(turn * 8), hr_batch[position])
        return _channels_first(lr_batch), _channels_first(hr_batch)

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """Return three numbers in [0, 1) per sample: its place, down and across, and its turn."""
        if self._drawn_epoch != epoch:
            self._draws = random_stream(Stream.CROPS, self.seed, epoch).random((len(self), 3))
            self._drawn_epoch = epoch
        return self._draws

    def _degradation_stream(self, index: int | tuple[int, int]) -> np.random.Generator:
        if isinstance(index, tuple):
            return random_stream(Stream.DEGRADATION, self.seed, *index)
        return np.random.default_rng(torch.randint(2**62, (1,)).tolist())


def _copy_turned(image: np.ndarray, turn: int, target: np.ndarray) -> None:
    """Copy (H, H, 3) to `target` in one of the eight orientations of a square, 0 to 7."""
    if turn & 1:
        image = image[:, ::-1]
    if turn & 2:
        image = image[::-1]
    if turn & 4:
        image = image.transpose(1, 0, 2)
    if turn & 5:
        # Rows are no longer contiguous: numpy copies one long strided channel faster than pixels
        # of three bytes
        for channel in range(3):
            target[..., channel] = image[..., channel]
    else:
        target[...] = image


def _channels_first(batch: np.ndarray) -> Tensor:
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


class _WholeBatches(Dataset):
    """A training set that gives `DataLoader` whole batches, so that collating copies nothing."""

    def __init__(self, dataset: TrainDatasetFromFolder):
        self.dataset = dataset

    def __getitems__(self, indices: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        return self.dataset.batch(indices)


def _unchanged(batch: Any) -> Any:
    return batch  # not a lambda, which cannot be sent to a spawned worker


def new_loader(
    dataset: TrainDatasetFromFolder,
    batch_size: int,
    workers: int,
    pin: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return a loader of (LR, HR) batches, uint8 (N, 3, H, W).

    The loader gives the epoch set in its `batch_sampler`, an `EpochSampler`. `batch_size` counts
    the crops of all `world_size` processes together; process `rank` gets its share of them.

    Workers pay off only when an image is decoded or degraded for every crop. Otherwise, cutting 16
    crops of 88 pixels takes about 0.5 ms, but passing them on from a worker takes 2 ms: most of
    that is the handshake for the file descriptors of the two tensors, the rest is fresh pages of
    shared memory.
    """
    return DataLoader(
        _WholeBatches(dataset),
        batch_sampler=EpochSampler(len(dataset), batch_size, dataset.seed, rank, world_size),
        collate_fn=_unchanged,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=outlive_signals,
    )


@contextlib.contextmanager
def workers_of(loader: DataLoader) -> Iterator[None]:
    """Shut down the loader's worker processes on leaving, rather than when Python exits."""
    try:
        yield
    finally:
        if loader.num_workers and loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]  # not public


def describe_left_out(dataset: "TrainDatasetFromFolder | ValDatasetFromFolder") -> str:
    """Return one line per reason for leaving out images, with their number and names."""
    unreadable = [entry.name for entry in dataset.store.bad]
    text = ""
    for names, reason in ((dataset.too_small, "too small"), (unreadable, "cannot be read")):
        if names:
            count = f"{cli.counted(len(names), 'image')} left out"
            text += f"{dataset.store.layout.folder}: {count}, {reason}: {cli.listed(names)}\n"
    return text


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, i): every i below `length` once, in the order of the epoch's stream.

    Set `epoch` and `first_batch` before iterating; the sampler keeps no other state. The last batch
    may be smaller. With several processes, each gets its share of every batch. The `left_out`
    samples of the last batch that cannot be shared evenly are skipped in that epoch.

    Raises:
        UserError: the number of processes does not divide the batch size, or there are fewer
            samples than processes.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        if batch_size % world_size:
            raise cli.UserError(
                f"--batch-size {batch_size} cannot be shared evenly by {world_size} processes"
            )
        if length < world_size:
            raise cli.UserError(
                f"{cli.counted(length, 'crop')} per epoch: too few for {world_size} processes; "
                "use more --crops-per-image"
            )
        self.left_out = length % batch_size % world_size
        self.length = length - self.left_out
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = random_stream(Stream.ORDER, self.seed, self.epoch)
        order = stream.permutation(self.length + self.left_out)[: self.length].tolist()
        for start in range(self.first_batch * self.batch_size, self.length, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield [(self.epoch, sample) for sample in batch[self.rank :: self.world_size]]


# --- validation and testing ---------------------------------------------------------------------


class ValDatasetFromFolder(Dataset):
    """Whole images: (name, LR, bicubic, HR), each uint8 (1, 3, H, W).

    HR is cropped to a multiple of the scale. `bicubic` is LR enlarged to the size of HR. Names have
    no suffix and are unique even if case is ignored.

    Args:
        folder, upscale, cache_folder, skip_bad, headers_only: as for training.
        lr_folder: LR images made elsewhere, paired by name; None to make LR.
        degradation: how LR is made if there is no `lr_folder`; an image's LR is always the same.
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
        degradation: Degradation = BICUBIC,
        count: int | None = None,
        cache_folder: str | Path | None = None,
        skip_bad: bool = False,
        headers_only: bool = False,
    ):
        lr = degradation if lr_folder is None else Path(lr_folder)
        layout = Layout(Path(folder), upscale, lr, enlarged=True)
        self.store = ImageStore.open(layout, cache_folder, skip_bad, headers_only=headers_only)
        usable: list[int] = []
        self.too_small: list[str] = []
        for index, entry in enumerate(self.store.entries):
            if entry.height and entry.width:
                usable.append(index)
            else:
                self.too_small.append(entry.name)
        if not usable:
            raise cli.UserError(f"{folder}: no image is as large as {upscale}x{upscale}")
        self.usable = usable[:count]
        self.names = images.result_names(self.store.entries[index].name for index in self.usable)
        # By index, kept from one validation to the next
        self.bicubic_scores: dict[int, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor, Tensor]:
        if index >= len(self):
            raise IndexError(index)
        hr, lr, bicubic = map(images.to_tensor, self.store[self.usable[index]])
        return self.names[index], lr, bicubic, hr


class TestDatasetFromFolder(Dataset):
    """Whole images: (name, LR, HR), each uint8 (1, 3, H, W); names are as for validation.

    Args:
        lr_folder: LR images, paired by name; None to make them with bicubic.
        hr_folder: HR images.
        upscale: the scale.

    Raises:
        UserError: as for `ImageStore.open`, which reads only the headers.
    """

    __test__ = False  # not a pytest class

    def __init__(self, lr_folder: str | Path | None, hr_folder: str | Path, upscale: int = 4):
        lr = BICUBIC if lr_folder is None else Path(lr_folder)
        layout = Layout(Path(hr_folder), upscale, lr)
        # Every image is used once, so it is decoded only then
        self.store = ImageStore.open(layout, None, headers_only=True)
        self.names = images.result_names(entry.name for entry in self.store.entries)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor]:
        """Return an image; raise UserError if it is damaged, or smaller than the scale."""
        if index >= len(self):
            raise IndexError(index)
        arrays = self.store[index]
        if not arrays:
            layout = self.store.layout
            path = layout.folder / self.store.entries[index].name
            raise cli.UserError(f"{path}: smaller than {layout.upscale} pixels")
        hr, lr = map(images.to_tensor, arrays)
        return self.names[index], lr, hr
