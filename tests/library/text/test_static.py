"""Token vectors without a model, against what WordLlama's own package makes of the same texts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.numpy import load_file

from recsys_lib.data.download import DownloadError, file_hash
from recsys_lib.text import StaticEncoder, TextVectors, static
from recsys_lib.text.static import wordllama_folder

close = torch.testing.assert_close
TEXTS = [
    "The Godfather (1972). Genres: Crime, Drama.",
    "Amélie, 天空の城ラピュタ and Ольга",
    "M",
    "  two  spaces ",
]
# The first four features of each, of WordLlamaInference.embed in wordllama 0.4.0.post1.
THEIRS = [
    [0.19892479479312897, 0.030945945531129837, 0.1414364129304886, -0.08578042685985565],
    [-0.07386555522680283, 0.06401914358139038, 0.07056741416454315, 0.009348251856863499],
    [0.83349609375, 1.1650390625, 0.56591796875, 0.30908203125],
    [-0.0709228515625, -0.2657104432582855, 0.21468505263328552, 0.218994140625],
]


@pytest.fixture(scope="session")
def real_wordllama() -> Path:
    return wordllama_folder()


@pytest.fixture
def wordllama(real_wordllama: Path, cache: Path) -> Path:
    """The folder of the two files, in the test's cache too, for where the package is not installed."""
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "wordllama").symlink_to(real_wordllama)
    return real_wordllama


def test_the_vectors_are_those_of_the_package(wordllama: Path) -> None:
    encoder = StaticEncoder(normalize=False, device="cpu")
    assert isinstance(encoder, TextVectors)
    vectors = encoder.encode(TEXTS, progress=False)
    assert vectors.shape == (4, 256)
    assert vectors.dtype == torch.float32
    close(vectors[:, :4], torch.tensor(THEIRS), atol=1e-6, rtol=0)
    # And all features are the mean of the rows that the tokenizer names, computed without torch.
    table = load_file(wordllama / static._WEIGHTS)["embedding.weight"].astype(np.float64)
    tokenizer = tokenizers.Tokenizer.from_file(str(wordllama / static._TOKENIZER))
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert encoder.tokens([text]) == [ids]
        np.testing.assert_allclose(vector.numpy(), table[ids].mean(0), atol=1e-5)


def test_lengths_features_and_order(wordllama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = StaticEncoder(normalize=False, device="cpu").encode(TEXTS)
    close(StaticEncoder(dim=64, normalize=False, device="cpu").encode(TEXTS), whole[:, :64])
    vectors = StaticEncoder(dim=64, device="cpu").encode([*TEXTS, ""])
    close(vectors.norm(dim=-1), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    close(vectors[:4], torch.nn.functional.normalize(whole[:, :64], dim=-1))
    monkeypatch.setattr(static, "_CHUNK", 2)
    close(StaticEncoder(dim=64, device="cpu").encode(["", *TEXTS[::-1]]), vectors.flip(0))
    assert StaticEncoder(device="cpu").encode([]).shape == (0, 256)
    assert StaticEncoder(device="cpu").encode(["", ""]).abs().sum() == 0


def test_texts_that_are_missing_or_none(wordllama: Path) -> None:
    encoder = StaticEncoder(device="cpu")
    with pytest.warns(UserWarning, match="1 of 2 texts are missing, the first is number 1"):
        assert encoder.encode(["M", None])[1].abs().sum() == 0
    with pytest.raises(TypeError, match="got one str"):
        encoder.encode("M")
    for dim in (0, 257):
        with pytest.raises(ValueError, match=f"dim must be 1 to 256, got {dim}"):
            StaticEncoder(dim=dim, device="cpu")


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, real_wordllama: Path) -> Iterator[list[str]]:
    """As if the package were not installed, and its wheel could be fetched."""
    fetched = []

    def fetch(requirement: str, members: list[str], sha256: str | None) -> dict[str, bytes]:
        fetched.append(requirement)
        return {
            member: (real_wordllama / member.removeprefix("wordllama/")).read_bytes() for member in members
        }

    monkeypatch.setattr(static.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(static, "fetch_from_package", fetch)
    return fetched


def test_the_wheel_is_fetched_once_into_the_cache(not_installed: list[str], cache: Path) -> None:
    folder = wordllama_folder()
    assert folder == wordllama_folder() == cache / "models" / "wordllama"
    assert not_installed == ["wordllama==0.4.0.post1"]
    assert {name: file_hash(folder / name) for name in static._FILES} == static._FILES
    place = folder / static._TOKENIZER
    good = place.read_bytes()
    place.write_bytes(good[:-1] + b"X")
    assert (wordllama_folder() / static._TOKENIZER).read_bytes() == good
    assert len(not_installed) == 2


def test_another_file_is_refused_and_no_network_says_what_to_do(
    not_installed: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(static, "fetch_from_package", lambda _, members, __: dict.fromkeys(members, b"other"))
    with pytest.raises(DownloadError, match="is not the file that was published"):
        wordllama_folder()

    def fail(*_: object) -> dict[str, bytes]:
        raise DownloadError("no network")

    monkeypatch.setattr(static, "fetch_from_package", fail)
    with pytest.raises(
        DownloadError, match=r"no network.*Install wordllama==0\.4\.0\.post1 with pip, or copy"
    ):
        StaticEncoder(device="cpu")
    assert not any(path.is_file() for path in (cache / "models" / "wordllama").rglob("*"))
