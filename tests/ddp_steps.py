"""Steps of train.py in several processes on different data; fails if their parameters become different."""

import hashlib

import torch

import train
from utils import distributed


def digest(network) -> str:
    return hashlib.sha256(
        b"".join(p.detach().contiguous().numpy().tobytes() for p in network.parameters())
    ).hexdigest()


args = train.get_args_parser().parse_args(["--perceptual-weight", "0", "--device", "cpu"])
args.blocks, args.perceptual_shift, args.precision = 1, 0, "fp32"
with distributed.processes(torch.device("cpu")):
    models = train.Models(args)
    models.loss = train.new_loss(args, None)
    data = torch.Generator().manual_seed(distributed.rank())
    seen = set()
    for step in (
        train.pixel_step,
        train.adversarial_step,
        train.adversarial_step,
        train.adversarial_step,
    ):
        for optimizer in (models.optimizer_g, models.optimizer_d):
            optimizer.param_groups[0]["lr"] = 1e-4
        lr, hr = (
            torch.rand(2, 3, 8, 8, generator=data) * 2 - 1,
            torch.rand(2, 3, 32, 32, generator=data) * 2 - 1,
        )
        terms = step(models, lr, hr)
        digests = distributed.gather((digest(models.generator), digest(models.discriminator)))
        assert len(set(digests)) == 1, "the parameters differ"
        assert len(set(distributed.gather(terms["Loss_G"].item()))) == distributed.world_size(), (
            "the data do not differ"
        )
        seen.add(digests[0])
    assert len(seen) == 4
    statistics = distributed.gather(models.generator.trunk[0].bn1.running_mean.tolist())
    assert statistics[0] != statistics[1], "batch statistics are shared at every step"
    distributed.share_buffers(models.generator)
    assert models.generator.trunk[0].bn1.running_mean.tolist() == statistics[0]
    print("equal parameters in", distributed.world_size(), "processes")
