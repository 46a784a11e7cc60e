"""What a chapter of the book needs: a figure style, a record of what it measured, the library's own source.

A chapter makes one `Chapter`, tells it every number, word and claim that its text relies on, and finishes.
Each value is written to one small JSON file and glued into the page, so that the text, the scoreboard and the
status page all repeat what this run measured::

    chapter = Chapter("04_bpr", dataset=dataset, seed=seed, device=device)
    chapter.record("bpr", report, "ndcg@10", model="BPR", family="matrix factorization", headline=True)
    chapter.claim("bpr-wins", "BPR ranks better than popularity.", "holds", evidence=f"{gain:+.3f}")
    chapter.finish()

Importing this loads nothing heavy, torch included: the book's tools read results through it.
"""

from recsys_lib.chapter.record import Chapter
from recsys_lib.chapter.results import recorded, results_dir
from recsys_lib.chapter.show import PALETTE, figure_style, show_source

__all__ = ["PALETTE", "Chapter", "figure_style", "recorded", "results_dir", "show_source"]
