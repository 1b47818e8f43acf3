"""Reads tables of actions, one beside each video: CSV with Python's own reader, parquet with pyarrow.

The first line of a CSV file has the names of the columns. If it has only numbers, the columns are named 0, 1, 2, ...
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collect.files import read_text, reason
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra


def import_parquet() -> Any:
    """pyarrow's module for parquet files, which is an extra."""
    with extra("parquet"):
        import pyarrow.parquet
    return pyarrow.parquet


def choose_columns(tables: Sequence[Path], actions: Sequence[str], rewards: str) -> tuple[str, ...]:
    """The columns of the actions: those asked for, or those of numbers in most tables; `UserError` without a table."""
    found: Counter[tuple[str, ...]] = Counter()
    wrong: list[UserError] = []
    for path in tables:
        try:
            found[columns_of(path, actions, rewards)] += 1
        except UserError as error:
            wrong.append(error)
    if not found:
        raise wrong[0]
    return found.most_common(1)[0][0]


def columns_of(path: Path, actions: Sequence[str], rewards: str) -> tuple[str, ...]:
    """The columns of the actions in one table."""
    columns = read_table(path)
    for name in (*actions, *filter(None, [rewards])):
        check_column(path, columns, name)
    chosen = tuple(actions) or tuple(n for n, v in columns.items() if v.dtype.kind in "iubf" and n != rewards)
    if not chosen:
        raise UserError(f"{path} has no column of numbers, only {', '.join(columns)}; give a table of actions")
    return chosen


def check_column(path: Path, columns: dict[str, np.ndarray], name: str) -> None:
    if name not in columns:
        raise UserError(f"{path} has no column {name}; name one of {', '.join(columns)}")
    if columns[name].dtype.kind not in "iubf":
        raise UserError(f"column {name} of {path} is not of numbers only; name another, or repair the table")


def read_columns(path: Path, names: Sequence[str], skip: bool = False) -> np.ndarray:
    """Columns of a table (rows, columns); whole numbers if all are. With `skip` a bad table has no rows."""
    try:
        columns = read_table(path)
        for name in names:
            check_column(path, columns, name)
    except UserError:
        if skip:
            return np.zeros((0, len(names)))
        raise
    return np.stack([columns[name] for name in names], axis=1)


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table by name; those that are not numbers are of type object."""
    if not path.is_file():
        raise UserError(f"there is no {path.name} beside the video; give each video a table")
    if path.suffix == ".csv":
        return read_csv(path)
    parquet = import_parquet()
    try:
        table = parquet.ParquetFile(path).read()
        return {name: table.column(name).to_numpy() for name in table.column_names}
    except Exception as error:  # pyarrow's errors, of many types
        raise UserError(f"{path} cannot be read ({reason(error)}); download it again") from None


def read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        lines = [line for line in csv.reader(read_text(path).lstrip("\ufeff").splitlines()) if line]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}); repair it") from None
    if not lines:
        raise UserError(f"{path} is empty; give a row for each frame")
    header = any(as_numbers([word]).dtype == object for word in lines[0])
    names = [word.strip() for word in lines.pop(0)] if header else [str(i) for i in range(len(lines[0]))]
    if not lines:
        raise UserError(f"{path} has no rows; give a row for each frame")
    odd = next((i for i, line in enumerate(lines, 1 + header) if len(line) != len(names)), None)
    if odd:
        raise UserError(f"line {odd} of {path} has another number of columns than the first; repair it")
    return {name: as_numbers([line[i] for line in lines]) for i, name in enumerate(names)}


def as_numbers(words: list[str]) -> np.ndarray:
    """Words as whole numbers or floats; of type object if one is neither."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(words).astype(kind)
        except (ValueError, OverflowError):
            continue
    return np.array(words, object)
