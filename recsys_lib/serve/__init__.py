"""A saved pipeline as a service on this machine: recommendations over HTTP.

``python -m recsys_lib.serve models/shop`` starts it, ``make serve-api`` does the same. It needs the extra
``serve``: ``pip install recsys-lib[serve]``.
"""
