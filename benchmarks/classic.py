"""The classic SRGAN training loop, as most repositories have it: the reference of the benchmarks.

It computes in fp32 on contiguous tensors. A DataLoader decodes a whole image for every crop.
Gradients of D's loss are propagated back through G too, and D is trainable in the G step. G and D
run forward a second time for the log. Validation decodes and resizes every time.
Networks and losses are the same as ours.
"""

import random
from collections import OrderedDict
from pathlib import Path

import common  # noqa: F401 - makes the repository and torchvision importable
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms, utils

from generator_loss_functions import GeneratorLoss
from model import Discriminator, Generator, UpsampleBlock

try:
    from pytorch_msssim import ssim
except ImportError:
    raise SystemExit("the benchmarks need pytorch-msssim; pip install pytorch-msssim") from None


def new_generator(blocks: int = 8) -> Generator:
    """Return the generator in PyTorch's own layers, contiguous."""
    generator = Generator(4, blocks)
    plain = nn.Conv2d(64, 3, 9, padding=4)
    plain.load_state_dict(generator.tail.state_dict())
    generator.add_module("tail", plain)
    for block in generator.trunk:
        block.add_module("prelu", nn.PReLU())
    generator.add_module("head", nn.Sequential(generator.head[0], nn.PReLU()))
    upsample = nn.Sequential()
    for block in generator.upsample:
        assert isinstance(block, UpsampleBlock)
        steps = {"conv": block.conv, "shuffle": block.pixel_shuffle, "prelu": nn.PReLU()}
        upsample.append(nn.Sequential(OrderedDict(steps)))
    generator.add_module("upsample", upsample)
    return generator


class TrainDataset(Dataset):
    """(LR, HR) crops in [-1, 1]; every sample decodes its whole image."""

    def __init__(self, folder: Path, crop: int, upscale: int = 4):
        self.paths = sorted(folder.glob("*.png"))
        bicubic = transforms.InterpolationMode.BICUBIC
        self.hr_transform = transforms.Compose([transforms.RandomCrop(crop), transforms.ToTensor()])
        self.lr_transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.Resize(crop // upscale, interpolation=bicubic),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        hr = self.hr_transform(Image.open(self.paths[index]).convert("RGB"))
        if random.random() < 0.5:
            hr = hr.flip(-1)
        return self.lr_transform(hr) * 2 - 1, hr * 2 - 1


class ValDataset(Dataset):
    """(LR, bicubic, HR) in [0, 1] of whole images, decoded and resized every time."""

    def __init__(self, folder: Path, upscale: int = 4):
        self.paths = sorted(folder.glob("*.png"))
        self.upscale = upscale

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image = Image.open(self.paths[index]).convert("RGB")
        width, height = (side // self.upscale for side in image.size)
        hr = image.crop((0, 0, width * self.upscale, height * self.upscale))
        lr = hr.resize((width, height), Image.Resampling.BICUBIC)
        bicubic = lr.resize(hr.size, Image.Resampling.BICUBIC)
        to_tensor = transforms.functional.to_tensor
        return to_tensor(lr), to_tensor(bicubic), to_tensor(hr)


class Training:
    """Networks, optimisers and the step."""

    def __init__(self, loss: GeneratorLoss, device: torch.device, blocks: int = 8):
        self.generator = new_generator(blocks).to(device)
        self.discriminator = Discriminator().to(device)
        # PyTorch's stub lacks this overload
        loss.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.loss = loss.to(device)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=1e-4)
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=1e-4)

    def step(self, lr: Tensor, hr: Tensor) -> list[float]:
        """Update D and then G on a batch in [-1, 1]; return what the classic loop logs."""
        # (1) Update D
        fake = self.generator(lr)
        self.discriminator.zero_grad()
        real_logits = self.discriminator.logits(hr)
        fake_logits = self.discriminator.logits(fake)
        ones = torch.ones_like(real_logits)
        zeros = torch.zeros_like(fake_logits)
        loss_d = F.binary_cross_entropy_with_logits(real_logits, ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(fake_logits, zeros)
        loss_d.backward(retain_graph=True)
        self.optimizer_d.step()

        # (2) Update G
        self.generator.zero_grad()
        loss_g, _terms = self.loss((fake + 1) / 2, (hr + 1) / 2, self.discriminator.logits(fake))
        loss_g.backward()
        self.optimizer_g.step()

        # Log
        fake = self.generator(lr)
        real_score = torch.sigmoid(real_logits).mean()
        fake_score = torch.sigmoid(self.discriminator.logits(fake)).mean()
        return [loss_d.item(), loss_g.item(), real_score.item(), fake_score.item()]


@torch.no_grad()
def validate(
    generator: nn.Module, dataset: ValDataset, folder: Path, device: torch.device
) -> tuple[float, float]:
    """Return the mean PSNR and SSIM over a folder; write bicubic | HR | SR of every image."""
    generator.eval()
    psnr_sum = 0.0
    ssim_sum = 0.0
    for index in range(len(dataset)):
        lr, bicubic, hr = (image.unsqueeze(0).to(device) for image in dataset[index])
        sr = ((generator(lr * 2 - 1) + 1) / 2).clamp(0, 1)
        psnr_sum += 10 * torch.log10(1 / F.mse_loss(sr, hr)).item()
        ssim_sum += ssim(sr, hr, data_range=1).item()
        crop = transforms.CenterCrop(400)
        panels = [crop(image[0]) for image in (bicubic, hr, sr)]
        utils.save_image(panels, folder / f"{index}.png", nrow=3, padding=5)
    generator.train()
    return psnr_sum / len(dataset), ssim_sum / len(dataset)
