"""RecTools: with which matrix does EASE rank, B or its transpose?

The model's docstring names Steck (2019), where a user's scores are the row x B. B is not symmetric. The
scores that ``recommend`` returns are compared with both products. Usage, in the environment ``rectools``::

    python benchmarks/peers/faults/rectools_ease.py
"""

import json

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import EASEModel

N_USERS, N_ITEMS = 200, 30


def main() -> None:
    rng = np.random.default_rng(0)
    chance = 0.4 / np.arange(1, N_ITEMS + 1) ** 0.5
    users, items = np.nonzero(rng.random((N_USERS, N_ITEMS)) < chance)
    frame = {Columns.User: users, Columns.Item: items, Columns.Weight: 1.0}
    data = Dataset.construct(pd.DataFrame({**frame, Columns.Datetime: pd.Timestamp("2020-01-01")}))
    model = EASEModel(regularization=10.0, recommend_n_threads=1).fit(data)

    x = data.get_user_item_matrix(include_weights=True).toarray().astype(float)  # its own order of ids
    inverse = np.linalg.inv(x.T @ x + 10.0 * np.eye(x.shape[1]))
    b = inverse / -np.diag(inverse)
    np.fill_diagonal(b, 0.0)
    table = model.recommend(np.unique(users), data, k=x.shape[1], filter_viewed=False)
    rows = data.user_id_map.convert_to_internal(table[Columns.User])
    columns = data.item_id_map.convert_to_internal(table[Columns.Item])
    scores = table[Columns.Score].to_numpy()
    found = {
        "largest difference to x B": float(np.abs(scores - (x @ b)[rows, columns]).max()),
        "largest difference to x B transposed": float(np.abs(scores - (x @ b.T)[rows, columns]).max()),
    }
    found["shown"] = (
        found["largest difference to x B"] > 0.01 > 1e-3 > found["largest difference to x B transposed"]
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
