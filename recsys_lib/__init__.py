"""The tested library behind the book *Attention to Taste*.

Start from the three calls that every chapter makes::

    from recsys_lib.data import leave_last_out, load_movielens
    from recsys_lib.evaluation import evaluate
    from recsys_lib.models import EASE

A saved model comes back with ``recsys_lib.load(folder)``. The package itself imports nothing heavy; each
module imports what it needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from recsys_lib.models import Recommender

__version__ = "0.1.0"


def load(folder: "str | Path", **options: Any) -> "Recommender":
    """Loads a saved model, whatever its class; see ``recsys_lib.models.core.loading.load``."""
    import recsys_lib.pipeline  # noqa: F401  # makes its class known
    from recsys_lib.models.core.loading import load as load_model

    return load_model(folder, **options)
