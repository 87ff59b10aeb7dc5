"""What a model costs: parameters, multiply-accumulates, latency, memory.

DLIP's Table 1 counts as `thop` does: parameters of layers (class token and positions of the image tower left out), and
multiply-accumulates of Linear, Conv and LayerNorm (4 per normalised value) without the products inside attention. The
other count given is of every matrix product, those inside attention among them, and of nothing else. Counts come from a
pass on the meta device, so they cost no memory.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.models.clip import DualEncoder
from limbeck.models.families import build_model
from limbeck.models.fusion import FusionVLM, ImageSignals
from limbeck.models.med import TextTransformer
from limbeck.models.scales import TEXT, VISION, text_config, vision_config
from limbeck.models.vision import VisionTransformer

MIB = 2**20
TABLE_TEXT_LENGTH = 30
"""tokens of the text that DLIP's Table 1 counts"""
POSITIONS = ("class_token", "positions", "class_embedding")
"""parameters of an image tower that belong to no layer, by the last part of their name"""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a picture and a text cost; latency and memory are of `batch_size` of each at once."""

    parameters: int
    parameters_without_positions: int
    """Table 1's convention"""
    parameters_by_tower: dict[str, int]
    """of image, text with fusion, heads, and what decoder and answer decoder have of their own; Table 1's convention"""
    macs: int
    """of image, text and fusion pass, in Table 1's convention"""
    macs_with_attention: int
    """of matrix products alone, those inside attention among them"""
    macs_by_tower: dict[str, int]
    macs_with_attention_by_tower: dict[str, int]
    latency_ms: dict[str, float]
    """median after warm-up, by pass; `whole` is image, text and fusion one after another"""
    peak_memory_mib: float
    """weights, and the most bytes of tensors that are alive at once in the passes"""
    batch_size: int
    text_length: int
    image_size: int
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def profile(
    model: FusionVLM | DualEncoder,
    *,
    batch_size: int = 1,
    text_length: int = 30,
    image_size: int | None = None,
    repeats: int = 20,
) -> Profile:
    """Count and time a model where it stands (its device, its dtype), without gradients.

    `image_size` in pixels, else the model's own. The model's mode is `eval` while it is timed.
    """
    size = image_size or model.config.vision.image_size
    length = min(text_length, model.config.text.max_positions)
    with torch.device("meta"):
        shadow = build_model(model.config).eval()
    macs, macs_with_attention = {}, {}
    with Count(shadow) as count, torch.no_grad():
        for name, run in _passes(shadow, batch_size, length, size):
            run()
            macs[name], macs_with_attention[name] = (total // batch_size for total in count.take())
    first = next(model.parameters())
    by_tower: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not _is_position(name):
            tower = _tower(name)
            by_tower[tower] = by_tower.get(tower, 0) + parameter.numel()
    was_training = model.training
    model.eval()
    latency = _latency(_passes(model, batch_size, length, size), first.device, repeats)
    model.train(was_training)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return Profile(
        parameters=weights,
        parameters_without_positions=sum(by_tower.values()),
        parameters_by_tower=by_tower,
        macs=sum(macs.values()),
        macs_with_attention=sum(macs_with_attention.values()),
        macs_by_tower=macs,
        macs_with_attention_by_tower=macs_with_attention,
        latency_ms=latency,
        peak_memory_mib=(weights * first.element_size() + count.peak_bytes * first.element_size() / 4) / MIB,
        batch_size=batch_size,
        text_length=length,
        image_size=size,
        device=str(first.device),
        threads=torch.get_num_threads(),
    )


def scale_table(*, repeats: int = 10) -> list[dict[str, Any]]:
    """Every tower of Table 1, one row each: `name` (vit-small, bert-tiny), `parameters` and `macs` in the table's
    convention, `latency_ms` of one picture of 224 pixels or one text of 30 tokens here, and the whole counts."""
    rows = []
    ids = torch.randint(1000, 2000, (1, TABLE_TEXT_LENGTH))
    for scale in VISION:
        vision = vision_config(scale)
        pixels = torch.randn(1, 3, vision.image_size, vision.image_size)
        rows.append(_row(f"vit-{scale}", lambda config=vision: VisionTransformer(config), pixels, repeats))
    for scale in TEXT:
        text, width = text_config(scale), VISION[scale].width

        def build(config=text, width=width) -> nn.Module:
            return _TextOnly(TextTransformer(config, width, encoder=True, decoder=False, head=False))

        rows.append(_row(f"bert-{scale}", build, ids, repeats))
    return rows


class Count(TorchFunctionMode):
    """While open, counts multiply-accumulates on the meta device, and the bytes alive beside the model's weights.

    Attention is counted and answered here: on the meta device it would form its map, which no device does.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.products = 0
        self.norms = 0
        self.attention = 0
        self._live = LiveBytes(model)

    @property
    def peak_bytes(self) -> int:
        return self._live.peak

    def take(self) -> tuple[int, int]:
        """Counts since the last time, in Table 1's convention and of matrix products alone."""
        found = self.products + self.norms, self.products + self.attention
        self.products = self.norms = self.attention = 0
        return found

    def __enter__(self) -> Count:
        self._live.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._live.__exit__(*error)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
            self.attention += query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        out = func(*args, **kwargs)
        if func is functional.linear:
            self.products += out.numel() * args[0].shape[-1]
        elif func is torch.conv2d:
            self.products += out.numel() * args[1][0].numel()
        elif func is functional.layer_norm:
            self.norms += 4 * out.numel()
        return out


class LiveBytes(TorchDispatchMode):
    """While open, follows the storages that operations make: how many bytes are alive, and the most at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _TextOnly(nn.Module):
    """A text tower that reads a text alone."""

    def __init__(self, text: TextTransformer):
        super().__init__()
        self.text = text

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text.encode(input_ids, None).hidden


Passes = list[tuple[str, Callable[[], object]]]


def _passes(model: FusionVLM | DualEncoder, batch_size: int, text_length: int, image_size: int) -> Passes:
    """What a pair goes through: image, text, and fusion where the model has one."""
    parameter = next(model.parameters())
    device = parameter.device
    pixels = torch.randn(batch_size, 3, image_size, image_size, device=device, dtype=parameter.dtype)
    ids = torch.full((batch_size, text_length), model.config.text.vocab_size // 2, device=device)
    passes: Passes = [("image", lambda: model.encode_image(pixels))]
    if isinstance(model, DualEncoder):
        return [*passes, ("text", lambda: model.encode_text(ids, None))]
    if model.config.encoder:
        vision = model.config.vision
        tokens = (image_size // vision.patch_size) ** 2 + 1
        hidden = torch.randn(batch_size, tokens, vision.width, device=device, dtype=parameter.dtype)
        image = ImageSignals(output=hidden[:, 0], hidden=hidden, decoder_hidden=hidden)
        passes.append(("text", lambda: model.encode_text(ids, None)))
        passes.append(("fusion", lambda: model.fuse(model.image_memory(image), ids, None)))
    return passes


@torch.no_grad()
def _latency(passes: Passes, device: torch.device, repeats: int) -> dict[str, float]:
    """Median milliseconds of each pass, and of a round of all."""
    times: dict[str, list[float]] = {name: [] for name, _ in passes} | {"whole": []}
    for attempt in range(3 + repeats):
        total = 0.0
        for name, run in passes:
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            passed = 1000 * (time.perf_counter() - start)
            total += passed
            if attempt >= 3:
                times[name].append(passed)
        if attempt >= 3:
            times["whole"].append(total)
    return {name: statistics.median(found) for name, found in times.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(name: str, build: Callable[[], nn.Module], example: Tensor, repeats: int) -> dict[str, Any]:
    """One tower's row of the scale table."""
    with torch.device("meta"):
        shadow = build().eval()
        with Count(shadow) as count, torch.no_grad():
            shadow(torch.empty_like(example, device="meta"))
    macs, with_attention = count.take()
    tower = build().eval()
    latency = _latency([("tower", lambda: tower(example))], example.device, repeats)
    return {
        "name": name,
        "parameters": _count(shadow.named_parameters(), positions=False),
        "macs": macs,
        "latency_ms": latency["whole"],
        "parameters_with_positions": _count(shadow.named_parameters(), positions=True),
        "macs_with_attention": with_attention,
    }


def _count(parameters: Iterable[tuple[str, nn.Parameter]], *, positions: bool) -> int:
    return sum(parameter.numel() for name, parameter in parameters if positions or not _is_position(name))


def _is_position(name: str) -> bool:
    """Whether a parameter is an image tower's class token or positions; a text's positions are a layer's."""
    parts = name.split(".")
    return parts[-1] in POSITIONS or ("vision" in parts and "position_embedding" in parts)


def _tower(name: str) -> str:
    """The tower that a parameter belongs to, by its name."""
    top, _, rest = name.partition(".")
    if top == "vision":
        return "image"
    if top in ("decoder", "decoder_vision") or (top == "text" and (".decoder_attention." in rest or "head." in rest)):
        return "decoder"
    return {"text": "text", "answer_decoder": "answer"}.get(top, "heads")
