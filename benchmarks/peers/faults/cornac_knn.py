"""Cornac: what do ``UserKNN`` and ``ItemKNN`` say where every rating is the same?

Implicit feedback is a one for each event. The scores of a user are a mean of neighbors' ratings, weighted
by likeness, over those who rated the item. Usage, in the environment ``implicit-cornac-metrics``::

    python benchmarks/peers/faults/cornac_knn.py
"""

import json

import numpy as np
from cornac.data import Dataset
from cornac.models import ItemKNN, UserKNN

N_USERS, N_ITEMS = 200, 30


def main() -> None:
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((N_USERS, N_ITEMS)) < 0.3)
    data = Dataset.build([(int(u), int(i), 1.0) for u, i in zip(users, items, strict=True)], seed=0)
    found = {}
    for make in (UserKNN, ItemKNN):
        model = make(k=20, seed=0, verbose=False).fit(data)
        scores = np.stack([np.ravel(model.score(user)) for user in range(data.num_users)])
        found[f"{make.__name__}: most different scores of a user"] = max(
            len(np.unique(row.round(5))) for row in scores
        )
    found["shown"] = all(value == 1 for value in found.values())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
