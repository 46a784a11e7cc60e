"""Saving and loading as the Hugging Face hub does: ``config.json`` and ``model.safetensors``."""

import json
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys_lib.devices import isolated_rng, resolve_device
from recsys_lib.files import write_whole
from recsys_lib.models.core.options import option_values, options_of

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Saved"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

# Keys of config.json beside the options.
_RESERVED = ("model_class", "n_users", "n_items", "fit_seconds")

_CARD = """---
{{ card_data }}
---

# A recommender saved by recsys_lib

`config.json` holds the class and its options, `model.safetensors` everything that it learned.
Load it with `from_pretrained` of the class that `config.json` names under `model_class`.
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
    _n_users: int | None
    _n_items: int | None

    @property
    def config(self) -> dict[str, Any]:
        """The options by name, defaults included."""
        return option_values(self)

    def build(self) -> None:
        """Makes parameters and submodules for ``n_users`` and ``n_items``; nothing by default.

        ``fit`` calls it before it learns, ``from_pretrained`` before it fills in the stored values. Buffers
        that only ``fit`` makes need no ``build``: they come back with their stored shapes.
        """

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes both files; called by ``save_pretrained``, which has removed an older ``config.json``.

        Each file appears whole or not at all, and ``config.json`` comes last: where it exists, the weights
        beside it are complete and belong to it.
        """
        state = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()
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

        model = cls(**options)
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
