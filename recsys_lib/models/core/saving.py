"""Saving and loading as the Hugging Face hub does: ``config.json``, ``model.safetensors``, and the ids."""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pandas as pd
import pyarrow as pa
import torch
from huggingface_hub import ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys_lib.devices import isolated_rng, resolve_device
from recsys_lib.files import write_whole
from recsys_lib.models.core.options import option_values, options_of

__all__ = ["CONFIG_FILE", "IDS_FILES", "WEIGHTS_FILE", "Saved", "find_config", "read_config"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
IDS_FILES = {"user_ids": "user_ids.parquet", "item_ids": "item_ids.parquet"}

_HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

# Keys of config.json beside the options.
_RESERVED = ("model_class", "n_users", "n_items", "fit_seconds")

_CARD = """---
{{ card_data }}
---

# A recommender saved by recsys_lib

`config.json` holds the class and its options, `model.safetensors` everything that it learned, the Parquet
files the ids of its users and items. `recsys_lib.load(...)` loads it.
"""


class Saved(
    nn.Module,
    ModelHubMixin,
    library_name="recsys_lib",
    tags=["recommendation"],
    model_card_template=_CARD,
):
    """A module whose options and learned state go to two files, and come back from them.

    The options come from its fields (``options.declare``), the state from its parameters and buffers.
    """

    fit_seconds: float
    user_ids: pd.Index | None
    item_ids: pd.Index | None
    max_seconds: float | None
    _n_users: int | None
    _n_items: int | None
    _fewest = 1  # users and items

    @property
    def config(self) -> dict[str, Any]:
        """The options by name, defaults included."""
        return option_values(self)

    def build(self) -> None:
        """Makes parameters and submodules for ``n_users`` and ``n_items``; nothing by default.

        ``fit`` calls it before it learns, ``from_pretrained`` before it fills in the stored values. Buffers
        that only ``fit`` makes need no ``build``: they come back with their stored shapes.
        """

    def _state_to_save(self) -> dict[str, Tensor]:
        """What goes into the file of weights; parts that are saved by themselves do not."""
        return self.state_dict()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes the files; called by ``save_pretrained``, which has removed an older ``config.json``.

        Each file appears whole or not at all, and ``config.json`` comes last: where it exists, the weights
        beside it are complete and belong to it.
        """
        state = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in self._state_to_save().items()
        }
        model_class = type(self).__name__
        config = {
            **self.config,
            "model_class": model_class,
            "n_users": self._n_users,
            "n_items": self._n_items,
            "fit_seconds": round(self.fit_seconds, 3),
        }
        metadata = {"format": "pt", "model_class": model_class}
        with write_whole(save_directory / WEIGHTS_FILE) as part:
            save_file(state, part, metadata=metadata)
        for name, file in IDS_FILES.items():
            (save_directory / file).unlink(missing_ok=True)  # of an older model
            if getattr(self, name) is not None:
                _write_ids(getattr(self, name), name, save_directory / file)
        text = json.dumps(config, sort_keys=True, indent=2) + "\n"
        with write_whole(save_directory / CONFIG_FILE) as part:
            part.write_text(text, encoding="utf8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a model from a folder that ``save_pretrained`` wrote, or from the hub by name.

        Args:
            pretrained_model_name_or_path: the folder, or ``"owner/name"`` on the hub.
            **kwargs: ``map_location`` (a device, the CPU by default), the hub's own ``revision``,
                ``cache_dir``, ``token``, ``force_download``, ``local_files_only``, and options that replace
                stored ones.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: the files belong to another class, are damaged, or name options this class does not
                take.
        """
        place = Path(pretrained_model_name_or_path).expanduser()
        if not place.is_dir():
            kwargs["local_files_only"] = kwargs.get("local_files_only") or not _hub_answers()
        read_config(find_config(pretrained_model_name_or_path, **kwargs))
        if not place.is_dir():
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if not (place / WEIGHTS_FILE).is_file():
            raise FileNotFoundError(
                f"{place} has no {WEIGHTS_FILE}: it is no saved model, or saving was interrupted"
            )
        return super().from_pretrained(place, **kwargs)

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
        **options: Any,
    ) -> Self:
        """Makes the model from its configuration and fills in the stored state."""
        if config is None:
            raise FileNotFoundError(f"{model_id} has no {CONFIG_FILE}: it is no model saved by recsys_lib")
        stored_class = config.get("model_class")
        if stored_class != cls.__name__:
            raise ValueError(
                f"{model_id} holds a {stored_class}, not a {cls.__name__}; use {stored_class}.from_pretrained"
            )
        unknown = sorted(set(config) - set(options_of(cls)) - set(_RESERVED))
        if unknown:
            raise ValueError(
                f"{model_id}: {CONFIG_FILE} names {', '.join(unknown)}, which {cls.__name__} does not take; "
                f"it was saved by another version of the library, or edited"
            )
        for name in ("n_users", "n_items"):
            if type(config.get(name)) is not int or config[name] < cls._fewest:
                raise ValueError(f"{model_id}: {CONFIG_FILE} must give {name} as a number above zero")

        def fetch(file: str) -> Path:
            if Path(model_id).is_dir():
                return Path(model_id) / file
            return Path(
                hf_hub_download(
                    repo_id=model_id,
                    filename=file,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                )
            )

        path = fetch(WEIGHTS_FILE)
        device = resolve_device(map_location)
        try:
            state = load_file(path, device=str(device))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); save the model again") from error

        model = cls(**options)
        model._n_users, model._n_items = config["n_users"], config["n_items"]
        model.fit_seconds = float(config.get("fit_seconds", "nan"))
        with isolated_rng(0):
            model.build()
        model.to(device)
        model._restore(state, str(path))
        for name, size in (("user_ids", config["n_users"]), ("item_ids", config["n_items"])):
            setattr(model, name, _read_ids(fetch, name, size))
        return model.eval()

    def _restore(self, state: dict[str, Tensor], source: str) -> None:
        """Fills parameters and buffers; buffers that only ``fit`` makes are registered."""
        missing = sorted(set(self._state_to_save()) - set(state))
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
                        f"{source}: {name} has shape {tuple(tensor.shape)}, but these options make "
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


def find_config(name: str | Path, **options: Any) -> Path:
    """The configuration file of a saved model, in a folder or fetched from the hub.

    Args:
        name: the folder, or ``"owner/name"`` on the hub.
        **options: as for ``from_pretrained``; the hub's own are used.

    Raises:
        FileNotFoundError: there is no such folder, it holds no model, or the hub does not give one.
    """
    place = Path(name).expanduser()
    if place.is_dir():
        file = place / CONFIG_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{place} has no {CONFIG_FILE}: it is no saved model, or saving was interrupted"
            )
        return file
    _refuse_what_is_no_hub_name(name, place)
    known = {key: options[key] for key in _HUB_OPTIONS if key in options}
    reached = not known.get("local_files_only") and _hub_answers()
    known["local_files_only"] = not reached
    try:
        return Path(hf_hub_download(repo_id=str(name), filename=CONFIG_FILE, **known))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0] if reached else "it was not asked, or cannot be reached"
        raise FileNotFoundError(
            f"there is no folder {name} in {Path.cwd()}, no model of that name was fetched from the hub "
            f"before, and the hub gives none: {reason}"
        ) from error


def read_config(file: Path) -> dict[str, Any]:
    """The configuration in a file.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); save the model again") from error
    return config


def _hub_answers() -> bool:
    """Whether the hub's host takes a connection; asked before its client, which tries for half a minute."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # a proxy may know more than this machine
    host = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((str(host.hostname), host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _refuse_what_is_no_hub_name(given: str | Path, place: Path) -> None:
    """Says at once that a folder is missing, where the hub need not be asked."""
    name = str(given)
    # "models/typo" could be a name on the hub; beside a folder models/ it is a typing mistake.
    mistyped = place.parent != Path() and place.parent.is_dir()
    if isinstance(given, Path) or place.is_absolute() or mistyped or not _HUB_NAME.fullmatch(name):
        beside = (
            [x.name for x in place.parent.iterdir() if x.is_dir() and x.name[0] != "."]
            if place.parent.is_dir()
            else []
        )
        hint = f"; {place.parent} holds {', '.join(sorted(beside)[:5])}" if beside else ""
        raise FileNotFoundError(f"{place} is not a folder; save_pretrained makes one{hint}")


def _write_ids(ids: pd.Index, name: str, path: Path) -> None:
    """Ids as a table of one column, in their own type."""
    try:
        table = pa.Table.from_pandas(pd.DataFrame({"id": ids}), preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise TypeError(
            f"{name} of type {type(ids[0]).__name__} cannot be saved ({error}); use integers or texts as ids"
        ) from error
    import pyarrow.parquet as pq

    with write_whole(path) as part:
        pq.write_table(table, part)


def _read_ids(fetch: Callable[[str], Path], name: str, size: int) -> pd.Index | None:
    """The ids, or None where the model was saved without.

    Raises:
        ValueError: the file is damaged, or its ids are not as many as the model's.
    """
    try:
        path = fetch(IDS_FILES[name])
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    if not path.is_file():
        return None
    try:
        ids = pd.Index(pd.read_parquet(path)["id"], name=None, tupleize_cols=False)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the model again") from error
    if len(ids) != size or not ids.is_unique:
        raise ValueError(f"{path} holds {len(ids)} ids for a model of {size}; it belongs to another model")
    return ids
