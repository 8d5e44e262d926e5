import pytest

from dataloader import TrainDatasetFromFolder, new_loader
from utils import cli


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_bad_during_a_run_without_cache_is_named_in_one_plain_line(
    photos, workers
):
    dataset = TrainDatasetFromFolder(photos[0], 32, 4)
    for path in photos[0].glob("*.png"):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError) as caught:
        list(new_loader(dataset, 2, workers=workers))
    message = cli.describe(caught.value)
    assert (
        message.startswith(str(photos[0])) and "cut short" in message and "Traceback" not in message
    )
