"""Hugging Face datasets: a folder of `save_to_disk`, parquet, arrow or picture files, or a name on the hub."""

from __future__ import annotations

import importlib.util
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

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
from limbeck.data.records import BrokenRecord, FilesConfig, captions_of, questions_of

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
    """Open the dataset and check its texts; pictures are decoded when wanted. Raises DataError."""
    if importlib.util.find_spec("datasets") is None:
        raise DataError("source datasets needs the package datasets: pip install datasets")
    import datasets

    table = _open(config, base)
    columns = [column for column in (config.image, config.caption, config.question, config.answers) if column]
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{config.path}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    table = table.select_columns(columns).cast_column(config.image, datasets.Image(decode=False))
    chosen, skipped = [], []
    texts = table.remove_columns(config.image)
    for row, record in enumerate(texts):
        try:
            _texts(config, record, row)
        except BrokenRecord as error:
            skipped.append(Skipped(f"{config.path}[{row}]", str(error)))
            continue
        chosen.append(row)
        if len(chosen) == config.limit:
            break
    check_skipped(skipped, len(chosen) + len(skipped), config.max_skipped, config.path)
    return Source(name=config.path, examples=_Rows(config, table, texts, chosen), skipped=tuple(skipped))


class _Rows(Examples):
    def __init__(self, config: DatasetsConfig, table: Dataset, texts: Dataset, chosen: list[int]) -> None:
        self._config = config
        self._table = table
        self._texts = texts
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def at(self, index: int) -> Example:
        """The example at 0 <= index < len."""
        row = self._chosen[index]
        id = f"{self._config.path}[{row}]"
        captions, questions = _texts(self._config, self._texts[row], row)
        image = MadeImage(id, partial(_decode, self._table, self._config.image, row, id))
        return Example(id=id, image=image, captions=captions, questions=questions)


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
