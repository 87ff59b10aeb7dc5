"""Caption metrics by COCO's official code: BLEU-1..4, ROUGE-L, CIDEr-D; METEOR and SPICE where Java can run them.

All figures are times 100, as papers print them (CIDEr 113.2, not 1.132).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from limbeck.evaluation.metrics.ptb import TokenizerName, best_tokenizer, tokenize

Tokenized = Mapping[str, list[str]]
"""Tokenised captions by picture."""


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """What a set of captions is worth, over all of it and by picture."""

    corpus: dict[str, float]
    """by metric (BLEU-1 .. BLEU-4, ROUGE-L, CIDEr, perhaps METEOR, SPICE), times 100"""
    pictures: dict[str, dict[str, float]]
    """picture -> metric -> score, times 100"""
    tokenizer: TokenizerName


def caption_scores(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokenizer: TokenizerName | None = None,
    java_metrics: bool = True,
) -> CaptionScores:
    """Score one caption for each picture against what people wrote about it.

    CIDEr weighs n-grams by how many of these pictures' references hold them, so a subset's CIDEr is not comparable with
    the whole set's; with a single picture it is 0. `tokenizer` None takes Java's where it runs. Raises ValueError where
    the pictures differ or one has no reference.
    """
    _check(predictions, references)
    tokenizer = tokenizer or best_tokenizer()
    lengths = [len(references[picture]) for picture in predictions]
    flat = tokenize([text for picture in predictions for text in references[picture]], tokenizer)
    ends = np.cumsum(lengths).tolist()
    wanted = {picture: flat[end - n : end] for picture, n, end in zip(predictions, lengths, ends, strict=True)}
    written = tokenize(list(predictions.values()), tokenizer)
    given = {picture: [text] for picture, text in zip(predictions, written, strict=True)}
    return score_tokenized(given, wanted, tokenizer=tokenizer, java_metrics=java_metrics)


def score_tokenized(
    given: Tokenized, wanted: Tokenized, *, tokenizer: TokenizerName, java_metrics: bool
) -> CaptionScores:
    """`caption_scores` after tokenisation: one caption for each picture in `given`, its references in `wanted`."""
    corpus: dict[str, float] = {}
    pictures: dict[str, dict[str, float]] = {picture: {} for picture in given}

    def note(metric: str, score: float | np.floating, by_picture: Iterable[float]) -> None:
        corpus[metric] = 100 * float(score)
        for picture, value in zip(given, by_picture, strict=True):
            pictures[picture][metric] = 100 * float(value)

    bleu, bleu_by_picture = Bleu(4).compute_score(wanted, given, verbose=0)
    for order in range(4):
        note(f"BLEU-{order + 1}", bleu[order], bleu_by_picture[order])
    note("ROUGE-L", *Rouge().compute_score(wanted, given))
    note("CIDEr", *Cider().compute_score(wanted, given))
    if java_metrics and shutil.which("java") is not None:
        note("METEOR", *_meteor(given, wanted))
        if _spice_is_installed():
            note("SPICE", *_spice(given, wanted))
    return CaptionScores(corpus=corpus, pictures=pictures, tokenizer=tokenizer)


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not predictions:
        raise ValueError("caption_scores: there are no captions to score")
    if predictions.keys() != references.keys():
        odd = sorted(predictions.keys() ^ references.keys())
        raise ValueError(f"caption_scores: pictures with a caption but no references or the other way round: {odd[:5]}")
    bare = [picture for picture, texts in references.items() if not texts]
    if bare:
        raise ValueError(f"caption_scores: pictures without a reference: {bare[:5]}")


def _meteor(given: Tokenized, wanted: Tokenized) -> tuple[float, list[float]]:
    """METEOR 1.5 in a process of its own, of which pycocoevalcap leaves the pipes open."""
    meteor = Meteor()
    try:
        return meteor.compute_score(wanted, given)
    finally:
        for pipe in (meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            assert pipe is not None
            pipe.close()


def _spice_is_installed() -> bool:
    """SPICE needs CoreNLP 3.6, which pycocoevalcap fetches when first used; we use it only where that has been done."""
    package = find_spec("pycocoevalcap")
    assert package is not None
    assert package.submodule_search_locations is not None
    jars = Path(package.submodule_search_locations[0]) / "spice" / "lib"
    return all((jars / f"stanford-corenlp-3.6.0{part}.jar").is_file() for part in ("", "-models"))


def _spice(given: Tokenized, wanted: Tokenized) -> tuple[np.floating, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    mean, parts = Spice().compute_score(wanted, given)
    by_picture = dict(zip(sorted(given), (part["All"]["f"] for part in parts), strict=True))
    return mean, [by_picture[picture] for picture in given]
