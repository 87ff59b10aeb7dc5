"""Hugging Face datasets: a folder of `save_to_disk`, parquet, arrow or picture files, or a name on the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from PIL import Image

from limbeck.data.encoding import Ragged
from limbeck.data.examples import (
    BrokenImage,
    DataError,
    Example,
    Examples,
    MadeImage,
    Question,
    Skipped,
    Source,
    check_skipped,
    decode,
)
from limbeck.data.records import BrokenRecord, FilesConfig, Pictures, captions_of, existing_folder, joined, questions_of

if TYPE_CHECKING:
    from datasets import Dataset


class DatasetsConfig(FilesConfig):
    """A dataset of the `datasets` library with a column of pictures."""

    source: Literal["datasets"]
    path: str
    """a local folder, else a name on the hub"""
    name: str | None = None
    """the dataset's configuration, where it has several"""
    split: str = "train"
    image: str = "image"
    """column of pictures"""
    caption: str | None = "caption"
    """column of one or several texts; null where there are only questions"""
    question: str | None = None
    """column of a question"""
    answers: str | None = None
    """column of its answer or answers"""


def load_datasets(config: DatasetsConfig, base: Path) -> Source:
    """One example per picture, rows of the same picture taken together. Raises DataError.

    The texts are checked here; pictures are decoded when wanted.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError("source datasets needs the package datasets: pip install datasets")
    import datasets

    table = _open(config, base)
    columns = [column for column in (config.image, config.caption, config.question, config.answers) if column]
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{config.path}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    table = table.select_columns(columns).cast_column(config.image, datasets.Image(decode=False))
    skipped: list[Skipped] = []
    pictures, same = Pictures(config.limit), _Same(table, config.image)
    texts = table.remove_columns(config.image)
    taken = 0
    for row, (record, stored) in enumerate(zip(texts, _stored(table, config.image), strict=True)):
        try:
            _texts(config, record, row)
        except BrokenRecord as error:
            if not pictures.full:
                skipped.append(Skipped(f"{config.path}[{row}]", str(error)))
            continue
        if not pictures.add(same.first(row, *stored), row):
            break
        taken += 1
    check_skipped(skipped, taken + len(skipped), config.max_skipped, config.path)
    return Source(name=config.path, examples=_Rows(config, table, texts, pictures.rows()), skipped=tuple(skipped))


class _Rows(Examples):
    def __init__(self, config: DatasetsConfig, table: Dataset, texts: Dataset, rows: Ragged) -> None:
        self._config = config
        self._table = table
        self._texts = texts
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""
        return joined([self._row(int(row)) for row in self._rows[index]])

    def _row(self, row: int) -> Example:
        id = f"{self._config.path}[{row}]"
        captions, questions = _texts(self._config, self._texts[row], row)
        image = MadeImage(id, partial(_decode, self._table, self._config.image, row, id))
        return Example(id=id, image=image, captions=captions, questions=questions)


class _Same:
    """Which rows of a table have one picture. Its bytes are read only where another has the same length and name."""

    def __init__(self, table: Dataset, column: str) -> None:
        self._table = table
        self._column = column
        self._first: dict[tuple[int | None, str | None], int] = {}
        self._digests: dict[tuple[int | None, str | None], dict[bytes, int]] = {}

    def first(self, row: int, size: int | None, path: str | None) -> int:
        """The first row that was asked about with this one's picture, of so many bytes and this name."""
        if size is None and path is None:
            return row
        first = self._first.setdefault((size, path), row)
        if size is None or first == row:
            return first
        if (size, path) not in self._digests:
            self._digests[size, path] = {self._digest(first): first}
        return self._digests[size, path].setdefault(self._digest(row), row)

    def _digest(self, row: int) -> bytes:
        stored: Any = self._table[row][self._column]
        return hashlib.blake2b(stored["bytes"], digest_size=16).digest()


def _stored(table: Dataset, column: str) -> Iterator[tuple[int | None, str | None]]:
    """Of each row's picture how many bytes it has, None where they are in a file, and its name."""
    from pyarrow import compute

    functions = cast(Any, compute)
    for batch in table.with_format("arrow").iter(1000):
        stored = cast(Any, batch)[column]
        pictures, paths = (functions.struct_field(stored, name) for name in ("bytes", "path"))
        sizes = functions.binary_length(pictures)
        yield from zip(sizes.to_pylist(), paths.to_pylist(), strict=True)


def _texts(config: DatasetsConfig, record: Any, row: int) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    captions = captions_of(record, config.caption) if config.caption else ()
    if config.question is None:
        return captions, ()
    asked: dict[str, Any] = {"question": record[config.question]}
    if config.answers is not None:
        given = record[config.answers]
        asked["answers"] = [given] if isinstance(given, str) else given
    return captions, questions_of(asked, f"{config.path}[{row}]")


def _decode(table: Dataset, column: str, row: int, name: str) -> Image.Image:
    stored = table[row][column]
    if stored is None:
        raise BrokenImage(f"{name}: no picture in this row")
    return decode(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"], name)


def _open(config: DatasetsConfig, base: Path) -> Dataset:
    import datasets

    folder = base / config.path
    if not folder.exists():
        if config.path.startswith((".", "/", "~")) or config.path.count("/") > 1:  # no name on the hub
            existing_folder(base, config.path, "source datasets, field path")
        return datasets.load_dataset(config.path, config.name, split=config.split)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        found = datasets.load_from_disk(str(folder))
    else:
        kinds = [kind for kind in ("parquet", "arrow") if any(folder.rglob(f"*.{kind}"))]
        if kinds:
            files = [str(file) for file in sorted(folder.rglob(f"*.{kinds[0]}"))]
            found = datasets.load_dataset(kinds[0], data_files={config.split: files})
        else:
            found = datasets.load_dataset("imagefolder", data_dir=str(folder))
    if isinstance(found, datasets.Dataset):
        return found
    if config.split not in found:
        raise DataError(f"{folder}: no split {config.split!r}; it has {', '.join(map(str, found))}")
    return found[config.split]
