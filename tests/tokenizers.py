"""Tiny tokenizers of the kinds that models have, over texts in many scripts."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import saved
from tests.tiny import tiny_llava

TEXTS = {
    "English": "A well-known cat, isn't it? 3.5 m² of it.",
    "Chinese": "这只猫是紫色的。它坐着！",
    "Japanese": "バナナは紫色です。猫もいます。",
    "Hindi": "केला बैंगनी है। बिल्ली सो रही है।",
    "Arabic": "الموزة بنفسجية. القطة نائمة؟",
    "Thai": "กล้วยสีม่วง และแมว",
    "emoji": "👩‍🚀 sees 👍🏽 and 🇩🇪🇫🇷, 1️⃣!",
    "mixed": "The 猫 (बिल्ली) says “สวัสดี” 😀\nand iPhone手机.",
}
SPECIAL = ["<s>", "</s>", "<unk>", "<image>", "<loc0012>", "<loc0034>"]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, extra_special_tokens={"image_token": "<image>", "loc": "<loc0012>"}
    )


@cache
def byte_level(merged: int = 60) -> PreTrainedTokenizerFast:
    """As GPT-2's, SmolLM's and Qwen's: tokens are bytes and runs of bytes, which begin and end inside of characters."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + merged
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(list(TEXTS.values()) * 3, trainer)
    return wrapped(made)


@cache
def sentencepiece(letters: str = "") -> PreTrainedTokenizerFast:
    """As Llama 2's: `▁` is a blank, every text begins with one, decoding drops it, and what is not known is bytes."""
    latin = [chr(i) for i in range(33, 127)]
    pieces = ["▁", *latin, *letters, *(f"▁{c}" for c in latin)]
    known = {token: n for n, token in enumerate([*SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    merges = [("▁", c) for c in latin]
    made = Tokenizer(models.BPE(known, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(made)


@cache
def words() -> PreTrainedTokenizerFast:
    """As those of worlds with few words: what is none of them is `<unk>`."""
    known = [*SPECIAL, *"what color is it ? purple yellow user assistant :".split()]
    made = Tokenizer(models.WordLevel({token: n for n, token in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made.decoder = decoders.WordPiece()
    return wrapped(made)


@cache
def few_merges() -> PreTrainedTokenizerFast:
    """Bytes, and the words of a few sentences: a blank is one token with these words only."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(["user: what color is it? assistant: purple yellow. a: purple"] * 20, trainer)
    return wrapped(made)


KINDS = {
    "bytes": lambda: byte_level(0),
    "byte-level": byte_level,
    "byte fallback": sentencepiece,
    "pieces": lambda: sentencepiece("猫紫色的केलाกวย"),
}


SMALL = {"words": words, "few merges": few_merges}


def chat(kind: str, monkeypatch, seed: int = 0):
    """A tiny LLaVA that speaks with one of these tokenizers."""
    import lvlm_interp as li

    make = (KINDS | SMALL)[kind]
    tokenizer = make()
    monkeypatch.setattr(saved, "tokenizer", make)
    model = tiny_llava(seed=seed)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return li.wrap(model, saved.processor("llava"))
