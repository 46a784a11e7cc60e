"""A vision transformer that learns to see by contrast against names.

What it learns to see is decided by what it is compared with: of a batch of pictures and names, each picture
should find its own name, and each name its own picture (Radford et al. 2021, "Learning Transferable Visual
Models From Natural Language Supervision", CLIP).

Shapes: B or N pictures, C channels, S pixels a side, D features of a text's vector.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, dataclass_transform

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.arguments import whole_number
from recsys_lib.devices import isolated_rng, resolve_device, seed_generator
from recsys_lib.files import write_whole
from recsys_lib.losses import in_batch_softmax_loss
from recsys_lib.models.core.options import check_options, declare, learned, option, option_values
from recsys_lib.models.vision import VisionTransformer, pixels
from recsys_lib.training import Validation, batches, train

__all__ = ["ImageTextTower", "NameRecall", "image_text_loss", "moved_and_mirrored", "name_recall"]


def image_text_loss(images: Tensor, texts: Tensor, temperature: float | Tensor) -> Tensor:
    """The symmetric contrast of CLIP: each picture among the batch's names, each name among its pictures.

        s_ij = cos(image_i, text_j) / temperature,   L = (softmax loss over rows + over columns) / 2

    ``losses.nt_xent_loss`` also holds pictures against pictures. Here two kinds of things are compared, and
    each looks for its partner among those of the other kind alone.

    Args:
        images: (B, d) real.
        texts: (B, d) real; row b belongs to picture b.
        temperature: divides the cosines; a number, or a tensor () that is learned.

    Source: Radford et al. 2021, figure 3.
    """
    if images.ndim != 2 or images.shape != texts.shape or not images.numel():
        raise ValueError(f"expected (B, d) twice, got {tuple(images.shape)} and {tuple(texts.shape)}")
    scores = functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).mT  # (B, B)
    scores = scores / temperature  # (B, B)
    return (in_batch_softmax_loss(scores) + in_batch_softmax_loss(scores.mT)) / 2


def moved_and_mirrored(images: Tensor, generator: torch.Generator, by: int = 2) -> Tensor:
    """Pictures moved by up to ``by`` pixels, half of them mirrored, so that training does not learn pixels.

    What moves in from outside is the color of the border. The batch moves together, each is mirrored alone.

    Args:
        images: (B, C, S, S).
        generator: of the chances, on the images' device or the CPU.
        by: pixels.
    """
    size = images.shape[-1]
    down, right = torch.randint(2 * by + 1, (2,), generator=generator, device=generator.device).tolist()
    # Replicated borders are padded as float alone.
    padded = functional.pad(images.float(), [by] * 4, mode="replicate").to(images.dtype)
    moved = padded[..., down : down + size, right : right + size]  # (B, C, S, S)
    coin = torch.rand(len(images), generator=generator, device=generator.device).to(images.device) < 0.5
    return torch.where(coin.view(-1, 1, 1, 1), moved.flip(3), moved)  # (B, C, S, S)


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(option, learned))
class _Declared(nn.Module):
    """A module whose constructor comes from its options; they are checked when it is made."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        declare(cls)
        super().__init_subclass__(**kwargs)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        instance = super().__new__(cls)
        nn.Module.__init__(instance)
        return instance

    def __post_init__(self) -> None:
        check_options(self)


class ImageTextTower(_Declared):
    """A vision transformer that is trained to find a picture's name; its vectors then stand for pictures.

        image = W v(picture),   text = U e(name),   s_ij = cos(image_i, text_j) / temperature

    v is a ``VisionTransformer`` that begins at random, e a frozen encoder of texts, W and U are linear maps.
    The loss is ``image_text_loss``; the temperature is learned along, as its logarithm (Radford et al. 2021,
    section 2.5). ::

        names = TextEncoder().encode(data.items["name"])
        tower = ImageTextTower().fit(data.images[seen], names[seen])
        vectors = tower.encode_images(data.images)  # (N, dim), of length one
        name_recall(vectors[new], tower.encode_texts(names[new]), k=10)
    """

    dim: int = option("features of a vector, of pictures and of names alike", default=64, at_least=1)
    patch_size: int = option("pixels a side of a patch", default=8, at_least=1)
    width: int = option("features of a patch inside the transformer", default=64, at_least=1)
    n_layers: int = option("blocks", default=3, at_least=1)
    n_heads: int = option("attention heads in each block", default=4, at_least=1)
    pooling: str = option("which tokens become the picture's vector", default="mean", choices=("mean", "cls"))
    dropout: float = option("share dropped in training", default=0.1, at_least=0, below=1)
    move: int = option(
        "pixels by which pictures are moved in training; half are mirrored", default=2, at_least=0
    )
    temperature: float = option("of the contrast, at the beginning", default=0.07, above=0)
    learning_rate: float = option("of Adam", default=0.002, above=0)
    batch_size: int = option(
        "pictures in a batch, all others of which are negatives", default=128, at_least=2
    )
    epochs: int = option(
        "passes over the pictures; 0 is a control, which has learned nothing", default=40, at_least=0
    )
    patience: int = option("looks at validation without improvement before it stops", default=3, at_least=1)
    seed: int = option("of everything random", default=0, at_least=0)

    vision: VisionTransformer = learned("the transformer")
    to_image: nn.Linear = learned("W, (dim, width)")
    to_text: nn.Linear = learned("U, (dim, D)")
    log_temperature: nn.Parameter = learned("() float32, the temperature's logarithm")

    def __post_init__(self) -> None:
        """Checks the options; nothing is learned yet."""
        super().__post_init__()
        self.log: list[dict[str, float]] = []
        self.fit_seconds = math.nan

    def _build(self, image_size: int, text_dim: int) -> None:
        self.vision = VisionTransformer(
            image_size,
            self.patch_size,
            self.width,
            self.n_layers,
            self.n_heads,
            pooling=self.pooling,
            dropout=self.dropout,
        )
        self.to_image, self.to_text = nn.Linear(self.width, self.dim), nn.Linear(text_dim, self.dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))

    def fit(
        self,
        images: Tensor,
        texts: Tensor,
        validation: tuple[Tensor, Tensor] | None = None,
        *,
        device: str | torch.device = "auto",
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> Self:
        """Learns from pictures and the vectors of their names.

        Args:
            images: (N, 3, S, S) uint8.
            texts: (N, D) float, row n of picture n, as a ``TextEncoder`` makes them.
            validation: other pictures and texts; with them training stops when the mean reciprocal rank of
                the right name no longer grows, and the best state is kept.
            device: "auto", "cpu", "cuda", "mps" or a ``torch.device``.
            max_seconds: when to stop; None sets no limit.
            progress: show a bar.

        Returns:
            Itself.

        Raises:
            ValueError: images and texts that do not fit each other or the options, or fewer than two.
            FloatingPointError: training diverged.
        """
        check_options(self)  # an attribute may have been set since
        started = time.perf_counter()
        for pictures, names in ((images, texts), *([] if validation is None else [validation])):
            pixels(pictures[:1])
            if names.ndim != 2 or len(names) != len(pictures) or len(names) < 2:
                raise ValueError(
                    f"needs two pictures or more and a text's vector for each; got {len(pictures)} and "
                    f"{tuple(names.shape)}"
                )
        if validation is not None and (
            validation[0].shape[1:] != images.shape[1:] or validation[1].shape[1] != texts.shape[1]
        ):
            raise ValueError("the validation pictures and texts must be of the sizes of the others")
        place = resolve_device(device)
        images, texts = images.to(place), texts.to(place, torch.float32)
        with isolated_rng(self.seed, place):
            self._build(images.shape[-1], texts.shape[1])
            self.to(place)
            generator = seed_generator(self.seed)

            def losses() -> Iterator[tuple[Tensor, int]]:
                self.train()
                for batch in batches(len(images), self.batch_size, generator):  # (b,)
                    batch = batch.to(place)
                    if len(batch) > 1:  # one alone has nothing to be held against
                        seen = moved_and_mirrored(images[batch], generator, self.move)  # (b, 3, S, S)
                        ours, theirs = self._see(seen), self.to_text(texts[batch])  # (b, dim), (b, dim)
                        yield image_text_loss(ours, theirs, self.log_temperature.exp()), len(batch)

            looked = None
            if validation is not None:
                held = (validation[0].to(place), validation[1].to(place, torch.float32))
                looked = Validation("mrr", lambda: self._reciprocal_rank(*held), 5, self.patience)
            self.log = []
            if self.epochs:
                self.log = train(
                    self,
                    losses,
                    epochs=self.epochs,
                    learning_rate=self.learning_rate,
                    validation=looked,
                    max_seconds=max_seconds,
                    name=type(self).__name__,
                    progress=progress,
                ).log
        self.fit_seconds = time.perf_counter() - started
        return self.eval()

    def _see(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, dim), of any length."""
        return self.to_image(self.vision(pixels(images)))  # (B, dim)

    def _reciprocal_rank(self, images: Tensor, texts: Tensor) -> float:
        ranks = _ranks(self.encode_images(images), self.encode_texts(texts))  # (N,)
        return float((1 / ranks.double()).mean())

    @torch.no_grad()
    def encode_images(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """Pictures (N, 3, S, S) uint8 to vectors of length one: (N, dim) float32, on the model's device."""
        self._check_fitted()
        self.eval()
        parts = [self._see(part.to(self.log_temperature.device)) for part in images.split(batch_size)]
        vectors = torch.cat(parts) if parts else self.log_temperature.new_zeros(0, self.dim)  # (N, dim)
        return functional.normalize(vectors, dim=1)

    @torch.no_grad()
    def encode_texts(self, texts: Tensor) -> Tensor:
        """Vectors of texts (N, D), of the encoder it was trained with, to (N, dim), length one."""
        self._check_fitted()
        self.eval()
        return functional.normalize(self.to_text(texts.to(self.log_temperature)), dim=1)  # (N, dim)

    def _check_fitted(self) -> None:
        if not hasattr(self, "log_temperature"):
            raise RuntimeError("ImageTextTower is not fitted; call fit(images, texts) first")

    @property
    def config(self) -> dict[str, Any]:
        """The options by name, defaults included."""
        return option_values(self)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``model.safetensors`` and, last, ``config.json``, each whole or not at all."""
        self._check_fitted()
        place = Path(folder).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        sizes = {"image_size": self.vision.image_size, "text_dim": self.to_text.in_features}
        config = {"model_class": type(self).__name__, **sizes, "options": self.config}
        (place / "config.json").unlink(missing_ok=True)  # of an older model, whose weights go first
        with write_whole(place / "model.safetensors") as part:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
            save_file(state, part, metadata={"format": "pt"})
        with write_whole(place / "config.json") as part:
            part.write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf8")

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], map_location: str | torch.device = "cpu"
    ) -> "ImageTextTower":
        """Loads what ``save_pretrained`` wrote.

        Raises:
            FileNotFoundError: the folder holds no such model.
            ValueError: its files are damaged or of another class.
        """
        place = Path(folder).expanduser()
        try:
            config = json.loads((place / "config.json").read_text(encoding="utf8"))
            if config["model_class"] != cls.__name__:
                raise ValueError(f"{place} holds a {config['model_class']}, not a {cls.__name__}")
            model = cls(**config["options"])
            with isolated_rng(0):
                model._build(config["image_size"], config["text_dim"])
            model.load_state_dict(load_file(place / "model.safetensors"))
        except (KeyError, TypeError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{place} is damaged or of another version ({error}); save it again") from error
        return model.to(resolve_device(map_location)).eval()


class NameRecall(NamedTuple):
    """How often a picture finds its own name among all: see ``name_recall``."""

    value: float
    """Share of the pictures whose name is among their first k."""
    low: float
    """The lower end of its 95 % interval."""
    high: float
    """The upper end."""
    chance: float
    """What an order at random gives."""
    ranks: Tensor
    """(N,) int64, the place of each picture's own name, 1 for the first."""


def name_recall(images: Tensor, texts: Tensor, k: int = 10) -> NameRecall:
    """How many pictures find their own name among the first k of all names given.

    Names of equal score stand in the worst order, so that a constant model finds nothing. The interval is
    Wilson's, for a share of independent tries (Wilson 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference").

    Args:
        images: (N, d) vectors of pictures.
        texts: (N, d) vectors of names, row n of picture n.
        k: how many are looked at.

    Raises:
        ValueError: not two tables of one shape, or another k than 1 to N.
    """
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise ValueError(f"expected (N, d) twice, got {tuple(images.shape)} and {tuple(texts.shape)}")
    n, k = len(images), whole_number(k, "k", at_least=1)
    if k > n:
        raise ValueError(f"k must be at most {n}, the number of names; got {k}")
    ranks = _ranks(images, texts)  # (N,)
    share, z = float((ranks <= k).double().mean()), 1.959964
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return NameRecall(share, max(0.0, middle - half), min(1.0, middle + half), k / n, ranks)


def _ranks(images: Tensor, texts: Tensor) -> Tensor:
    """(N, d) twice to the place of each picture's own name: (N,), the worst among equals."""
    scores = images @ texts.to(images).mT  # (N, N)
    return (scores >= scores.diagonal()[:, None]).sum(dim=1)
