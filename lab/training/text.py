"""A CLIP tokenizer and text model for the captions' few words, in the files that `transformers` reads."""

import json
from collections import Counter
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .art import BACKGROUNDS, CONCEPTS, word

END = "</w>"
WIDTH, LAYERS, HEADS, LENGTH = 128, 2, 4, 77


def caption_words() -> list[str]:
    """Every word of the captions, sorted."""
    words = {w for c in CONCEPTS for w in word(c).split()} | set(BACKGROUNDS) | {"a", "and", "on"}
    return sorted(words)


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair merges, most frequent pair first, until each word is one token."""
    split = [[*w[:-1], w[-1] + END] for w in words]
    merges = []
    while pairs := Counter(p for s in split for p in zip(s, s[1:], strict=False)):
        pair = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(pair)
        for symbols in split:
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == pair:
                    symbols[i : i + 2] = ["".join(pair)]
                i += 1
    return merges


def write_tokenizer(folder: Path) -> None:
    """Write `vocab.json`, `merges.txt`, `tokenizer_config.json` and the text model's `config.json`.

    The vocabulary is in CLIP's order: bytes, bytes at the end of a word, merges, start and end of text.
    """
    merges = learn_merges(caption_words())
    symbols = sorted(ByteLevel.alphabet())
    vocabulary = [*symbols, *(s + END for s in symbols), *dict.fromkeys("".join(m) for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(vocabulary)}, ensure_ascii=True))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges), ""]))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}, indent=1))
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, max_position_embeddings=LENGTH, hidden_act="quick_gelu",
        bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, pad_token_id=len(vocabulary) - 1,
    )
    config.architectures = ["CLIPTextModel"]
    config.save_pretrained(folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def new_text_model(folder: Path) -> CLIPTextModel:
    """A text model with random weights."""
    return CLIPTextModel(CLIPTextConfig.from_pretrained(folder))


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]):
    """Token ids `[b, 77]`."""
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
