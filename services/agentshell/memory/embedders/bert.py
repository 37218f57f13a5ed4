"""A sentence model of the BERT family in numpy, read from a directory with `model.safetensors` and `tokenizer.json`.

Needs the extra `agentshell[local]`. For all-MiniLM-L6-v2, its vectors equal those of torch to within 2e-7.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors
from tokenizers import Tokenizer

Array = NDArray[np.float32]

_DEFAULT_MAX_TOKENS = 256
_HALF, _ONE, _ROOT_OF_HALF = np.float32(0.5), np.float32(1), np.float32(0.5**0.5)


class Shape(NamedTuple):
    """What the directory's JSON files say about the model."""

    dimension: int
    layers: int
    heads: int
    epsilon: float
    max_tokens: int
    by_first_token: bool  # Otherwise pooled by the mean of all tokens.
    prompts: dict[str, str]


def read_shape(directory: Path) -> Shape:
    """Reads a model's `config.json` and the files that sentence-transformers puts beside it.

    Raises OSError, and ValueError for a model that is not of the BERT family.
    """
    config = _json(directory / "config.json")
    if config.get("model_type") != "bert" or config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"{directory} has a model of type {config.get('model_type')!r}; only `bert` with gelu is supported"
        )
    pooling = _json(directory / "1_Pooling" / "config.json", optional=True)
    most = _json(directory / "sentence_bert_config.json", optional=True).get("max_seq_length") or _DEFAULT_MAX_TOKENS
    prompts: dict[str, Any] = _json(directory / "config_sentence_transformers.json", optional=True).get("prompts") or {}
    return Shape(
        dimension=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        epsilon=config.get("layer_norm_eps", 1e-12),
        max_tokens=min(most, config["max_position_embeddings"]),
        by_first_token=bool(pooling.get("pooling_mode_cls_token")),
        prompts={role: str(prompt) for role, prompt in prompts.items()},
    )


class Bert:
    """The loaded model. It is not fast: in a second, one core embeds about a hundred sentences, or ten chunks."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        """Raises OSError, and what the libraries raise for malformed files."""
        self._shape = shape
        weights: dict[str, NDArray[Any]] = safetensors.load_file(directory / "model.safetensors")
        self._weights = {name.removeprefix("bert."): array.astype(np.float32) for name, array in weights.items()}
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(shape.max_tokens)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> Array:
        """Returns one vector per text, not normalised."""
        encodings = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([encoding.ids for encoding in encodings])
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.float32)
        hidden = self._hidden(tokens, mask)
        if self._shape.by_first_token:
            return hidden[:, 0]
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)

    def _hidden(self, tokens: NDArray[np.int64], mask: Array) -> Array:
        weights = self._weights
        words = weights["embeddings.word_embeddings.weight"][tokens]
        positions = weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        hidden = words + positions + weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self._normal(hidden, "embeddings.LayerNorm")
        # Masks out the padding.
        bias = ((1 - mask) * np.float32(-1e9))[:, None, None, :]
        for layer in range(self._shape.layers):
            name = f"encoder.layer.{layer}"
            attended = self._linear(
                self._attention(hidden, bias, f"{name}.attention.self"), f"{name}.attention.output.dense"
            )
            hidden = self._normal(hidden + attended, f"{name}.attention.output.LayerNorm")
            inner = _gelu(self._linear(hidden, f"{name}.intermediate.dense"))
            hidden = self._normal(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return hidden

    def _attention(self, hidden: Array, bias: Array, name: str) -> Array:
        batch, length, dimension = hidden.shape
        heads = self._shape.heads

        def part(which: str) -> Array:
            made = self._linear(hidden, f"{name}.{which}")
            return made.reshape(batch, length, heads, dimension // heads).transpose(0, 2, 1, 3)

        query, key, value = part("query"), part("key"), part("value")
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(dimension // heads)) + bias
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return (scores @ value).transpose(0, 2, 1, 3).reshape(batch, length, dimension)

    def _linear(self, hidden: Array, name: str) -> Array:
        return hidden @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _normal(self, hidden: Array, name: str) -> Array:
        centered = hidden - hidden.mean(-1, keepdims=True)
        variance = (centered * centered).mean(-1, keepdims=True)
        scaled: Array = centered / np.sqrt(variance + np.float32(self._shape.epsilon))
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _gelu(x: Array) -> Array:
    made = 1 + _erf(x * _ROOT_OF_HALF)
    made *= x * _HALF
    return made


def _erf(x: Array) -> Array:
    """The error function to within 1.5e-7 (Abramowitz and Stegun, 7.1.26): numpy has none."""
    t: Array = _ONE / (_ONE + np.float32(0.3275911) * np.abs(x))
    series = np.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(coefficient)) * t
    return np.sign(x) * (_ONE - series * np.exp(-x * x))


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    return json.loads(path.read_text())
