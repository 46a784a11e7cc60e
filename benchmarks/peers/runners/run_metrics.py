"""ir-measures and ranx: ranking metrics of finished lists, each user's."""

import common

common.one_thread()

import ir_measures  # noqa: E402
import numpy as np  # noqa: E402
import ranx  # noqa: E402
from ir_measures import RR, R, nDCG  # noqa: E402


def read(job):
    with np.load(job["lists"], allow_pickle=False) as arrays:
        users, items = arrays["users"], arrays["items"]  # (U,), (U, k)
        pairs = arrays["relevant_users"], arrays["relevant_items"]
    names = [f"u{user}" for user in users.tolist()]
    k = items.shape[1]
    run = {
        name: {f"i{item}": float(k - place) for place, item in enumerate(row) if item >= 0}
        for name, row in zip(names, items.tolist(), strict=True)
    }
    relevant = {name: {} for name in names}
    for user, item in zip(*(part.tolist() for part in pairs), strict=True):
        relevant[f"u{user}"][f"i{item}"] = 1
    return names, k, run, relevant


def with_ir_measures(job, out):
    names, k, run, relevant = read(job)
    measures = {"ndcg": nDCG @ k, "recall": R @ k, "mrr": RR @ k}
    times = []
    for _ in range(job["repeats"]):
        clock = common.Clock()
        rows = list(ir_measures.iter_calc(list(measures.values()), relevant, run))
        times.append(clock.read())
    for name, measure in measures.items():
        found = {row.query_id: row.value for row in rows if row.measure == measure}
        np.save(out / f"{name}.npy", np.array([found.get(user, 0.0) for user in names]))
    return {"times": times}


def with_ranx(job, out):
    names, k, run, relevant = read(job)
    qrels, lists = ranx.Qrels(relevant), ranx.Run(run)
    asked = [f"ndcg@{k}", f"recall@{k}", f"mrr@{k}"]
    ranx.evaluate(qrels, lists, asked, return_mean=False)  # it compiles at the first call
    times = []
    for _ in range(job["repeats"]):
        clock = common.Clock()
        found = ranx.evaluate(qrels, lists, asked, return_mean=False)
        times.append(clock.read())
    order = {name: place for place, name in enumerate(qrels.keys())}
    places = [order[name] for name in names]
    for name in asked:
        np.save(out / f"{name.partition('@')[0]}.npy", np.asarray(found[name])[places])
    return {"times": times}


if __name__ == "__main__":
    tasks = {"metrics:ir-measures": with_ir_measures, "metrics:ranx": with_ranx}
    common.run({}, lambda events: events, ("ir-measures", "ranx", "numpy"), tasks)
