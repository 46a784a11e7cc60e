"""What a chapter of the book needs: a figure style, a record of what it measured, the library's own source.

A chapter makes one `Chapter`, says what its run found, records what other pages read, and finishes. What is
said is shown at once; what is recorded goes to one small JSON file, from which the scoreboard, the claims and
the status page repeat what this run measured::

    chapter = Chapter("04_bpr", dataset=dataset, seed=seed, device=device)
    chapter.record("bpr", report, "ndcg@10", model="BPR", family="matrix factorization", headline=True)
    chapter.say(f"BPR gains {gap:.3f} over popularity.")
    chapter.claim("bpr-wins", "BPR ranks better than popularity.", "holds", evidence=f"{gap:.3f}")
    chapter.finish()

Importing this loads nothing heavy, torch included: the book's tools read results through it.
"""

from recsys_lib.chapter.record import Chapter
from recsys_lib.chapter.results import recorded, results_dir
from recsys_lib.chapter.show import PALETTE, figure_style, show_source

__all__ = ["PALETTE", "Chapter", "figure_style", "recorded", "results_dir", "show_source"]
