"""The tested library behind the book *Attention to Taste*.

Start from the three calls that every chapter makes::

    from recsys_lib.data import leave_last_out, load_movielens
    from recsys_lib.evaluation import evaluate
    from recsys_lib.models import EASE

The package itself imports nothing heavy; each module imports what it needs.
"""

__version__ = "0.1.0"
