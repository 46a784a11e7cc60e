"""RecBole: does ``Pop`` count an item as often as it occurs?

A batch in which one item stands five times and another once is given to the model, and then its counts are
read. Usage, in the environment ``recbole``::

    python benchmarks/peers/faults/recbole_pop.py
"""

import json

import torch
from recbole.model.general_recommender.pop import Pop


def main() -> None:
    model = Pop.__new__(Pop)
    torch.nn.Module.__init__(model)
    model.ITEM_ID, model.device = "item_id", torch.device("cpu")
    model.item_cnt = torch.zeros(3, 1, dtype=torch.long)
    batch = {"item_id": torch.tensor([1, 1, 1, 1, 1, 2])}
    model.calculate_loss(batch)
    counted = model.item_cnt.flatten().tolist()
    found = {"occurrences": [0, 5, 1], "counted": counted, "shown": counted == [0, 1, 1]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
