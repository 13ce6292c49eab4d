"""Judging: known answers first."""

from pointillist.metrics.posterior import coverage, crps

__all__ = ["coverage", "crps"]
