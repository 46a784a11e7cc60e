"""The code of the README runs as it stands, on a shop's untidy export."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """A folder with sales and a catalog: leading zeros, spaces and dots in the names, articles never sold."""
    rng = np.random.default_rng(0)
    skus = [f"{number:05}" for number in range(60)]
    rows = [
        (
            f"C{customer:06}",
            skus[(7 * customer + step * step) % 50],
            f"2024-{month:02}-1{step % 10} 10:0{step % 10}",
        )
        for customer in range(550, 600)
        for step, month in enumerate(rng.integers(1, 13, 9))
    ]
    sales = pd.DataFrame(rows, columns=["Customer No.", "SKU", "Sold at"])
    sales["Price (EUR)"] = "9,99"
    sales.sample(frac=1, random_state=1).to_csv(tmp_path / "sales.csv", index=False)
    catalog = pd.DataFrame({"SKU": skus, "title": [f"article {sku}" for sku in skus]})
    catalog["stock"] = rng.integers(0, 3, len(skus))
    catalog.sample(frac=1, random_state=2).to_csv(tmp_path / "catalog.csv", index=False)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippet() -> str:
    section = (ROOT / "README.md").read_text("utf8").partition("## Use the library")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def test_the_readme_runs_on_an_untidy_export(shop, capsys):
    names: dict = {}
    exec(compile(snippet(), "README.md", "exec"), names)
    assert capsys.readouterr().out.count("ndcg@10") == 2
    lists, catalog, sales = names["lists"], names["catalog"], names["sales"]
    assert lists["user_id"].tolist() == ["C000588"] * 5
    assert lists["title"].tolist() == [f"article {sku}" for sku in lists["item_id"]]
    stock = catalog.set_index("item_id")["stock"]
    assert (stock[lists["item_id"]] > 0).all()
    had = set(sales.loc[sales["Customer No."] == "C000588", "SKU"])
    assert not had & set(lists["item_id"])
    assert names["bought"].n_items == 60
    assert not {"00042", "00007"} & set(names["visitor"]["item_id"])
    assert len(names["alike"]) == 5
    everybody = pd.read_parquet(shop / "lists.parquet")
    assert everybody.groupby("user_id").size().tolist() == [10] * 50
    assert type(names["model"]).__name__ == "EASE"
    assert names["model"].item_ids.tolist() == names["bought"].item_ids.tolist()
    assert (shop / "models" / "shop" / "config.json").is_file()
