"""Brings a real Kubernetes to a machine that has none, and our images into it.

`python3 -m cluster --help` from the top of the checkout. Standard library only: it runs before anything is installed. What it builds and
keeps lies outside the checkout (see `places`), so several checkouts share one cluster and none builds it twice.
"""
