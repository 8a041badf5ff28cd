"""Texts to tokens, by a text encoder of transformers (extra "text")."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2.post_hoc_ema.files import first_line

LONGEST = 1 << 16
"""Tokens that no encoder takes; a tokenizer that knows no bound says a larger number."""


class TextEncoderError(ValueError):
    """A text encoder that cannot be loaded; the message is one line with the remedy."""


@lru_cache(maxsize=2)
def load_text_encoder(name: str) -> "TextEncoder":
    """Load a text encoder, or take it from the cache.

    Args:
        name: Hub id, or a folder that transformers saved a tokenizer and a model in.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise TextEncoderError("text encoders need transformers: pip install 'edm2[text]'") from None
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        trusted: Any = {"trust_remote_code": False}  # nor asked for: snapshots of strangers name encoders
        tokenizer = AutoTokenizer.from_pretrained(name, **trusted)
        model: Any = AutoModel.from_pretrained(name, use_safetensors=True, **trusted)  # the alternative is a pickle
    except Exception as error:  # transformers raise almost anything
        raise TextEncoderError(
            f"text encoder {name}: cannot be loaded: {first_line(error)}; give a folder of transformers or a hub id"
        ) from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    model = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    return TextEncoder(name, tokenizer, getattr(model, "text_model", model).eval())


class TextEncoder:
    """A tokenizer and the model that makes a vector of each of its tokens.

    Args:
        name: Name to store: the hub id, or the folder's full path.
        tokenizer, model: Both of transformers.
    """

    def __init__(self, name: str, tokenizer: Any, model: Any) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.model = model

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """Tokens of each text, float32 [L, size]; a text that is too long for the encoder is cut."""
        bounded = self.tokenizer.model_max_length < LONGEST
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        encoded = self.tokenizer(list(texts), padding=True, truncation=bounded, return_tensors="pt")
        states = self.model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).last_hidden_state
        return [tokens[mask.bool()].float() for tokens, mask in zip(states, encoded.attention_mask, strict=True)]
