"""One entry for every kind of source: a recipe's `source:` section in, examples out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from limbeck.data.builtin import OpenMojiConfig, load_openmoji
from limbeck.data.coco import KarpathyConfig, LavisConfig, VqaConfig, load_karpathy, load_lavis, load_vqa
from limbeck.data.examples import Joined, Source
from limbeck.data.hub import DatasetsConfig, load_datasets
from limbeck.data.jsonl import JsonlConfig, load_jsonl
from limbeck.data.records import told_at
from limbeck.data.scenes import ScenesConfig, load_scenes
from limbeck.data.shard_index import index_folder
from limbeck.data.shards import WebDatasetConfig, load_webdataset

AnySource = (
    JsonlConfig
    | KarpathyConfig
    | LavisConfig
    | VqaConfig
    | WebDatasetConfig
    | DatasetsConfig
    | OpenMojiConfig
    | ScenesConfig
)
SourceConfig = Annotated[AnySource, Field(discriminator="source")]


def load_source(config: AnySource, base: Path = Path()) -> Source:
    """Open a source. Relative paths start from `base`. Raises DataError."""
    match config:
        case JsonlConfig():
            return load_jsonl(config, base)
        case KarpathyConfig():
            return load_karpathy(config, base)
        case LavisConfig():
            return load_lavis(config, base)
        case VqaConfig():
            return load_vqa(config, base)
        case WebDatasetConfig():
            return load_webdataset(config, base, index_folder())
        case DatasetsConfig():
            return load_datasets(config, base)
        case OpenMojiConfig():
            return load_openmoji(config)
        case ScenesConfig():
            return load_scenes(config)


def load_sources(configs: Sequence[AnySource], base: Path = Path(), where: str = "") -> Source:
    """Several sources as one, in the order given.

    `where` is their key path in the recipe (`data.train`), which a DataError begins with; "" where there is none.
    """
    sources = []
    for index, config in enumerate(configs):
        with told_at(f"{where}.{index}" if where else ""):
            sources.append(load_source(config, base))
    if len(sources) == 1:
        return sources[0]
    return Source(
        name=" + ".join(source.name for source in sources),
        examples=Joined([source.examples for source in sources]),
        skipped=tuple(entry for source in sources for entry in source.skipped),
    )
