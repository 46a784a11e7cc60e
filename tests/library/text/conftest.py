"""Fixtures that the tests of texts share."""

from pathlib import Path

import pytest
import torch
from small_models import FILMS, MAKERS
from torch import Tensor

from recsys_lib.text import minilm_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def real_minilm() -> Path:
    return minilm_folder()


@pytest.fixture
def minilm(real_minilm: Path, cache: Path) -> Path:
    """The folder of all-MiniLM-L6-v2, in the test's cache too, for where the package is not installed."""
    (cache / "models").mkdir(parents=True)
    (cache / "models" / real_minilm.name).symlink_to(real_minilm)
    (cache / "models" / "all-MiniLM-L6-v2").unlink(missing_ok=True)
    (cache / "models" / "all-MiniLM-L6-v2").symlink_to(real_minilm)
    return real_minilm


@pytest.fixture(scope="session")
def reference(real_minilm: Path) -> Tensor:
    """What sentence-transformers makes of the films."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(real_minilm), device="cpu")
    return theirs.encode(FILMS, convert_to_tensor=True, show_progress_bar=False).clone()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    with torch.random.fork_rng():
        for kind, make in MAKERS.items():
            torch.manual_seed(0)
            folders[kind] = tmp_path_factory.mktemp(kind)
            make(folders[kind])
    return folders
