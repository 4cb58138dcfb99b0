"""Tables as records, one a row: CSV and TSV, Parquet (extra `parquet`), and what `datasets` saved (its extra).

Empty cells are nothing (None). Cells of CSV and TSV are texts; Parquet and data sets may hold lists and objects.
"""

from __future__ import annotations

import csv
import importlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from esc_lab.errors import UserError

log = logging.getLogger(__name__)

TEXT_TABLES, TABLES = (".csv", ".tsv"), (".csv", ".tsv", ".parquet")
_DELIMITERS = (",", ";", "\t", "|")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # files of `Dataset.save_to_disk`, and of a `DatasetDict`'s


def read_table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a table with their places.

    Raises:
        UserError: the file cannot be read, is no such table, or a library for it is missing.
    """
    try:
        if path.is_dir():
            return _number(path, _library("datasets", "datasets").load_from_disk(str(path)))
        if path.suffix.lower() == ".parquet":
            return _number(path, _library("pyarrow.parquet", "parquet").read_table(path).to_pylist())
        return list(_read_csv(path))
    except FileNotFoundError as error:
        fix = f"check the path; the working directory is {Path.cwd()}"
        raise UserError("there is no such file", where=str(path), fix=fix) from error
    except UnicodeDecodeError as error:
        fix = "save the table as UTF-8 (in Excel: CSV UTF-8)"
        raise UserError(f"not UTF-8 (byte {error.start})", where=str(path), fix=fix) from error
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are of the first two kinds
        what = f"cannot be read as {path.suffix.lstrip('.') or 'a saved data set'} ({' '.join(str(error).split())})"
        raise UserError(what, where=str(path), fix="check the file, or save it as UTF-8 CSV with a header") from error


def is_saved_dataset(path: Path) -> bool:
    """Whether a directory holds what `datasets.Dataset.save_to_disk` wrote."""
    return (path / _SAVED).is_file()


def has_saved_splits(path: Path) -> bool:
    """Whether a directory holds what `datasets.DatasetDict.save_to_disk` wrote."""
    return (path / _SAVED_SPLITS).is_file()


def load_hub_dataset(name: str, subset: str | None, revision: str | None) -> Mapping[str, list[tuple[str, Any]]]:
    """The rows of a data set of the Hugging Face hub, or of a directory of such files, by its splits.

    Raises:
        UserError: `datasets` is missing, there is no such data set, or it cannot be had.
    """
    datasets = _library("datasets", "datasets")
    try:
        loaded = datasets.load_dataset(name, subset, revision=revision)
    except Exception as error:  # of the library, of the network, of the loading code: too many kinds to name
        fix = "check the name, data.subset, your access and the network; offline, name the directory of its files"
        what = f"not to be had: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(what, where=f"data.hub={name}", fix=fix) from error
    return {str(split): _number(Path(f"{name}, {split}"), rows) for split, rows in loaded.items()}


def find_hub_licence(name: str, revision: str | None) -> str | None:
    """The licence that the card of a data set of the hub, or of such a directory, states; None where none is known."""
    from huggingface_hub import DatasetCard, hf_hub_download

    try:
        own = Path(name).is_dir()
        card = (
            Path(name, "README.md")
            if own
            else hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
        )
        licence = DatasetCard.load(Path(card)).data.license
    except Exception as error:  # of the library, of the network, of a broken card: too many kinds to name
        log.debug("%s: no licence found: %s", name, error)
        return None
    return licence if isinstance(licence, str) else None


def _library(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = f"reading this needs {module.partition('.')[0]}, which is not installed"
        raise UserError(what, fix=f"pip install 'esc-lab[{extra}]'") from error


def _number(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path}, row {number}", to_json(dict(row))) for number, row in enumerate(rows, start=1)]


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=header.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if not any(names):
            raise UserError("the file is empty", where=str(path), fix="give a table with a header and rows")
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            fix = "give each column a name of its own"
            raise UserError(f"several columns are called '{repeated[0]}'", where=f"{path}:1", fix=fix)
        if delimiter != ",":
            log.info("%s: columns are separated by %r", path, delimiter)
        before = reader.line_num
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                fix = "close every quotation mark, and write one inside a cell twice"
                raise UserError(f"broken table: {error}", where=f"{path}:{before + 1}", fix=fix) from error
            if row is None:
                return
            where, before = f"{path}:{before + 1}", reader.line_num
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                what = f"{len(row)} cells under a header of {len(names)}, separated by {delimiter!r}"
                fix = "put cells that hold a separator or a line break between quotation marks"
                raise UserError(what, where=where, fix=fix)
            yield where, {name: cell if cell.strip() else None for name, cell in zip(names, row, strict=True)}


def to_json(value: Any) -> Any:
    """A value of a table as JSON types: times and the like as texts, numbers that are none as nothing."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)
