"""The vectors on disk: none is computed twice, none is wrong, and few bytes are read."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import count_computed, own_copy, sentences, stored
from torch import Tensor

from recsys_lib.text import TextEncoder
from recsys_lib.text import encoder as encoder_module
from recsys_lib.text import vectors as vectors_module
from recsys_lib.text.vectors import VectorStore, text_key

close = torch.testing.assert_close


def test_known_texts_need_no_model(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(9)
    vectors = TextEncoder(models["bert"], device="cpu").encode(texts)
    monkeypatch.setattr(encoder_module, "load_transformers", None)
    again = TextEncoder(models["bert"], device="cpu")
    assert again.encode(texts).equal(vectors)
    assert again.encode([texts[3], texts[1], texts[3]]).equal(vectors[[3, 1, 3]])
    with pytest.raises(TypeError):
        again.encode(texts, cache=False)


def test_only_new_texts_are_computed(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    encoder.encode(["w1", "w2"])
    computed = count_computed(encoder, monkeypatch)
    vectors = encoder.encode(["w3", "w1", "w4 w5", "w2"])
    assert sorted(computed) == ["w3", "w4 w5"]
    close(vectors, encoder.encode(["w3", "w1", "w4 w5", "w2"], cache=False), atol=1e-6, rtol=0)


def test_whatever_changes_the_vector_changes_the_key(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9"]
    TextEncoder(models["bert"], device="cpu").encode(texts)
    changed = own_copy(models["bert"], tmp_path / "changed")
    state = load_file(changed / "model.safetensors")
    state["embeddings.word_embeddings.weight"][5] += 1.0
    save_file(state, changed / "model.safetensors", metadata={"format": "pt"})
    retokenized = own_copy(models["bert"], tmp_path / "retokenized")
    rules = (retokenized / "tokenizer.json").read_text().replace('"w1"', '"w_"').replace('"w11"', '"w1"')
    (retokenized / "tokenizer.json").write_text(rules)
    others = [
        TextEncoder(models["bert"], "cls", device="cpu"),
        TextEncoder(models["bert"], normalize=False, device="cpu"),
        TextEncoder(models["bert"], dtype="bfloat16", device="cpu"),
        TextEncoder(models["bert"], max_length=6, device="cpu"),
        TextEncoder(changed, device="cpu"),
        TextEncoder(retokenized, device="cpu"),
    ]
    for other in others:
        computed = count_computed(other, monkeypatch)
        cached = other.encode(texts)
        assert computed == texts
        assert cached.equal(other.encode(texts, cache=False))
    same = own_copy(models["bert"], tmp_path / "elsewhere")
    monkeypatch.setattr(encoder_module, "load_transformers", None)
    TextEncoder(same, device="cpu").encode(texts)  # where the folder lies is no matter


def test_the_cache_can_be_left_alone(models: dict[str, Path], cache: Path) -> None:
    TextEncoder(models["bert"], device="cpu", cache=False).encode(["w1"])
    TextEncoder(models["bert"], device="cpu").encode(["w1"], cache=False)
    assert not cache.exists()
    TextEncoder(models["bert"], device="cpu", cache=False).encode(["w1"], cache=True)
    assert len(stored(cache)) == 1


def flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda c: c[:-4],
        lambda c: c + b"\0",
        lambda c: c[:20],
        lambda c: b"",
        lambda c: b"\xff" * len(c),
    ],
    ids=["a bit", "the end", "more", "the header", "emptied", "overwritten"],
)
def test_a_damaged_cache_is_noticed_and_mended(
    models: dict[str, Path], cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    encoder, texts = TextEncoder(models["bert"], device="cpu"), sentences(5)
    vectors = encoder.encode(texts)
    (path,) = stored(cache)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="computed again"):
        assert encoder.encode(texts).equal(vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoder.encode(texts).equal(vectors)
    assert len(stored(cache)) == 1
    assert stored(cache) != [path]


def test_a_file_of_someone_else_is_no_cache(models: dict[str, Path], cache: Path) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    vectors = encoder.encode(["w1"])
    (path,) = stored(cache)
    save_file({"other": torch.zeros(3)}, path)
    with pytest.warns(UserWarning, match="computed again"):
        assert encoder.encode(["w1"]).equal(vectors)


def test_an_interrupted_write_leaves_nothing(
    models: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    first = encoder.encode(["w1"])
    before = stored(cache)

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.warns(UserWarning, match=r"could not be kept.*No space left"):
            second = encoder.encode(["w1", "w2"])
    assert stored(cache) == before
    close(second, encoder.encode(["w1", "w2"], cache=False), atol=1e-6, rtol=0)
    assert second[0].equal(first[0])


def test_a_place_that_cannot_be_written_to_is_no_hindrance(models: dict[str, Path], cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert TextEncoder(models["bert"], device="cpu").encode(["w1"]).shape == (1, 16)


def test_many_small_calls_leave_few_files(models: dict[str, Path], cache: Path) -> None:
    encoder, texts = TextEncoder(models["bert"], device="cpu"), [f"w1 w{i}" for i in range(30)]
    vectors = torch.cat([encoder.encode([sentence]) for sentence in texts])
    assert len(stored(cache)) <= 5
    assert TextEncoder(models["bert"], device="cpu").encode(texts).equal(vectors)


def test_files_that_cannot_be_removed_do_not_pile_up(
    models: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another program holds them open: each text is still stored about once in each file."""
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    encoder, texts = TextEncoder(models["bert"], device="cpu"), [f"w1 w{i}" for i in range(12)]
    for sentence in texts:
        encoder.encode([sentence])
    assert max(len(load_file(path)["keys"]) for path in stored(cache) if path.suffix == ".safetensors") <= 12


def test_a_file_that_cannot_be_read_is_no_hindrance(models: dict[str, Path], cache: Path) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    vectors = encoder.encode(["w1"])
    (path,) = stored(cache)
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert encoder.encode(["w1"]).equal(vectors)


# --- the store itself --------------------------------------------------------------------------------------


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes the store has had from the system, read by read."""
    sizes: list[int] = []

    class CountedFile(FileIO):
        def readinto(self, buffer: memoryview) -> int:
            sizes.append(super().readinto(buffer))
            return sizes[-1]

        def readall(self) -> bytes:
            content = super().readall()
            sizes.append(len(content))
            return content

    monkeypatch.setattr(vectors_module, "FileIO", CountedFile)
    return sizes


def forget() -> None:
    """As in a new process, which holds nothing yet."""
    vectors_module._held.clear()


def some(n: int, seed: int = 0) -> tuple[list[bytes], Tensor]:
    """Keys and vectors."""
    keys = [text_key(f"{seed} {i}") for i in range(n)]
    return keys, torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def test_a_call_reads_what_its_own_texts_need(
    models: dict[str, Path], cache: Path, bytes_read: list[int]
) -> None:
    """Not the whole store: at first its head, and then of the vectors those asked for, each with a buffer."""
    buffer, n = vectors_module._BUFFER, 4000
    encoder, texts = TextEncoder(models["bert"], device="cpu"), [f"w1 w{i}" for i in range(n)]
    vectors = encoder.encode(texts)
    (path,) = stored(cache)
    head, whole = n * 40, path.stat().st_size
    assert whole >= head + 64 * n

    forget()
    bytes_read.clear()
    assert encoder.encode(texts[7:8]).equal(vectors[7:8])
    assert head <= sum(bytes_read) <= head + 6 * buffer < whole * 0.6, "a process's first call"
    for chosen in (slice(7, 8), slice(20, 22)):
        bytes_read.clear()
        assert encoder.encode(texts[chosen]).equal(vectors[chosen])
        assert 0 < sum(bytes_read) <= 4 * buffer, "what is known is not read again"
    bytes_read.clear()
    encoder.encode(["w2"])
    assert sum(bytes_read) == 0, "a new text is stored beside the others"
    encoder.encode(["w2", texts[7]])
    assert sum(bytes_read) <= 4 * buffer, "only the new, small file is read"


def test_what_another_process_adds_is_seen(tmp_path: Path) -> None:
    """It takes in the file that this process holds, and removes it."""
    (ours, vectors), (theirs, more) = some(3), some(8, seed=1)
    store = VectorStore(tmp_path)
    store.add(ours, vectors)
    assert store.read(ours)[1].equal(vectors)
    assert not any(store.read(theirs)[0])
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from recsys_lib.text.vectors import VectorStore, text_key\n"
        "keys = [text_key(f'1 {i}') for i in range(8)]\n"
        "vectors = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))\n"
        "VectorStore(Path(sys.argv[1])).add(keys, vectors)"
    )
    before = stored(tmp_path)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(stored(tmp_path)) == 1
    assert stored(tmp_path) != before
    known, read = store.read([*theirs, *ours])
    assert all(known)
    assert read.equal(torch.cat([more, vectors]))


@pytest.mark.parametrize("stamp_kept", [False, True])
def test_damage_to_a_file_that_is_held_is_noticed(tmp_path: Path, stamp_kept: bool) -> None:
    """Each vector is checked at each reading, whether or not the file's time of change shows the damage."""
    keys, vectors = some(20)
    store = VectorStore(tmp_path)
    store.add(keys, vectors)
    assert all(store.read(keys)[0])
    (path,) = stored(tmp_path)
    content, times = bytearray(path.read_bytes()), path.stat()
    content[content.index(vectors[5].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + (0 if stamp_kept else 1_000_000)))
    assert store.read(keys[:5])[1].equal(vectors[:5]), "the others are as they were"
    with pytest.warns(UserWarning, match="is damaged, its vectors are computed again"):
        known, _ = store.read(keys[4:6])
    assert known == [False, False]
    assert not path.exists()


def test_a_file_that_changes_while_it_is_held_is_read_anew(tmp_path: Path) -> None:
    store, other = VectorStore(tmp_path / "store"), VectorStore(tmp_path / "other")
    (keys, vectors), (more_keys, more) = some(20), some(30, seed=1)
    store.add(keys, vectors)
    other.add(more_keys, more)
    assert all(store.read(keys)[0])
    (path,), (another,) = stored(store.folder), stored(other.folder)
    another.replace(path)
    assert store.read(more_keys)[1].equal(more)
    assert not any(store.read(keys)[0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        assert not any(store.read(more_keys[:1])[0])
    assert not path.exists()


def test_a_damaged_file_is_not_taken_into_another(tmp_path: Path) -> None:
    (keys, vectors), (more_keys, more) = some(2), some(2, seed=1)
    store = VectorStore(tmp_path)
    store.add(keys, vectors)
    (path,) = stored(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(vectors[1].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        store.add(more_keys, more)
    known, read = store.read([*more_keys, *keys])
    assert known == [True, True, False, False]
    assert read[:2].equal(more)


def test_no_damage_gives_a_wrong_vector(tmp_path: Path) -> None:
    """One bit anywhere: the vector is the one that was stored, or it is not known and the file is removed."""
    keys, vectors = some(1)
    store = VectorStore(tmp_path)
    store.add(keys, vectors)
    (path,) = stored(tmp_path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (known,), read = store.read(keys)
        assert read.equal(vectors) if known else not path.exists()


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.lists(st.integers(0, 40), unique=True, max_size=12), max_size=12),
    order=st.sampled_from(["little", "big"]),
    most_held=st.sampled_from([0, 200, 1 << 20]),
)
def test_what_is_stored_is_read(calls: list[list[int]], order: str, most_held: int) -> None:
    """Whatever the calls, whatever is held in memory, and where keys start or end in zeros."""
    keys = [number.to_bytes(32, order) for number in range(42)]
    added: set[int] = set()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors_module, "_MOST_HELD", most_held)
        store = VectorStore(Path(folder))
        for call in calls:
            store.add([keys[i] for i in call], torch.tensor([[i, -1.0] for i in call]).view(len(call), 2))
            added.update(call)
            for asked in (range(42), call, [41, 3, 0], []):
                known, vectors = store.read([keys[i] for i in asked])
                assert known == [i in added for i in asked]
                if any(known):
                    expected = torch.tensor([[i, -1.0] if i in added else [0, 0] for i in asked])
                    assert vectors.equal(expected)
                else:
                    assert vectors.shape == (len(asked), 0)


def test_what_a_process_holds_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store used longest ago is read anew, with the same result. What has gone is not held."""
    monkeypatch.setattr(vectors_module, "_MOST_HELD", 100 * 40)
    forget()
    stores = [VectorStore(tmp_path / str(i)) for i in range(4)]
    for i, store in enumerate(stores):
        keys, vectors = some(40, seed=i)
        store.add(keys[:10], vectors[:10])
        assert all(store.read(keys[:10])[0])
        store.add(keys[10:], vectors[10:])
        assert store.read(keys)[1].equal(vectors)
        assert list(vectors_module._held[store.folder]) == stored(store.folder)
    assert list(vectors_module._held) == [tmp_path / "2", tmp_path / "3"]
    assert all(stores[2].read(some(40, seed=2)[0])[0])
    assert all(stores[0].read(some(40, seed=0)[0])[0])
    assert list(vectors_module._held) == [tmp_path / "2", tmp_path / "0"]


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    keys = [os.urandom(32) for _ in range(60)]
    vectors = torch.arange(60.0)[:, None].expand(-1, 4)

    def write(i: int) -> None:
        VectorStore(tmp_path / "store").add(keys[3 * i : 3 * i + 3], vectors[3 * i : 3 * i + 3])

    with ThreadPoolExecutor(8) as pool_of_threads:
        list(pool_of_threads.map(write, range(20)))
    known, read = VectorStore(tmp_path / "store").read(keys)
    assert all(known)
    assert read.equal(vectors)
    assert not list((tmp_path / "store").glob(".*")), "no unfinished files"
