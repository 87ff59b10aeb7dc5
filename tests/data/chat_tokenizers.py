"""Tokenizers of the kinds that generative models have: byte-level, and Llama's with its new and old prefix space."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from limbeck.data.decoder_tokenizer import BpeTokenizer, DecoderFolder, load_decoder_tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")


def bpe(texts: Iterable[str], vocab_size: int = 700) -> PreTrainedTokenizerFast:
    """Our own, with ChatML's control tokens."""
    config = BpeTokenizer(tokenizer="bpe", vocab_size=vocab_size, extra_tokens=CHATML)
    return load_decoder_tokenizer(config, texts)


def llama(texts: Iterable[str], folder: Path, *, legacy: bool) -> PreTrainedTokenizerFast:
    """SentencePiece's kind, which itself puts <s> before a text; `legacy` adds a space after each special token too."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        initial_alphabet=alphabet,
        show_progress=False,
        max_token_length=12,
    )
    backend.train_from_iterator((word for text in texts for word in text.split()), trainer)
    kept = Tokenizer.from_str(backend.to_str())
    special = [AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>", *CHATML)]
    kept.add_special_tokens(special)
    kept.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    plain = PreTrainedTokenizerFast(tokenizer_object=kept, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    plain.save_pretrained(folder)
    return load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path=str(folder), pad_token="<unk>"))
