"""A model in this process computes what its weights say; anything else is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agentshell.memory.embedders.choice import Choice
from agentshell.mesh.config import MemoryConfig, NamespaceConfig
from agentshell.mesh.errors import AgentShellError
from kfm.error.v1 import error_pb2

pytest.importorskip("tokenizers", reason="the extra agentshell[local] is not installed")
pytest.importorskip("safetensors", reason="the extra agentshell[local] is not installed")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "green", "tea", "query", ":"]
CONFIG = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "layer_norm_eps": 1e-12,
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny model with the files of a real one."""
    from safetensors import numpy as safetensors
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue] - it has a setter
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue] - as above
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    safetensors.save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path


def weights() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(7)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    made = {
        "embeddings.word_embeddings.weight": matrix(len(WORDS), 8),
        "embeddings.position_embeddings.weight": matrix(16, 8),
        "embeddings.token_type_embeddings.weight": matrix(2, 8),
        "embeddings.LayerNorm.weight": matrix(8),
        "embeddings.LayerNorm.bias": matrix(8),
    }
    for layer in range(2):
        sizes = {
            "attention.self.query": (8, 8),
            "attention.self.key": (8, 8),
            "attention.self.value": (8, 8),
            "attention.output.dense": (8, 8),
            "intermediate.dense": (12, 8),
            "output.dense": (8, 12),
        }
        for name, shape in sizes.items():
            made[f"encoder.layer.{layer}.{name}.weight"] = matrix(*shape)
            made[f"encoder.layer.{layer}.{name}.bias"] = matrix(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            made[f"encoder.layer.{layer}.{name}.weight"] = matrix(8)
            made[f"encoder.layer.{layer}.{name}.bias"] = matrix(8)
    return made


def by_the_book(tokens: list[int]) -> NDArray[np.float64]:
    """Computes one text's vector, a token and a head at a time, as in the paper."""
    of = {name: array.astype(np.float64) for name, array in weights().items()}

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return of[f"{name}.weight"] @ x + of[f"{name}.bias"]

    def normal(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-12) * of[f"{name}.weight"] + of[f"{name}.bias"]

    def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])

    first = of["embeddings.token_type_embeddings.weight"][0]
    hidden = [
        normal(
            of["embeddings.word_embeddings.weight"][token] + of["embeddings.position_embeddings.weight"][place] + first,
            "embeddings.LayerNorm",
        )
        for place, token in enumerate(tokens)
    ]
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        heads: list[list[NDArray[np.float64]]] = [[] for _ in tokens]
        for head in (slice(0, 4), slice(4, 8)):
            query, key, value = (
                [linear(x, f"{name}.attention.self.{part}")[head] for x in hidden] for part in ("query", "key", "value")
            )
            for place, each in enumerate(query):
                scores = np.exp([each @ other / 2 for other in key])
                mixed = sum(score * other for score, other in zip(scores / scores.sum(), value, strict=True))
                heads[place].append(np.asarray(mixed))
        after: list[NDArray[np.float64]] = []
        for x, parts in zip(hidden, heads, strict=True):
            x = normal(
                x + linear(np.concatenate(parts), f"{name}.attention.output.dense"),
                f"{name}.attention.output.LayerNorm",
            )
            inner = gelu(linear(x, f"{name}.intermediate.dense"))
            after.append(normal(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"))
        hidden = after
    mean = np.mean(hidden, axis=0)
    return mean / np.linalg.norm(mean)


def choice(directory: Path) -> Choice:
    rules = (NamespaceConfig(namespace="user/", embedder="local/tiny"),)
    return Choice(MemoryConfig(namespaces=rules, local_models={"tiny": directory}), None)


async def test_its_vectors_are_those_of_the_model_whatever_shares_their_batch(directory: Path) -> None:
    embedder = choice(directory).wanted("user/ann")
    assert (embedder.name, embedder.dimension) == ("local/tiny", 8)
    made = await embedder.embed(["green tea green tea", "tea", *(["green tea"] * 20)], "document")
    for vector, tokens in zip(made, ([2, 4, 5, 4, 5, 3], [2, 5, 3], *([[2, 4, 5, 3]] * 20)), strict=True):
        assert vector is not None
        assert np.abs(vector - by_the_book(tokens)).max() < 1e-3  # Half precision.
    [query] = await embedder.embed(["tea"], "query")
    assert query is not None
    assert np.abs(query - by_the_book([2, 6, 7, 5, 3])).max() < 1e-3


async def test_what_is_no_model_of_the_family_is_refused_by_its_name(directory: Path) -> None:
    async def refused(problem: str) -> None:
        with pytest.raises(AgentShellError) as error:
            await choice(directory).wanted("user/ann").embed(["tea"], "document")
        assert error.value.reason == error_pb2.ERROR_REASON_CONFIG_INVALID
        assert problem in error.value.message
        assert "local/tiny" in error.value.message

    (directory / "model.safetensors").write_bytes(b"no")
    await refused("cannot be loaded")
    (directory / "config.json").write_text(json.dumps({**CONFIG, "model_type": "t5"}))
    await refused("only `bert` with gelu is supported")
    (directory / "config.json").unlink()
    await refused("cannot be read")
