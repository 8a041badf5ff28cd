"""A text encoder and its tokenizer, made offline: a word is a token, and a small random BERT looks at them."""

import json
from pathlib import Path

import torch


def save_tiny_text_encoder(folder: Path, words: list[str], size: int = 16) -> Path:
    """Save a tokenizer of some words, and a model that makes `size` numbers of each."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        **{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}},
        **dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"]),
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 8}
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=size, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=2 * size, max_position_embeddings=8, initializer_range=0.5,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
    return folder
