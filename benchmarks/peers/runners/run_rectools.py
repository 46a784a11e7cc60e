"""RecTools: popularity, EASE, SASRec, and its ranking metrics."""

import common

common.one_thread()

import logging  # noqa: E402
import warnings  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from pytorch_lightning import Trainer, seed_everything  # noqa: E402
from rectools import Columns  # noqa: E402
from rectools.dataset import Dataset  # noqa: E402
from rectools.metrics import MRR, NDCG, Recall  # noqa: E402
from rectools.models import EASEModel, PopularModel, SASRecModel  # noqa: E402

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
torch.set_num_threads(1)


class Prepared:
    """A RecTools data set; its times are days, so the order within a day is kept by adding seconds."""

    def __init__(self, events):
        self.events = events
        self.data = Dataset.construct(
            pd.DataFrame(
                {
                    Columns.User: events.users,
                    Columns.Item: events.items,
                    Columns.Weight: events.ratings,
                    Columns.Datetime: pd.to_datetime(events.timestamps, unit="s"),
                }
            )
        )
        self.known = np.unique(events.users)

    def lists(self, model, k, filter_viewed):
        """Its table of everyone's best k."""
        return model.recommend(self.known, self.data, k=k, filter_viewed=filter_viewed)

    def fitted(self, model):
        """Scores and lists as it recommends."""
        made = []

        def scores(users):
            if not made:
                table = self.lists(model, self.events.n_items, False)
                matrix = np.full((self.events.n_users, self.events.n_items), np.nan, np.float32)
                matrix[table[Columns.User], table[Columns.Item]] = table[Columns.Score]
                # What it does not know comes last.
                lowest = np.nanmin(matrix)
                made.append(np.where(np.isfinite(matrix), matrix, lowest - 1))
            return made[0][users]

        def lists(k):
            table = self.lists(model, k, True)
            found = np.full((self.events.n_users, k), -1)
            found[table[Columns.User], table[Columns.Rank] - 1] = table[Columns.Item]
            return found

        return common.Fitted(scores, lists)


def popularity(prepared, seed, look, epochs, every):
    return prepared.fitted(PopularModel().fit(prepared.data))


def ease(prepared, seed, look, epochs, every, **options):
    return prepared.fitted(EASEModel(recommend_n_threads=1, **options).fit(prepared.data))


def trainer():
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def sasrec(prepared, seed, look, epochs, every, **options):
    seed_everything(seed)
    model = SASRecModel(get_trainer_func=trainer, recommend_torch_device="cpu", **options)
    step = every or epochs
    for epoch in range(step, epochs + 1, step):
        model.fit_partial(prepared.data, min_epochs=step, max_epochs=step)
        if every:
            look(epoch, prepared.fitted(model).scores)
    return prepared.fitted(model)


def metrics(job, out):
    """Its metrics of finished lists, each user's, and what they take."""
    with np.load(job["lists"], allow_pickle=False) as arrays:
        users, items = arrays["users"], arrays["items"]  # (U,), (U, k)
        pairs = {Columns.User: arrays["relevant_users"], Columns.Item: arrays["relevant_items"]}
    relevant = pd.DataFrame(pairs)
    k = items.shape[1]
    table = pd.DataFrame(
        {
            Columns.User: np.repeat(users, k),
            Columns.Item: items.ravel(),
            Columns.Rank: np.tile(np.arange(1, k + 1), len(users)),
        }
    )
    table = table[table[Columns.Item] >= 0]
    measured = {"ndcg": NDCG(k, divide_by_achievable=True), "recall": Recall(k), "mrr": MRR(k)}
    times = []
    for _ in range(job["repeats"]):
        clock = common.Clock()
        found = {name: metric.calc_per_user(table, relevant) for name, metric in measured.items()}
        times.append(clock.read())
    for name, values in found.items():
        np.save(out / f"{name}.npy", values.reindex(users).fillna(0.0).to_numpy(np.float64))
    return {"times": times}


if __name__ == "__main__":
    models = {"Popularity": popularity, "EASE": ease, "SASRec": sasrec}
    common.run(models, Prepared, ("rectools", "numpy", "scipy", "torch"), {"metrics": metrics})
