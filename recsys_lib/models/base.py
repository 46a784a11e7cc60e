"""What every model is: fit, score, recommend, save, load.

A model implements ``_fit`` and ``_score``; this module does the rest once for all of them: checks, timing,
random state, devices, the list of recommendations, the files.
"""

import inspect
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.devices import isolated_rng, resolve_device
from recsys_lib.files import write_whole
from recsys_lib.metrics import ndcg, rank_topk

__all__ = ["HistoryReader", "NotFittedError", "Recommender", "check_histories", "check_pairs", "ragged"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

# Keys of config.json beside the hyper-parameters.
_RESERVED = ("model_class", "n_users", "n_items", "fit_seconds")

_CARD = """---
{{ card_data }}
---

# A recommender saved by recsys_lib

`config.json` holds the class and its hyper-parameters, `model.safetensors` everything that it learned.
Load it with `from_pretrained` of the class that `config.json` names under `model_class`.
"""


class NotFittedError(RuntimeError):
    """The model has to be fitted first."""


class Recommender(
    nn.Module,
    ModelHubMixin,
    ABC,
    library_name="recsys_lib",
    tags=["recommendation"],
    model_card_template=_CARD,
):
    """Base class of all models.

    A subclass takes JSON-able hyper-parameters in ``__init__`` and implements

    - ``_fit(interactions, validation, progress)``: learn; keep what was learned as parameters or buffers;
    - ``_score(users)``: (B,) valid indices on the model's device -> (B, n_items), no gradient recorded;
    - ``build()``, only where parameters or submodules are made: makes them for ``self.n_users`` and
      ``self.n_items``. ``from_pretrained`` calls it before it fills in the stored values. Buffers that
      ``_fit`` registers need no ``build``: they come back with their stored shapes.

    Arguments that are data rather than hyper-parameters (``TfidfContent(texts)``) are named in
    ``state_arguments``: they stay out of ``config.json``, and must have a default with which the stored
    state is complete.

    The caller's own user and item identifiers are not stored: indices mean what they meant in the
    ``Interactions`` of ``fit``. Keep ``user_ids`` and ``item_ids`` beside the model.

    Random numbers: ``_fit`` runs with the global random state seeded by the hyper-parameter ``seed`` and
    put back afterwards, so that any layer, seeded or not, gives the same numbers for the same seed.
    """

    state_arguments: ClassVar[tuple[str, ...]] = ()

    fit_seconds: float
    _n_users: int | None
    _n_items: int | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the hyper-parameters, so that no subclass has to."""
        instance = super().__new__(cls, *args, **kwargs)
        # The hub's mixin silently drops what JSON cannot hold; a model loaded with other hyper-parameters
        # than it was trained with is worse than an error.
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(None, *args, **kwargs)
        bound.apply_defaults()
        config = {k: v for k, v in list(bound.arguments.items())[1:] if k not in cls.state_arguments}
        for name, value in config.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{cls.__name__}({name}={value!r}): a hyper-parameter must be a plain number, text, list "
                    f"or None, so that it can be saved"
                ) from error
        instance._hub_mixin_config = config
        return instance

    def __init__(self) -> None:
        super().__init__()
        self._n_users = self._n_items = None
        self.fit_seconds = float("nan")

    # What a model is asked.

    @property
    def config(self) -> dict[str, Any]:
        """The hyper-parameters as they were given, defaults included (a copy)."""
        # The mixin allows dataclasses as well; ``__new__`` made it a dictionary.
        return dict(self._hub_mixin_config) if isinstance(self._hub_mixin_config, dict) else {}

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` or ``from_pretrained`` has run."""
        return self._n_items is not None

    @property
    def n_users(self) -> int:
        """Users that the model knows, as counted by the interactions of ``fit``."""
        self._check_fitted()
        assert self._n_users is not None
        return self._n_users

    @property
    def n_items(self) -> int:
        """Size of the catalog."""
        self._check_fitted()
        assert self._n_items is not None
        return self._n_items

    @property
    def device(self) -> torch.device:
        """Where the model's tensors live; the CPU before ``fit``."""
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                return tensor.device
        return torch.device("cpu")

    def fit(
        self, interactions: Interactions, validation: Interactions | None = None, *, progress: bool = False
    ) -> Self:
        """Learns from interactions; a second call starts over.

        Args:
            interactions: training events. Models of implicit feedback take every event as a positive: pass
                ``interactions.positives(4.0)`` where ratings say otherwise.
            validation: events of the same users and items. Models that train in epochs stop early by the
                NDCG@10 on them; others ignore them.
            progress: show a bar on long work.

        Returns:
            The model itself.

        Raises:
            TypeError: not ``Interactions``.
            ValueError: no events, or a validation set over other users or items.
        """
        name = type(self).__name__
        for given in (interactions, *([] if validation is None else [validation])):
            self._check_type(given, "fit")
        if not len(interactions):
            raise ValueError(f"{name}.fit needs at least one event, got none")
        sizes = (interactions.n_users, interactions.n_items)
        if validation is not None and (validation.n_users, validation.n_items) != sizes:
            raise ValueError(
                f"{name}.fit: training events count {sizes} users and items, validation events "
                f"{(validation.n_users, validation.n_items)}; both must come from one split"
            )
        device = self._training_device(interactions)
        start = time.perf_counter()
        self._n_users, self._n_items = sizes
        with isolated_rng(int(self.config.get("seed") or 0), device):
            try:
                self.train()
                self._fit(interactions, validation, progress)
            except BaseException:
                self._n_users = self._n_items = None  # half a fit must not answer
                raise
        self.eval()
        self.fit_seconds = time.perf_counter() - start
        return self

    @torch.no_grad()
    def score(self, users: Tensor) -> Tensor:
        """Scores every item for each user; higher is better, and only the order within a row means something.

        Args:
            users: (B,) integer indices, on any device.

        Returns:
            (B, n_items) float32 on the users' device, detached from any graph.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: not an integer tensor.
            ValueError: not one-dimensional.
            IndexError: a user that the model does not know.
        """
        users = self._check_users(users)
        if not len(users):
            return torch.zeros(0, self.n_items, device=users.device)
        return self._score(users.to(self.device)).to(device=users.device, dtype=torch.float32)

    def recommend(
        self, users: Tensor, k: int = 10, exclude: Interactions | None = None
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` best items for each user, best first.

        Args:
            users: (B,) integer indices.
            k: length of the list, at most ``n_items``.
            exclude: events whose items are left out of their user's list, as a rule what the user has seen.

        Returns:
            Items (B, k) int64 and their scores (B, k) float32, on the users' device. Where a user has
            fewer than ``k`` items left, the rest of the row is item -1 with score -inf.

        Raises:
            ValueError: ``k`` below 1 or above ``n_items``, or ``exclude`` over other users or items.
        """
        scores = self.score(users)  # (B, n_items)
        if not 1 <= k <= self.n_items:
            raise ValueError(f"k must lie between 1 and the catalog's {self.n_items} items, got {k}")
        users = users.long()
        if exclude is not None:
            if (exclude.n_users, exclude.n_items) != (self.n_users, self.n_items):
                raise ValueError(
                    f"exclude counts {exclude.n_users} users and {exclude.n_items} items, the model "
                    f"{self.n_users} and {self.n_items}; both must come from one data set"
                )
            crow, columns = (x.to(users.device) for x in exclude.csr())
            place, row = ragged(crow, users)
            scores[row, columns[place]] = -torch.inf
        items, values = rank_topk(scores, k, users=users)
        return items.masked_fill(values == -torch.inf, -1), values

    # What a subclass implements.

    @abstractmethod
    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        """Learns; see the class."""

    @abstractmethod
    def _score(self, users: Tensor) -> Tensor:
        """(B,) checked indices on the model's device -> (B, n_items)."""

    def build(self) -> None:
        """Makes parameters and submodules for ``n_users`` and ``n_items``; nothing by default."""

    # Help for subclasses.

    def _training_device(self, interactions: Interactions) -> torch.device:
        """The hyper-parameter ``device`` where there is one, else where the interactions live."""
        wanted = self.config.get("device")
        return interactions.items.device if wanted is None else resolve_device(wanted)

    def _check_type(self, interactions: object, method: str) -> None:
        if not isinstance(interactions, Interactions):
            raise TypeError(
                f"{type(self).__name__}.{method} takes Interactions, got {type(interactions).__name__}; "
                f"make them with Interactions.from_frame(frame)"
            )

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Registers or replaces a buffer: it is saved, loaded and moved with the model."""
        self.register_buffer(name, tensor.detach().contiguous())

    def validation_ndcg(self, validation: Interactions, seen: Interactions, k: int = 10) -> float:
        """Mean NDCG@k over the users of ``validation``, with ``seen`` items left out; for early stopping.

        The same quantity as the evaluation's, without its extras.
        """
        crow, relevant_items = validation.csr()
        users = crow.diff().nonzero().squeeze(1)  # (U,)
        if not len(users):
            raise ValueError("the validation set has no events")
        was_training = self.training
        self.eval()
        values = []
        for chunk in users.split(1024):
            items, _ = self.recommend(chunk, min(k, self.n_items), exclude=seen)  # (b, k)
            relevant = torch.zeros(len(chunk), self.n_items + 1, dtype=torch.bool, device=chunk.device)
            place, row = ragged(crow, chunk)
            relevant[row, relevant_items[place]] = True
            seen_crow, seen_items = (x.to(chunk.device) for x in seen.csr())
            place, row = ragged(seen_crow, chunk)
            relevant[row, seen_items[place]] = False
            n_relevant = relevant.sum(dim=1)  # (b,)
            hits = relevant.gather(
                1, items.where(items >= 0, self.n_items)
            )  # (b, k); the last column is no item
            values.append(ndcg(hits, n_relevant)[n_relevant > 0])
        self.train(was_training)
        per_user = torch.cat(values)
        if not len(per_user):
            raise ValueError("nothing is held out: every validation item is among its user's training events")
        return float(per_user.mean())

    # Checks.

    def _check_fitted(self) -> None:
        if not self.fitted:
            name = type(self).__name__
            raise NotFittedError(
                f"this {name} is not fitted; call fit(interactions) or {name}.from_pretrained(...)"
            )

    def _check_users(self, users: Tensor) -> Tensor:
        self._check_fitted()
        return _check_indices(users, self.n_users, "user")

    # Files.

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes both files; called by ``save_pretrained``, which has removed an older ``config.json``.

        Each file appears whole or not at all, and ``config.json`` comes last: where it exists, the weights
        beside it are complete and belong to it.
        """
        self._check_fitted()
        state = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()
        }
        model_class = type(self).__name__
        config = {
            **self.config,
            "model_class": model_class,
            "n_users": self.n_users,
            "n_items": self.n_items,
            "fit_seconds": round(self.fit_seconds, 3),
        }
        metadata = {"format": "pt", "model_class": model_class}
        with write_whole(save_directory / WEIGHTS_FILE) as part:
            save_file(state, part, metadata=metadata)
        text = json.dumps(config, sort_keys=True, indent=2) + "\n"
        with write_whole(save_directory / CONFIG_FILE) as part:
            part.write_text(text, encoding="utf8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a model from a folder that ``save_pretrained`` wrote, or from the hub by name.

        Args:
            pretrained_model_name_or_path: the folder, or ``"owner/name"`` on the hub.
            **kwargs: ``map_location`` (a device, the CPU by default), the hub's own ``revision``,
                ``cache_dir``, ``token``, ``force_download``, ``local_files_only``, and hyper-parameters
                that replace stored ones.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: the files belong to another class, are damaged, or name hyper-parameters this class
                does not take.
        """
        place = Path(pretrained_model_name_or_path)
        looks_local = isinstance(pretrained_model_name_or_path, Path) or place.is_absolute() or place.exists()
        if looks_local:
            if not place.is_dir():
                raise FileNotFoundError(f"{place} is not a folder; save_pretrained makes one")
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                if not (place / file).is_file():
                    raise FileNotFoundError(
                        f"{place} has no {file}: it is no saved model, or saving was interrupted"
                    )
            try:
                json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(
                    f"{place / CONFIG_FILE} is damaged ({error}); save the model again"
                ) from error
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        map_location: str | torch.device = "cpu",
        **hyper_parameters: Any,
    ) -> Self:
        """Makes the model from its configuration and fills in the stored state."""
        if config is None:
            raise FileNotFoundError(f"{model_id} has no {CONFIG_FILE}: it is no model saved by recsys_lib")
        stored_class = config.get("model_class")
        if stored_class != cls.__name__:
            raise ValueError(
                f"{model_id} holds a {stored_class}, not a {cls.__name__}; use {stored_class}.from_pretrained"
            )
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        unknown = sorted(set(config) - known - set(_RESERVED))
        if unknown:
            raise ValueError(
                f"{model_id}: {CONFIG_FILE} names {', '.join(unknown)}, which {cls.__name__} does not take; "
                f"it was saved by another version of the library, or edited"
            )
        for name in ("n_users", "n_items"):
            if not isinstance(config.get(name), int) or config[name] < 1:
                raise ValueError(f"{model_id}: {CONFIG_FILE} must give {name} as a number above zero")

        path = Path(model_id) / WEIGHTS_FILE
        if not path.is_file():
            path = Path(
                hf_hub_download(
                    repo_id=model_id,
                    filename=WEIGHTS_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )
        device = resolve_device(map_location)
        try:
            state = load_file(path, device=str(device))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); save the model again") from error

        model = cls(**hyper_parameters)
        model._n_users, model._n_items = config["n_users"], config["n_items"]
        model.fit_seconds = float(config.get("fit_seconds", "nan"))
        with isolated_rng(0):
            model.build()
        model.to(device)
        model._restore(state, str(path))
        return model.eval()

    def _restore(self, state: dict[str, Tensor], source: str) -> None:
        """Fills parameters and buffers; buffers that only ``fit`` makes are registered."""
        missing = sorted(set(self.state_dict()) - set(state))
        if missing:
            raise ValueError(
                f"{source} lacks {', '.join(missing)}; it was saved by another version of the library"
            )
        present = self.state_dict()
        extra = {}
        for name, tensor in state.items():
            if name in present:
                if present[name].shape != tensor.shape:
                    raise ValueError(
                        f"{source}: {name} has shape {tuple(tensor.shape)}, but these hyper-parameters make "
                        f"it {tuple(present[name].shape)}"
                    )
                extra[name] = tensor
                continue
            path, _, leaf = name.rpartition(".")
            try:
                module = self.get_submodule(path)
            except AttributeError as error:
                raise ValueError(
                    f"{source} holds {name}, which {type(self).__name__} has no place for"
                ) from error
            module.register_buffer(leaf, tensor)
        self.load_state_dict(extra, strict=False)


class HistoryReader(Recommender):
    """A model to which a user is a history: it keeps one for each user of ``fit``, and reads any other.

    A subclass implements ``_keep_histories``, which it also calls in ``_fit``, and ``score_histories``.
    """

    @abstractmethod
    def _keep_histories(self, interactions: Interactions) -> object:
        """Stores what ``score`` reads of every user."""

    @abstractmethod
    def score_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """Scores every item for users given by their histories: (B, n_items)."""

    @torch.no_grad()
    def update_histories(self, interactions: Interactions) -> Self:
        """Replaces the histories that ``score`` reads. What was learned stays as it is.

        For the time between two fits: new events count at once, at the cost of no training.

        Args:
            interactions: all events of all users, by the user and item indices of ``fit``. Users without
                events get an empty history.

        Returns:
            The model itself.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: not ``Interactions``.
            ValueError: they count other users or items than the model.
        """
        self._check_fitted()
        self._check_type(interactions, "update_histories")
        known, given = (self.n_users, self.n_items), (interactions.n_users, interactions.n_items)
        if given != known:
            raise ValueError(
                f"{type(self).__name__}.update_histories: the model was fitted on {known} users and items, "
                f"the events count {given}; make them with the same user_ids and item_ids"
            )
        self._keep_histories(interactions.to(self.device))
        return self


def ragged(crow: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where the entries of some rows of a CSR matrix stand.

    Args:
        crow: (n + 1,) int64, where each row begins.
        rows: (B,) int64, the rows wanted, in any order.

    Returns:
        place (E,), indices into the CSR's columns and values, row after row; row (E,), which of the B each
        belongs to.
    """
    start = crow[rows]  # (B,)
    length = crow[rows + 1] - start  # (B,)
    row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), length)  # (E,)
    within = torch.arange(len(row), device=rows.device) - (length.cumsum(0) - length)[row]  # (E,)
    return start[row] + within, row


def check_histories(
    histories: Sequence[Tensor | Sequence[int]], n_items: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Checks histories given as item indices and joins them.

    Args:
        histories: B lists or tensors, each (L_b,) integer item indices, oldest first; empty ones are allowed.
        n_items: size of the catalog.
        device: where the result lives if all histories are lists; else it is on the first tensor's.

    Returns:
        items (E,) int64, all histories one after another; lengths (B,) int64.

    Raises:
        TypeError: not a list of lists or tensors of integers.
        ValueError: no history at all, or one that is not one-dimensional.
        IndexError: an item that the model does not know.
    """
    if not isinstance(histories, Sequence):
        raise TypeError(
            f"histories must be a list with one history a user, itself a list or tensor of item indices; "
            f"got {type(histories).__name__}"
        )
    if not histories:
        raise ValueError("histories is empty; give at least one, which may itself be empty")
    device = next((history.device for history in histories if isinstance(history, Tensor)), device)
    checked = []
    for history in histories:
        try:
            indices = torch.as_tensor(history, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"each history must be a list or tensor of item indices ({error})") from error
        # torch.tensor([]) is float, and an empty history has nothing to misread.
        empty = indices.ndim == 1 and not len(indices)
        checked.append(indices.long() if empty else _check_indices(indices, n_items, "item"))
    lengths = torch.tensor([len(history) for history in checked], device=device)  # (B,)
    return torch.cat(checked), lengths


def check_pairs(model: Recommender, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Checks (B,) users and (B,) items that belong together; returns both as int64 on the users' device."""
    users = model._check_users(users)
    items = _check_indices(items, model.n_items, "item")
    if users.shape != items.shape:
        raise ValueError(f"users and items must have one length, got {len(users)} and {len(items)}")
    return users, items.to(users.device)


def _check_indices(indices: Tensor, n: int, what: str) -> Tensor:
    """Checks a (B,) tensor of user or item indices and returns it as int64."""
    if not isinstance(indices, Tensor):
        raise TypeError(
            f"{what}s must be a tensor of {what} indices, got {type(indices).__name__}; "
            f"wrap it in torch.tensor"
        )
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{what}s must be integer indices, got {indices.dtype}")
    if indices.ndim != 1:
        raise ValueError(f"{what}s must be one-dimensional, got shape {tuple(indices.shape)}")
    indices = indices.long()
    # A meta tensor has no values to check.
    if len(indices) and not indices.is_meta:
        wrong = (indices < 0) | (indices >= n)  # (B,)
        if bool(wrong.any()):
            raise IndexError(
                f"{what} {int(indices[wrong][0])} is unknown: "
                f"the model was fitted on {n} {what}s, 0 to {n - 1}"
            )
    return indices
