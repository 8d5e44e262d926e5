"""The columns of statistics.csv, read and written without PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli, files

if TYPE_CHECKING:  # pandas, which takes half a second to import, is imported where it is used
    import pandas

# The CSV's columns in order, and the TensorBoard group that charts each. Losses, scores and metrics
# have these names everywhere. Add new columns at the end.
COLUMNS: dict[str, str | None] = {
    "Epoch": None,
    "Loss_D": "loss",
    "Loss_G": "loss",
    "Score_D": "score",
    "Score_G": "score",
    "PSNR": "validation",
    "SSIM": "validation",
    "Loss_Pixel": "loss",
    "Loss_Adversarial": "loss",
    "Loss_Perceptual": "loss",
    "Loss_TV": "loss",
    "Bicubic_PSNR": "validation",
    "Bicubic_SSIM": "validation",
    "Learning_Rate": "run",
    "Images_Per_Second": "run",
    "Seconds": "run",
    "LPIPS": "validation",
    "Loss_Grid": "loss",
    "Distance": "validation",
    "Detail": "validation",
    "Colour": "validation",
    "Grid": "validation",
    "Loss_Consistency": "loss",
}
_FIRST_VERSION = list(COLUMNS)[:16]  # the columns of every CSV, however old


def write_statistics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the CSV, whole or not at all.

    Args:
        path: the CSV.
        rows: the values of each epoch by column; those that do not apply to it are None.

    Raises:
        KeyError: a value has no column in `COLUMNS`.
    """
    import pandas

    unknown = {name for row in rows for name in row} - COLUMNS.keys()
    if unknown:
        raise KeyError(f"no column for {', '.join(sorted(unknown))} in statistics.COLUMNS")
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    files.write_text(path, table.to_csv(index=False, float_format="%.7g"))


def read_statistics(path: Path) -> pandas.DataFrame:
    """Read the CSV of a run, of this or an older version.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file is not a run's CSV, or has no epoch.
    """
    import pandas

    try:
        table = pandas.read_csv(path)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise cli.UserError(f"{path}: not a CSV file ({' '.join(str(error).split())})") from error
    missing = [name for name in _FIRST_VERSION if name not in table]
    if missing:
        raise cli.UserError(f"{path}: not the statistics of a run: no column {', '.join(missing)}")
    if table.empty:
        raise cli.UserError(f"{path}: no epoch is finished yet")
    table = table.reindex(columns=list(COLUMNS))  # columns newer than the file are empty
    text = [name for name in COLUMNS if not pandas.api.types.is_numeric_dtype(table[name])]
    if text:
        raise cli.UserError(f"{path}: column {text[0]} holds something that is not a number")
    return table


def describe_result(rows: list[dict[Any, Any]]) -> str:
    """Return the best epoch of a run as text, compared with bicubic."""
    validated = [row for row in rows if row["PSNR"] is not None and not math.isnan(row["PSNR"])]
    if not validated:
        return "no epoch was validated"
    best = max(validated, key=lambda row: row["PSNR"])
    gain = best["PSNR"] - best["Bicubic_PSNR"]
    return (
        f"best PSNR {best['PSNR']:.2f} dB, SSIM {best['SSIM']:.4f} in epoch {best['Epoch']}; "
        f"bicubic {best['Bicubic_PSNR']:.2f} dB, {best['Bicubic_SSIM']:.4f}: {gain:+.2f} dB"
    )
