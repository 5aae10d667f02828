"""Demonstrations that are run, not told: the same job on a real cluster and on this machine alone."""
