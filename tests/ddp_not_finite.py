"""train.py, where the second process's loss is not finite; its gradients are."""

import os

import train
from utils import cli

step = train.pixel_step


def spoiled(models, lr, hr):
    values = step(models, lr, hr)
    if os.environ["RANK"] == "1":
        values["Loss_Pixel"] = values["Loss_Pixel"] * float("nan")
    return values


train.pixel_step = spoiled
cli.run_script(train.main, train.get_args_parser())
