"""The book's own library, in the book's environment."""

import common

common.one_thread()


import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402

from recsys_lib import metrics as m  # noqa: E402
from recsys_lib import models as ours  # noqa: E402
from recsys_lib.data import Interactions  # noqa: E402
from recsys_lib.evaluation import evaluate  # noqa: E402

torch.set_num_threads(1)


class Prepared:
    """``Interactions`` with all users and items."""

    def __init__(self, events):
        self.events = events
        frame = pd.DataFrame(
            {
                "user_id": events.users,
                "item_id": events.items,
                "rating": events.ratings,
                "timestamp": events.timestamps,
            }
        )
        self.data = Interactions.from_frame(
            frame, user_ids=range(events.n_users), item_ids=range(events.n_items)
        )

    def fitted(self, model):
        """What the fit gave."""
        everyone = torch.arange(self.events.n_users)

        def lists(k):
            return model.recommend(everyone, k=k, exclude=self.data, progress=False)[0].numpy()

        return common.Fitted(
            lambda users: model.score(torch.as_tensor(users)).numpy(),
            lists,
            lambda users, items: model.predict(torch.as_tensor(users), torch.as_tensor(items)).numpy(),
        )


def plain(name, seeded=False, fixed=None):
    """A model that is not looked at on the way; ``epochs`` is an option of some."""

    def fit(prepared, seed, look, epochs, every, **options):
        make = getattr(ours, name)
        extra = {"seed": seed} if seeded else {}
        if epochs > 1:
            for n in range(every, epochs, every) if every else ():
                look.again(n, lambda n=n: trained(make, n, prepared, extra, options).scores)
            found = trained(make, epochs, prepared, extra, options)
            if every:
                look(epochs, found.scores)
            return found
        model = make(**extra, **options).fit(prepared.data, device="cpu", progress=False)
        return prepared.fitted(model)

    return fit


def trained(make, epochs, prepared, extra, options):
    model = make(epochs=epochs, **extra, **options)
    return prepared.fitted(model.fit(prepared.data, device="cpu", progress=False))


def looked_at(name):
    """A model that is trained in epochs. What is looked at on validation is the clock's look instead."""

    def fit(prepared, seed, look, epochs, every, **options):
        kind = getattr(ours, name)
        if not every:
            return trained(kind, epochs, prepared, {"seed": seed}, options)
        model = kind(epochs=epochs, seed=seed, check_every=every, patience=epochs, **options)
        looks = iter(range(every, epochs + 1, every))

        def measure():
            epoch = next(looks)
            look(epoch, prepared.fitted(model).scores)
            return float(epoch)  # the last is the best, so the last is kept

        model.figure = lambda held_out, seen: ("looks", measure)
        # Any event that a user does not have is a validation set, since nothing is measured on it.
        model.fit(prepared.data, one_that_is_new(prepared), device="cpu", progress=False)
        return prepared.fitted(model)

    return fit


def one_that_is_new(prepared):
    events = prepared.events
    own = set(events.items[events.users == events.users[0]].tolist())
    item = next(item for item in range(events.n_items) if item not in own)
    frame = pd.DataFrame(
        {
            "user_id": [events.users[0]],
            "item_id": [item],
            "rating": [1.0],
            "timestamp": [int(events.timestamps.max())],
        }
    )
    return Interactions.from_frame(frame, user_ids=range(events.n_users), item_ids=range(events.n_items))


def metrics(job, out):
    """Metrics of finished lists, each user's, and what they take."""
    with np.load(job["lists"], allow_pickle=False) as arrays:
        users, items = torch.as_tensor(arrays["users"]), torch.as_tensor(arrays["items"])  # (U,), (U, k)
        pairs = torch.as_tensor(np.stack([arrays["relevant_users"], arrays["relevant_items"]]))  # (2, R)
        n_items = int(arrays["n_items"])
    times = []
    for _ in range(job["repeats"]):
        clock = common.Clock()
        keys = (pairs[0] * n_items + pairs[1]).unique()  # (R,)
        n_relevant = (keys // n_items).bincount(minlength=int(users.max()) + 1)[users]  # (U,)
        hits = torch.isin(users[:, None] * n_items + items, keys) & (items >= 0)  # (U, k)
        found = {name: m.RANKING[name](hits, n_relevant) for name in ("ndcg", "recall", "mrr")}
        times.append(clock.read())
    for name, values in found.items():
        np.save(out / f"{name}.npy", values.double().numpy())
    return {"times": times}


class Vectors:
    """A model: the product of given vectors."""

    def __init__(self, users, items):
        self.users, self.items, self.n_items = torch.as_tensor(users), torch.as_tensor(items), len(items)

    def score(self, users):
        """(B,) -> (B, N)."""
        return self.users[users] @ self.items.mT  # (B, N)


def ranking(job, out):
    """Everyone's list from given vectors by the evaluation, its metrics included, and what it takes."""
    with np.load(job["vectors"], allow_pickle=False) as arrays:
        model = Vectors(arrays["users"], arrays["items"])
    seen, test = (Prepared(common.Events(job[name])).data for name in ("events", "test"))
    clock = common.Clock()
    report = evaluate(model, test, seen=seen, k=job["k"], progress=False)
    spent = clock.read()
    np.save(out / "lists.npy", report.items.numpy())
    return {"lists": spent}


if __name__ == "__main__":
    models = {name: plain(name) for name in ("Popularity", "ItemKNN", "UserKNN", "EASE")}
    models["ALS"] = plain("ALS", seeded=True)
    models |= {name: plain(name, seeded=True) for name in ("BiasedMF", "RatingALS")}
    models |= {
        name: looked_at(name) for name in ("BPR", "CompiledBPR", "SASRec", "MultVAE", "MatrixFactorization")
    }
    common.run(models, Prepared, ("torch", "numpy"), {"metrics": metrics, "ranking": ranking})
