"""Recommenders made of recommenders: fitting the parts, asking them, saving all in one folder."""

import shutil
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.loading import load
from recsys_lib.models.core.saving import CONFIG_FILE

__all__ = ["MadeOfParts", "changed_options", "reads_histories"]


def reads_histories(part: Any) -> bool:
    """Whether a part serves people whom it knows by their history alone."""
    can = hasattr(part, "score_histories") or hasattr(part, "rank_histories")
    return can and bool(getattr(part, "reads_histories", True))


@contextmanager
def changed_options(models: Sequence[Any], kind: type, changes: Mapping[str, Any]) -> Iterator[None]:
    """Gives options of models, and of their parts at any depth, other values for a while.

    Args:
        models: the models.
        kind: of which class those are that are changed.
        changes: by the name of the option its value, or a function that gives it for the part.
    """
    before = [(part, name, getattr(part, name)) for part in _of_kind(models, kind) for name in changes]
    try:
        for part, name, _ in before:
            value = changes[name]
            setattr(part, name, value(part) if callable(value) else value)
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


def _of_kind(models: Sequence[Any], kind: type) -> list[Any]:
    modules = [part for model in models if isinstance(model, nn.Module) for part in model.modules()]
    return [part for part in modules if isinstance(part, kind)]


class MadeOfParts(HistoryReader):
    """A recommender made of others, which it fits, asks and saves.

    **Saved** as one folder, with the parts in folders of their own, each of which ``recsys_lib.load`` loads.

    A subclass gives its parts by their folder's name (``parts``), and makes arguments of its constructor from
    loaded ones (``parts_from``).

    Attributes:
        part_fields: the attributes that hold parts.
        part_folders: what the folders of parts are called, as a pattern.
        other_files: names of files that it writes beside those of any model.
    """

    part_fields: ClassVar[tuple[str, ...]]
    part_folders: ClassVar[tuple[str, ...]]
    other_files: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the parts from the hub's mixin, which would take them apart as settings."""
        return super().__new__(cls)

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """The parts by the name of their folder."""

    @classmethod
    @abstractmethod
    def parts_from(cls, loaded: dict[str, Recommender]) -> dict[str, Any]:
        """Arguments of the constructor from the parts that were loaded, by the name of their folder.

        Raises:
            LookupError: one is missing; the error names its folder.
        """

    @property
    def reads_histories(self) -> bool:
        """Whether it serves people by their histories: whether all its parts do."""
        return all(reads_histories(part) for part in self.parts().values())

    def _no_histories(self) -> str:
        """Says which part keeps it from reading histories."""
        role, part = next((r, part) for r, part in self.parts().items() if not reads_histories(part))
        return (
            f"the {role} of this {type(self).__name__}, {type(part).__name__}, knows users by number and "
            f"reads no histories; ask for users of the fit, or take another {role}"
        )

    def _fit_parts(
        self, interactions: Interactions, validation: Interactions | None, progress: bool, start: float
    ) -> None:
        """Fits the parts one after the other; ``max_seconds`` counts from ``start``."""
        for part in self.parts().values():
            if not hasattr(part, "fit"):
                continue  # made by its owner, ready for use
            left = None
            if self.max_seconds is not None:  # at least a moment, so that there is something to keep
                left = max(self.max_seconds - (time.perf_counter() - start), 0.01)
            options = {"device": interactions.items.device, "max_seconds": left, "progress": progress}
            part.fit(interactions, validation, **options)

    def _update_parts(self, interactions: Interactions) -> None:
        """Hands new histories to all parts, or to none."""
        if not self.reads_histories:
            raise ValueError(self._no_histories())
        for part in self.parts().values():
            if not hasattr(part, "update_histories"):
                raise ValueError(
                    f"{type(part).__name__} has no update_histories, and would go on with old ones"
                )
        for part in self.parts().values():
            part.update_histories(interactions)

    # On the disk.

    def _state_to_save(self) -> dict[str, Tensor]:
        state = super()._state_to_save()
        return {name: x for name, x in state.items() if name.partition(".")[0] not in self.part_fields}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Saves the model with all its parts in one folder.

        Everything is written beside the folder first. If that fails, what was there stays as it was; other
        files in the folder stay in any case.

        Args:
            save_directory: the folder; made if missing.
            **options: of the hub's ``save_pretrained``.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: a part that cannot be saved.
            OSError: what the file system refused.
        """
        self._check_fitted()
        target = Path(save_directory).expanduser().resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            whole = Path(folder) / target.name
            answer = super().save_pretrained(whole, **options)
            self._move_into(whole, target)
        return answer

    def _save_pretrained(self, save_directory: Path) -> None:
        for name, part in self.parts().items():
            if not isinstance(part, Recommender):
                raise TypeError(
                    f"the {name}, {type(part).__name__}, is no Recommender and cannot be saved with the "
                    f"{type(self).__name__}"
                )
            part.save_pretrained(save_directory / name)
        super()._save_pretrained(save_directory)

    def _move_into(self, whole: Path, target: Path) -> None:
        """Puts a complete folder in place; the configuration, without which nothing is loaded, comes last."""
        if not target.exists():
            whole.replace(target)
            return
        (target / CONFIG_FILE).unlink(missing_ok=True)
        for name in self._folders_in(target):
            shutil.rmtree(target / name)
        for name in self.other_files:
            (target / name).unlink(missing_ok=True)
        for path in sorted(whole.iterdir(), key=lambda path: path.name == CONFIG_FILE):
            path.replace(target / path.name)

    @classmethod
    def _folders_in(cls, folder: Path) -> list[str]:
        """The folders of parts that a folder has."""
        return [path.name for kind in cls.part_folders for path in sorted(folder.glob(kind)) if path.is_dir()]

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"a {cls.__name__} is loaded from a folder; fetch {model_id} first, with "
                f"huggingface_hub.snapshot_download"
            )
        place = options.get("map_location", "cpu")
        loaded = {name: load(folder / name, map_location=place) for name in cls._folders_in(folder)}
        try:
            parts = cls.parts_from(loaded)
        except LookupError as error:
            name = error.args[0]
            raise FileNotFoundError(f"{folder} has no folder {name}: it is damaged; save it again") from error
        model = super()._from_pretrained(model_id=model_id, config=config, **options, **parts)
        for name, part in loaded.items():
            sizes = (part._n_users, part._n_items)
            if sizes != (model._n_users, model._n_items):
                raise ValueError(
                    f"{folder / name} holds a model of another {cls.__name__.lower()}, of {sizes}"
                )
        return model
