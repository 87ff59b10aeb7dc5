"""The towers in which DLIP distils, and how hidden states and attention are compared there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from limbeck.config import Section
from limbeck.losses.attention import HeadMap
from limbeck.methods.passes import Pass
from limbeck.methods.projection import HRMap

Site = Literal["img", "text", "vl_e", "vl_d"]
"""DLIP's Table 3: image tower, unimodal text, fused text in the encoder, fused text in the decoder."""

SITE_PASSES: Mapping[str, tuple[Pass, ...]] = {
    "img": ("image",),
    "text": ("text",),
    "vl_e": ("fused", "question"),
    "vl_d": ("decoded", "answer"),
}
"""The passes whose last layer a site looks at, those over questions where a batch has some."""


class HiddenConfig(Section):
    """Hidden distillation (Eq. 3)."""

    sites: tuple[Site, ...] = ("img", "text", "vl_e", "vl_d")
    """which towers' last hidden states are pulled towards the teacher's"""
    hr_map: HRMap = "student"
    """`student`: a learned map from the student's width to the teacher's; `paper_frozen`: teacher through a fixed
    orthogonal map, student through a learned one; `paper`: both learned, which can collapse (watch effective_rank)"""


class AttentionConfig(Section):
    """Attention distillation (Eqs. 4 and 5)."""

    sites: tuple[Site, ...] = ("img", "text", "vl_e", "vl_d")
    """which towers' attention is distilled"""
    maps: tuple[Literal["self", "cross"], ...] = ("self", "cross")
    """self-attention, cross-attention (Table 4)"""
    head_map: HeadMap = "group_mean"
    """how unequal numbers of heads meet"""
