"""White and canonical spaces are the textbook's, change nothing where rows do not carry them, and help where they do."""

import numpy as np
import pytest
import torch

from tests.vidssl.mining.space_worlds import precision, rotated, slow_scores, two_views, unit
from vidssl.errors import BankError
from vidssl.mining import space as module
from vidssl.mining.cascade import mine
from vidssl.mining.directions import LEAST_SHRINKAGE, moments, shared_directions, shrinkage
from vidssl.mining.plan import CascadePlan
from vidssl.mining.space import fit_space

KINDS = ("white", "canonical")


def shrunk(rows, share):
    """The covariance from its definition with a share of the identity, and the centred rows."""
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
    covariance = sum(np.outer(row, row) for row in centred) / len(rows)
    return (1 - share) * covariance + share * np.trace(covariance) / rows.shape[1] * np.eye(rows.shape[1]), centred


def mapped(space, views):
    return {view: space.apply(view, rows) for view, rows in views.items()}


def mined(views, plan, space):
    rows = list(mapped(space, views).values())
    own = [[slot] for slot in range(len(rows[0]))]
    return mine(rows, rows, plan, exclude=own).ids


# What they are


def test_white_scores_are_cosines_in_the_metric_of_the_inverse_covariance():
    views, _ = two_views(300)
    space = fit_space("white", views)
    for view, rows in views.items():
        covariance, centred = shrunk(rows, 0.2)
        metric = centred @ np.linalg.inv(covariance) @ centred.T
        size = np.sqrt(np.diag(metric))
        image = space.apply(view, rows)
        np.testing.assert_allclose(image @ image.T, metric / np.outer(size, size), atol=2e-5)


def test_canonical_directions_solve_the_textbooks_eigenproblem():
    """C_a⁻¹ C_ab C_b⁻¹ C_ba a = ρ² a, solved as it stands, without a singular value in sight."""
    views, _ = two_views(400, seed=3)
    first, second = views.values()
    (of_first, a), (of_second, b) = shrunk(first, 0.05), shrunk(second, 0.05)
    cross = a.T @ b / len(a)
    values, vectors = np.linalg.eig(np.linalg.solve(of_first, cross) @ np.linalg.solve(of_second, cross.T))
    order = np.argsort(-values.real)
    found = shared_directions(first, second, (moments(first), moments(second)), seed=0)
    number = len(found.correlations)
    assert 4 <= number < 16
    np.testing.assert_allclose(found.correlations, np.sqrt(values.real[order][:number]), rtol=1e-6)
    for place in range(number):
        expected = vectors[:, order[place]].real
        cosine = expected @ found.first[:, place] / np.linalg.norm(expected) / np.linalg.norm(found.first[:, place])
        assert abs(cosine) == pytest.approx(1, abs=1e-6)
        pairs = np.corrcoef(a @ found.first[:, place], b @ found.second[:, place])[0, 1]
        assert pairs > 0  # the two views' images point the same way, so that one may be added to the other
    space = fit_space("canonical", views)
    weights = np.sqrt((found.correlations**2 - found.chance**2) / (1 - found.chance**2))
    np.testing.assert_allclose(space.weights, weights, rtol=1e-5)
    expected = unit(a @ found.first * weights)
    np.testing.assert_allclose(space.apply("residual", first), expected, atol=1e-5)


def test_raw_rows_are_the_rows():
    views, _ = two_views(50)
    space = fit_space("raw", views)
    for view, rows in views.items():
        assert space.apply(view, rows) is rows
        np.testing.assert_array_equal(space.apply(view, rows.astype(np.float16)), rows.astype(np.float16))
    assert space.columns is None


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_unit_rows_of_tensors_and_arrays_alike(kind):
    views, _ = two_views(300)
    space = fit_space(kind, views)
    for place, (view, rows) in enumerate(views.items()):
        image = space.apply(view, rows)
        assert image.dtype == np.float32
        assert image.shape == (300, space.columns)
        np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
        of_tensor = space.apply(place, torch.from_numpy(rows).reshape(100, 3, 16))
        np.testing.assert_allclose(of_tensor.reshape(300, -1).numpy(), image, atol=1e-5)
        alone = np.concatenate([space.apply(view, rows[i : i + 1]) for i in range(300)])
        np.testing.assert_array_equal(alone, image)  # whatever is mapped beside a row


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["cascade", "single", "sum", "minrank"])
def test_a_rotation_of_a_view_changes_no_positive(kind, strategy):
    views, _ = two_views(240, seed=5)
    plan = CascadePlan(240, 3, 0.3, 3, strategy=strategy)
    turned = {view: rotated(rows, seed) for seed, (view, rows) in enumerate(views.items())}
    before, after = mined(views, plan, fit_space(kind, views)), mined(turned, plan, fit_space(kind, turned))
    assert (before == after).mean() > 0.995  # but for scores that rounding makes equal


# What they are good for


@pytest.mark.parametrize("seed", range(4))
def test_where_each_view_shows_something_louder_than_the_class_both_spaces_find_more_of_it(seed):
    views, label = two_views(600, seed=seed)
    raw, white, canonical = (
        np.mean([precision(rows, label) for rows in mapped(fit_space(kind, views), views).values()])
        for kind in ("raw", "white", "canonical")
    )
    assert white > raw + 0.05
    assert canonical > white + 0.05


def test_the_same_rows_give_the_same_space_and_a_sample_of_them_nearly_so(monkeypatch):
    views, _ = two_views(4000, seed=1)
    first, again = (fit_space("canonical", views, seed=4) for _ in range(2))
    for view in views:
        np.testing.assert_array_equal(first.matrices[view], again.matrices[view])
    monkeypatch.setattr(module, "FIT_ROWS", 2000)
    sampled = fit_space("white", views, seed=4), fit_space("white", views, seed=4)
    np.testing.assert_array_equal(sampled[0].matrices["rgb"], sampled[1].matrices["rgb"])
    full = slow_scores(first.apply("rgb", views["rgb"][:200]))
    part = slow_scores(fit_space("canonical", views, seed=4).apply("rgb", views["rgb"][:200]))
    off = ~np.eye(200, dtype=bool)
    assert np.corrcoef(full[off], part[off])[0, 1] > 0.98


# Where the rows do not carry them


def test_shuffled_pairs_share_nothing_so_canonical_stays_raw_and_says_so():
    views, _ = two_views(1000)
    views["rgb"] = views["rgb"][np.random.default_rng(1).permutation(1000)]
    space = fit_space("canonical", views)
    assert space.kind == "raw"
    assert "shared directions above chance" in space.why


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_fewer_rows_than_columns_stay_raw(kind):
    views, _ = two_views(16)
    space = fit_space(kind, views)
    assert (space.kind, space.apply("rgb", views["rgb"]) is views["rgb"]) == ("raw", True)
    assert "16 rows of width 16" in space.why


@pytest.mark.parametrize("dim", [8, 64])
def test_the_fewer_the_rows_the_more_the_covariance_is_shrunk_and_never_less_than_the_least(dim):
    shares = [shrinkage(rows, dim) for rows in (2, dim, 2 * dim, 10 * dim, 1_000_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1:3] == [1 / 2, 1 / 3]
    assert shares[-1] == LEAST_SHRINKAGE


@pytest.mark.parametrize(("count", "kind"), [(40, "raw"), (200, "canonical")])
def test_auto_goes_by_rows(count, kind):
    space = fit_space("auto", two_views(count)[0])
    assert space.kind == kind
    assert space.why.startswith("auto: ")


def test_auto_stays_raw_where_nothing_is_shared_and_where_there_is_one_view():
    views, _ = two_views(1000)
    views["rgb"] = views["rgb"][np.random.default_rng(1).permutation(1000)]
    spaces = fit_space("auto", views), fit_space("auto", {"rgb": views["rgb"]})
    assert [space.kind for space in spaces] == ["raw", "raw"]
    assert "fewer than 5 carry no space" in spaces[0].why
    assert spaces[1].why == "auto: one view, rgb, shares nothing with another"


def test_auto_wants_one_direction_more_than_who_asks_for_canonical():
    views, _ = two_views(2000, of_class=4, shared=2.0)
    asked, auto = fit_space("canonical", views), fit_space("auto", views)
    assert (asked.columns, auto.columns) == (4, None)
    assert auto.why.startswith("auto: 4 shared directions above chance")


def test_one_view_is_whitened_where_shared_directions_are_asked_for():
    views, _ = two_views(300)
    one = {"rgb": views["rgb"]}
    space = fit_space("canonical", one)
    assert space.kind == "white"
    assert space.why == "one view, rgb, shares nothing with another"
    np.testing.assert_array_equal(space.matrices["rgb"], fit_space("white", views).matrices["rgb"])


def test_a_collapsed_view_stays_raw():
    views, _ = two_views(300)
    views["rgb"] = np.repeat(views["rgb"][:1], 300, 0)
    assert fit_space("white", views).describe() == "raw (the rgb rows are all alike)"


def test_rows_that_are_not_finite_and_views_that_do_not_fit_are_refused():
    views, _ = two_views(300)
    with pytest.raises(BankError, match=r"fitted for residual, rgb, not for flow"):
        fit_space("white", views).apply("flow", views["rgb"])
    with pytest.raises(BankError, match=r"one view or two, \[n, D\] each; given"):
        fit_space("white", {"rgb": views["rgb"], "flow": views["rgb"][:9]})
    views["rgb"] = views["rgb"].copy()
    views["rgb"][7, 3] = np.nan
    with pytest.raises(BankError, match="rgb rows are not finite, so no mining space can be fitted"):
        fit_space("canonical", views)
