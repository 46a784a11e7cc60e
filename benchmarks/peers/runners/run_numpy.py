"""numpy alone: the product, what was seen left out, the best ten. What no library can do without."""

import common

common.one_thread()

import numpy as np  # noqa: E402


def ranking(job, out):
    """Everyone's list from given vectors, and what it takes."""
    with np.load(job["vectors"], allow_pickle=False) as arrays:
        users, items = arrays["users"], arrays["items"]  # (U, d), (N, d)
    events = common.Events(job["events"])
    clock = common.Clock()
    found = common.best(events, lambda rows: users[rows] @ items.T, job["k"])
    spent = clock.read()
    np.save(out / "lists.npy", found)
    return {"lists": spent}


if __name__ == "__main__":
    common.run({}, lambda events: events, ("numpy",), {"ranking": ranking})
