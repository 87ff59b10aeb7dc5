"""A DLIP step the usual way, by the public descriptions of BLIP and DLIP: what limbeck's step is compared with.

Attention is eager and every layer's maps are kept (Hugging Face's `output_attentions`); distillation compares these.
Momentum encoders follow tensor by tensor, hard negatives are drawn row by row, the queue is cloned and joined to the
batch's features, targets are one-hot matrices, texts are padded to 30 tokens, and every pass that looks at pictures
makes their keys and values anew.
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.methods.dlip import DLIP
from limbeck.models.fusion import FusionVLM
from limbeck.models.med import Attention, TextTransformer
from limbeck.models.vision import VisionTransformer
from limbeck.types import IGNORE, Batch

PADDED = 30
"""Tokens that BLIP's pre-training pads every caption to"""
TINY = 1e-12
"""Keeps the logarithm of a probability finite"""


class Seen(NamedTuple):
    """What one eager pass leaves behind: hidden states [B, T, D] and every layer's maps [B, H, T, S]."""

    hidden: Tensor
    self_maps: list[Tensor]
    cross_maps: list[Tensor]


class UsualStep(nn.Module):
    """The models, maps and queues of a limbeck method, which is used up; `forward` gives the same loss terms."""

    image_queue: Tensor
    text_queue: Tensor

    def __init__(self, method: DLIP):
        super().__init__()
        self.settings = method.settings
        self.student = _fusion(method.student)
        self.momentum = _fusion(method.objective.momentum)
        self.teacher = _fusion(method.teacher).float().eval()
        self.projections = method.projections
        self.register_buffer("image_queue", method.objective.image_queue.features.T.contiguous())
        self.register_buffer("text_queue", method.objective.text_queue.features.T.contiguous())
        self.position = 0

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer updates."""
        return [*self.student.parameters(), *self.projections.parameters()]

    def train(self, mode: bool = True) -> UsualStep:
        super().train(mode)
        self.teacher.eval()
        self.momentum.eval()
        return self

    def forward(self, batch: Batch, negatives: tuple[list[int], list[int]] | None = None) -> dict[str, Tensor]:
        """Every loss term of DLIP's Eq. 6. `negatives`: wrong pictures for texts, wrong texts for pictures."""
        student, pixels = self.student, batch["pixel_values"]
        ids, mask = padded(batch)
        with torch.no_grad():
            student.temperature.clamp_(1e-3, 0.5)
        image, text = see(student.vision, pixels), read(encoder(student), ids, mask)
        terms, to_image, to_text = self._contrast(batch, image.hidden, text.hidden)
        if negatives is None:
            negatives = draw(to_image), draw(to_text)
        fused, terms["matching"] = self._match(image.hidden, ids, mask, *negatives)
        decoded, terms["language"] = self._write(image.hidden, ids, mask)
        passes = {"image": image, "text": text, "fused": fused, "decoded": decoded}
        return terms | self._distil(passes, pixels, ids, mask)

    def _contrast(self, batch: Batch, image: Tensor, text: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The contrastive term, and the batch's similarities: pictures for a text, texts for a picture, [B, B] each."""
        student, momentum, config = self.student, self.momentum, self.settings.vlp.contrastive
        ids, mask = padded(batch)
        images, texts = embed(student.image_head, image), embed(student.text_head, text)
        with torch.no_grad():
            assert config.momentum is not None
            for slow, fast in zip(momentum.parameters(), student.parameters()):
                slow.data = slow.data * config.momentum + fast.data * (1.0 - config.momentum)
            slow_images = embed(momentum.image_head, see(momentum.vision, batch["pixel_values"]).hidden)
            slow_texts = embed(momentum.text_head, read(encoder(momentum), ids, mask).hidden)
            all_images = torch.cat([slow_images.t(), self.image_queue.clone().detach()], dim=1)
            all_texts = torch.cat([slow_texts.t(), self.text_queue.clone().detach()], dim=1)
            slow_to_text = slow_images @ all_texts / student.temperature
            slow_to_image = slow_texts @ all_images / student.temperature
            one_hot = torch.zeros_like(slow_to_text)
            one_hot.fill_diagonal_(1)
            text_targets = config.alpha * slow_to_text.softmax(1) + (1 - config.alpha) * one_hot
            image_targets = config.alpha * slow_to_image.softmax(1) + (1 - config.alpha) * one_hot
        to_text, to_image = images @ all_texts / student.temperature, texts @ all_images / student.temperature
        losses = [
            -(logits.log_softmax(1) * targets).sum(1).mean()
            for logits, targets in ((to_text, text_targets), (to_image, image_targets))
        ]
        self._enqueue(slow_images, slow_texts)
        size = len(images)
        return {"contrastive": (losses[0] + losses[1]) / 2}, to_image[:, :size].detach(), to_text[:, :size].detach()

    @torch.no_grad()
    def _enqueue(self, images: Tensor, texts: Tensor) -> None:
        stop = self.position + len(images)
        self.image_queue[:, self.position : stop] = images.t()
        self.text_queue[:, self.position : stop] = texts.t()
        self.position = stop % self.image_queue.shape[1]

    def _match(
        self, image: Tensor, ids: Tensor, mask: Tensor, pictures: list[int], texts: list[int]
    ) -> tuple[Seen, Tensor]:
        """The matching term, and the pass over the positive pairs."""
        student, size = self.student, len(ids)
        ids = ids.clone()
        ids[:, 0] = student.config.text.enc_token_id
        positive = read(encoder(student), ids, mask, image)
        wrong_images = torch.stack([image[picture] for picture in pictures])
        wrong_ids = torch.stack([ids[text] for text in texts])
        wrong_mask = torch.stack([mask[text] for text in texts])
        negative = read(
            encoder(student),
            torch.cat([ids, wrong_ids]),
            torch.cat([mask, wrong_mask]),
            torch.cat([wrong_images, image]),
        )
        assert student.match_head is not None
        logits = student.match_head(torch.cat([positive.hidden[:, 0], negative.hidden[:, 0]]))
        labels = torch.cat([torch.ones(size, dtype=torch.long), torch.zeros(2 * size, dtype=torch.long)])
        return positive, functional.cross_entropy(logits, labels.to(logits.device))

    def _write(self, image: Tensor, ids: Tensor, mask: Tensor) -> tuple[Seen, Tensor]:
        """The language term, and the decoder's pass."""
        tower = encoder(self.student)
        ids, labels = ids.clone(), ids.masked_fill(~mask, IGNORE)
        ids[:, 0] = self.student.config.text.dec_token_id
        decoded = read(tower, ids, mask, image, causal=True)
        logits = tower.logits(decoded.hidden)[:, :-1].reshape(-1, self.student.config.text.vocab_size)
        smoothing = self.settings.vlp.label_smoothing
        return decoded, functional.cross_entropy(logits, labels[:, 1:].reshape(-1), label_smoothing=smoothing)

    def _distil(self, passes: dict[str, Seen], pixels: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The hidden and the attention terms of all four towers (Eqs. 3 to 5)."""
        tower, special = encoder(self.teacher), self.teacher.config.text
        with torch.no_grad():
            image = see(self.teacher.vision, pixels)
            first = {"fused": special.enc_token_id, "decoded": special.dec_token_id}
            taught = {"image": image, "text": read(tower, ids, mask)}
            for name, token in first.items():
                ids = ids.clone()
                ids[:, 0] = token
                taught[name] = read(tower, ids, mask, image.hidden, causal=name == "decoded")
        terms = {}
        sites = {"image": "img", "text": "text", "fused": "vl_e", "decoded": "vl_d"}
        for name, student in passes.items():
            teacher = taught[name]
            real = torch.ones(student.hidden.shape[:2], device=mask.device) if name == "image" else mask.float()
            wanted, learned = self.projections[sites[name]](teacher.hidden, student.hidden)
            distance = 1 - functional.cosine_similarity(learned.float(), wanted.float(), dim=-1)
            terms[f"hidden/{name}"] = (distance * real).sum() / real.sum()
            terms[f"attention/{name}/self"] = divergence(student.self_maps[-1], teacher.self_maps[-1], real)
            if student.cross_maps:
                terms[f"attention/{name}/cross"] = divergence(student.cross_maps[-1], teacher.cross_maps[-1], real)
        return terms


def see(tower: VisionTransformer, pixels: Tensor) -> Seen:
    """Pixels [B, 3, R, R] through an image tower with eager attention."""
    patches = tower.patches(pixels).flatten(2).transpose(1, 2)
    hidden = torch.cat([tower.class_token.expand(len(patches), -1, -1), patches], dim=1) + tower.positions
    maps = []
    for block in tower.blocks:
        attention = block.get_submodule("attention")
        projected = attention.get_submodule("qkv")(block.get_submodule("attention_norm")(hidden))
        heads = tower.config.heads
        query, key, value = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed, attended = attend(query, key, value)
        maps.append(attended)
        hidden = hidden + attention.get_submodule("output")(mixed)
        up, down = block.get_submodule("up"), block.get_submodule("down")
        hidden = hidden + down(functional.gelu(up(block.get_submodule("feed_forward_norm")(hidden))))
    return Seen(tower.norm(hidden), maps, [])


def read(
    tower: TextTransformer, ids: Tensor, mask: Tensor, image: Tensor | None = None, *, causal: bool = False
) -> Seen:
    """Texts [B, T] through a text tower with eager attention, over pictures' hidden states [B, N, D] if given."""
    allowed = mask[:, None, None, :]
    if causal:
        allowed = allowed & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    bias = (1.0 - allowed.float()) * -10000.0
    hidden = tower.embeddings(ids)
    self_maps, cross_maps = [], []
    for layer in tower.stack():
        attention = layer.decoder_attention if causal else layer.encoder_attention
        assert attention is not None
        hidden, attended = attend_states(attention, hidden, hidden, bias)
        self_maps.append(attended)
        if image is not None and layer.cross_attention is not None:
            hidden, attended = attend_states(layer.cross_attention, hidden, image, None)
            cross_maps.append(attended)
        hidden = layer.feed_forward(hidden)
    return Seen(hidden, self_maps, cross_maps)


def attend_states(block: Attention, hidden: Tensor, states: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """BERT's attention block from hidden [B, T, D] to states [B, S, D]: the new hidden states and the map."""
    query, (key, value) = block.split(block.query(hidden)), block.source(states)
    mixed, attended = attend(query, key, value, bias, block.dropout if block.training else 0.0)
    update = functional.dropout(block.output(mixed), block.dropout, block.training)
    return block.norm(hidden + update), attended


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Eager attention of [B, H, T, d] to [B, H, S, d]: mixed [B, T, D], and the map [B, H, T, S] before dropout."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    attended = (scores if bias is None else scores + bias).softmax(-1)
    mixed = functional.dropout(attended, dropout).to(value.dtype) @ value
    return mixed.transpose(1, 2).flatten(2), attended


def divergence(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """KL of kept maps [B, H, T, S], heads averaged inside groups, mean over groups and real queries [B, T]."""
    groups = gcd(student.shape[1], teacher.shape[1])
    ours, theirs = (maps.float().unflatten(1, (groups, -1)).mean(2) for maps in (student, teacher))
    rows = (theirs * (theirs.clamp(min=TINY).log() - ours.clamp(min=TINY).log())).sum(-1)
    return (rows * real[:, None]).sum() / (groups * real.sum())


def draw(similarity: Tensor) -> list[int]:
    """A hard negative for each row of the similarities [B, B], row by row."""
    weights = similarity.softmax(1) + 1e-4
    weights.fill_diagonal_(0)
    return [int(torch.multinomial(row, 1).item()) for row in weights]


def embed(head: nn.Linear | None, hidden: Tensor) -> Tensor:
    """The class token's unit embedding [B, E] of hidden states [B, T, D]."""
    assert head is not None
    return functional.normalize(head(hidden[:, 0]).float(), dim=-1)


def padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """Captions and their mask, padded to 30 tokens."""
    room = (0, PADDED - batch["input_ids"].shape[1])
    return functional.pad(batch["input_ids"], room), functional.pad(batch["attention_mask"], room)


def encoder(model: FusionVLM) -> TextTransformer:
    """The text tower, which is the decoder too."""
    assert model.text is not None
    return model.text


def _fusion(model: nn.Module | None) -> FusionVLM:
    assert isinstance(model, FusionVLM)
    return model
