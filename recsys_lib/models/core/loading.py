"""Loading a model without knowing its class."""

from pathlib import Path
from typing import Any

from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.saving import find_config, read_config

__all__ = ["load"]


def load(folder: str | Path, **options: Any) -> Recommender:
    """Loads a saved model; its class is the one that ``config.json`` names.

    ::

        model = recsys_lib.load("models/bpr")

    Args:
        folder: a folder that ``save_pretrained`` wrote, or ``"owner/name"`` on the hub.
        **options: as for ``from_pretrained``.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the files are damaged, or of a class that is not here. A class of one's own must have been
            imported before; no code is loaded because a file names it.
    """
    import recsys_lib.models  # makes the library's classes known

    name = read_config(find_config(folder, **options)).get("model_class")
    known = {cls.__name__: cls for cls in _subclasses(Recommender)}
    if name not in known:
        raise ValueError(
            f"{folder} holds a {name}, which is no model of this library (it has "
            f"{', '.join(recsys_lib.models.__all__)}); import the module that defines it first"
        )
    return known[name].from_pretrained(folder, **options)


def _subclasses(cls: Any) -> set[type[Recommender]]:
    """All classes derived from one, at any depth."""
    return {sub for direct in cls.__subclasses__() for sub in {direct, *_subclasses(direct)}}
