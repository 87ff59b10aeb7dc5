"""The loss weights of a stage: by term, or by group of terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches


def expand_weights(
    weights: Mapping[str, float],
    terms: Sequence[str],
    missing: Mapping[str, str] | None = None,
    where: str = "weights",
) -> dict[str, float]:
    """Weight by term, from weights by term or by group (`hidden` for every `hidden/...`); the longer name wins.

    No weights at all mean 1 for each term. Raises ValueError for a name that is neither a term nor a group, with the
    reason where it is one of the `missing` terms.
    """
    if not weights:
        return dict.fromkeys(terms, 1.0)
    groups = {"/".join(term.split("/")[:depth]) for term in terms for depth in range(1, term.count("/") + 2)}
    for name in weights:
        if name not in groups:
            absent = [reason for term, reason in (missing or {}).items() if f"{term}/".startswith(f"{name}/")]
            if absent:
                raise ValueError(f"{where}: {name}: {absent[0]}")
            near = get_close_matches(name, groups, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{where}: there is no loss term {name!r}{hint} (these models have {', '.join(sorted(groups))})"
            )
    expanded = {}
    for term in terms:
        prefixes = [name for name in weights if term == name or term.startswith(f"{name}/")]
        expanded[term] = weights[max(prefixes, key=len)] if prefixes else 0.0
    return expanded
