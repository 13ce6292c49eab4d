"""Judging: scores from features or pictures, each a function; known answers first.

Metrics never sample. Features are made once (`features.py`), and every score of sets is made from
them; pictures are compared with pictures place by place.
"""

from pointillist.metrics.features import Extractor, extract, open_extractor
from pointillist.metrics.frechet import frechet_distance, frechet_score
from pointillist.metrics.interval import Score, bootstrap, bootstrap_mean, over_seeds, share_score
from pointillist.metrics.kernel import kernel_distance, kernel_score, subset_distances
from pointillist.metrics.moments import Moments, MomentSum
from pointillist.metrics.neighbours import PrecisionRecall, precision_recall
from pointillist.metrics.pixel import lpips, psnr, ssim
from pointillist.metrics.posterior import coverage, crps
from pointillist.metrics.reference import reference

__all__ = [
    "Extractor", "MomentSum", "Moments", "PrecisionRecall", "Score", "bootstrap",
    "bootstrap_mean", "coverage", "crps", "extract", "frechet_distance", "frechet_score",
    "kernel_distance", "kernel_score", "lpips", "open_extractor", "over_seeds", "precision_recall",
    "psnr", "reference", "share_score", "ssim", "subset_distances",
]  # fmt: skip
