"""Scores of sets and pictures, against torch-fidelity, clean-fid and scikit-image."""

import pytest

from pointillist.metrics import (
    frechet_distance,
    kernel_distance,
    precision_recall,
    psnr,
    ssim,
    subset_distances,
)
from tests.parity_case import Case, NotBuilt, known, plain


def near(case: Case, name: str, ours: float, relative: float) -> None:
    theirs = float(case.io[name])
    assert ours == pytest.approx(theirs, rel=relative, abs=1e-12), f"{name} is off: {ours}"


def features(case: Case) -> None:
    """torch-fidelity computes in float32 where its features are; float64 agrees to 1e-4."""
    known(case.constructor, "kid", "prc", "isc")  # isc: the Inception score, which is not built
    known(case.constructor["kid"], "subsets", "subset_size", "kernel", "rng_seed")
    plain(case.constructor["kid"], kernel="poly degree 3, gamma 1/d, coef0 1")
    io = case.io
    a, b = io["in.features_1"], io["in.features_2"]
    few = min(len(a), len(b)) <= a.shape[1]
    distance = frechet_distance(a, b, rank_deficient=few)
    # Without full rank the stored values hold the root of their rounding; ours is exact.
    near(case, "out.fid_symmetric_eigh_float64", distance, 1e-7)
    near(case, "out.fid_float64_features", distance, 1e-7)
    near(case, "out.frechet_inception_distance", distance, 1e-6)
    picks = list(zip(io["kid_subset_1"], io["kid_subset_2"], strict=True))
    found = subset_distances(a, b, picks=picks)
    near(case, "out.kernel_inception_distance_mean", float(found.mean()), 1e-4)
    near(case, "out.kernel_inception_distance_std", float(found.std(correction=0)), 1e-4)
    n = min(len(a), len(b))
    near(case, "out.kid_one_subset_all_samples", kernel_distance(a[:n], b[:n]), 1e-4)
    for k in case.constructor["prc"]["neighborhood"]:
        shares = precision_recall(a, b, k)
        near(case, f"out.k{k}_precision", shares.precision, 1e-6)
        near(case, f"out.k{k}_recall", shares.recall, 1e-6)


def clean(case: Case) -> None:
    io = case.io
    a, b = io["in.features_1"], io["in.features_2"]
    near(case, "out.frechet_distance", frechet_distance(a, b), 1e-7)
    # clean-fid draws both subsets by NumPy's global generator; the second set's come first.
    picks = list(zip(io["kid_subset_of_1"], io["kid_subset_of_2"], strict=True))
    near(case, "out.kernel_distance", kernel_distance(a, b, picks=picks), 1e-9)


def pictures(case: Case) -> None:
    for pair in case.constructor["pairs"]:
        i, options = pair["index"], {"data_range": float(pair["data_range"])}
        if pair["dtype"] not in ("torch.float64", "torch.uint8", "torch.float32"):
            raise NotBuilt(f"dtype = {pair['dtype']}")
        close = 1e-5 if pair["dtype"] == "torch.float32" else 1e-9
        a, b = (case.io[f"{i}.{side}"].permute(2, 0, 1)[None] for side in "ab")
        gaussian = ssim(a, b, **options)
        near(case, f"{i}.out.psnr", float(psnr(a, b, **options)), close)
        near(case, f"{i}.out.ssim_gaussian", float(gaussian), close)
        inside = case.io[f"{i}.ssim_gaussian_map"][5:-5, 5:-5].double().mean()
        assert float(gaussian) == pytest.approx(float(inside), rel=close)
        box = ssim(a, b, window="uniform", sample_covariance=True, **options)
        near(case, f"{i}.out.ssim_uniform7", float(box), close)
        small = ssim(a, b, window="uniform", width=5, **options)
        near(case, f"{i}.out.ssim_uniform5_pop", float(small), close)
        grey = ssim(a[:, :1], b[:, :1], **options)
        near(case, f"{i}.out.ssim_gray0_gaussian", float(grey), close)
