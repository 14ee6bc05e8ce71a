"""The bank's second table: only what changed is mapped, refits follow from rows and step, snapshots keep the space."""

import numpy as np
import pytest
import zarr

from tests.vidssl.mining.space_worlds import two_views, unit
from vidssl.batch import Embeddings
from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.cascade import mine
from vidssl.mining.mapped import MappedRows
from vidssl.mining.plan import CascadePlan
from vidssl.mining.pool import SlotPool
from vidssl.mining.rows import storage
from vidssl.mining.snapshots import load_snapshot, read_info, save_snapshot
from vidssl.mining.space import fit_space

N, D = 200, 16
PLAN = CascadePlan(N, 3, 0.4, 4)
VIEWS = ("residual", "rgb")
KINDS = ("white", "canonical", "auto")


def rows_of(slots, step, views):
    return Embeddings({view: rows[slots] for view, rows in views.items()}, np.asarray(slots, np.int64), step, 0)


def a_bank(kind, dtype="float32", refit_steps=10, seed=0):
    return EmbeddingBank(N, D, VIEWS, dtype=dtype, mapped=MappedRows(kind, refit_steps, seed))


def full(kind, step=3, dtype="float32", refit_steps=10):
    bank, (views, _) = a_bank(kind, dtype, refit_steps), two_views(N, D)
    bank.push(rows_of(np.arange(N), step, views))
    return bank, views


def ids(bank, slots=None):
    return bank.mine(np.arange(N) if slots is None else slots, PLAN, "residual", "rgb").ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_mines_in_the_space_of_its_rows_and_hands_out_raw_rows(kind):
    bank, views = full(kind)
    found = bank.mine(np.arange(N), PLAN, "residual", "rgb")
    space = fit_space(kind, views)
    images = [space.apply(view, rows) for view, rows in views.items()]
    own = [[slot] for slot in range(N)]
    np.testing.assert_array_equal(found.ids, mine(images, images, PLAN, exclude=own).ids)
    np.testing.assert_array_equal(found.vectors, views["rgb"][found.ids])
    raw = mine(list(views.values()), list(views.values()), PLAN, exclude=own).ids
    assert (found.ids != raw).mean() > 0.2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_after_any_pushes_the_images_are_those_of_a_bank_that_maps_everything_at_once(dtype):
    bank, _ = full("canonical", dtype=dtype, refit_steps=1000)
    ids(bank)
    rng = np.random.default_rng(1)
    for step in range(4, 12):
        slots, (views, _) = rng.choice(N, 7, replace=False), two_views(N, D, seed=step)
        bank.push(rows_of(slots, step, views))
        bank.push(rows_of(slots[:3], step, two_views(N, D, seed=99)[0]))  # of one step and slot the last row stays
        ids(bank, slots)
    bank.rewind(6)
    fresh = EmbeddingBank(N, D, VIEWS, dtype=dtype, mapped=bank.mapped.again(bank.mapped.fitted))
    fresh.apply(bank.changed_since(None))  # a mirror of it
    (former, _), (anew, _) = bank.mapped.tables(bank), fresh.mapped.tables(fresh)
    for view in former:
        assert former[view].dtype == storage(dtype)
        np.testing.assert_array_equal(former[view], anew[view])


def fits_of(bank, views):
    """Steps of the fits while 25 steps write ten rows each, round and round; the first one writes all."""
    fits = []
    for step in range(25):
        slots = np.arange(N) if step == 0 else np.arange(10 * step, 10 * step + 10) % N
        bank.push(rows_of(slots, step, views))
        ids(bank, slots[:5])
        fits.append(bank.mapped.fitted.step)
    return sorted(set(fits))


def test_a_space_is_fitted_at_first_and_when_half_of_the_rows_are_new_or_at_the_multiples_that_were_asked_for():
    views, _ = two_views(N, D)
    assert fits_of(a_bank("white", refit_steps=None), views) == [0, 10, 20]
    assert fits_of(a_bank("white", refit_steps=7), views) == [0, 7, 14, 21]


def test_while_a_bank_fills_its_space_follows():
    bank, (views, _) = a_bank("white", refit_steps=None), two_views(N, D)
    fits = []
    for step in range(20):
        bank.push(rows_of(np.arange(10 * step, 10 * step + 10), step, views))
        ids(bank, np.arange(5))
        fits.append(bank.mapped.fitted.step)
    assert sorted(set(fits)) == [0, 1, 3, 7, 15]


def test_a_bank_without_rows_or_with_few_mines_raw():
    bank, (views, _) = a_bank("canonical"), two_views(N, D)
    assert (ids(bank) == -1).all()
    bank.push(rows_of(np.arange(12), 0, views))
    found = bank.mine(np.arange(12), CascadePlan(12, 1, k=2), "residual", "rgb").ids
    scores = views["residual"][:12] @ views["residual"][:12].T - 9 * np.eye(12)
    np.testing.assert_array_equal(found, np.argsort(-scores, axis=1)[:, :2])
    assert (
        bank.mapped.news
        == "mining space from step 0: raw (12 rows of width 16 fit no map; it needs more rows than columns)"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_from_a_snapshot_mines_what_it_would_have_mined(kind, tmp_path):
    straight, _ = full(kind)
    ids(straight)
    for step in (4, 5):
        straight.push(rows_of(np.arange(step, N, 7), step, two_views(N, D, seed=step)[0]))
        ids(straight, np.arange(9))
    expected = straight.mapped.fitted
    path = save_snapshot(straight, tmp_path, 6)
    again = load_snapshot(path, a_bank(kind))
    assert again.mapped.fitted.step == expected.step == 3
    assert again.mapped.fitted.space.describe() == expected.space.describe()
    for step in (6, 7, 11):  # a fit of step 3 that a fit from these rows would not repeat, then one at 11
        for bank in (straight, again):
            bank.push(rows_of(np.arange(step, N, 5), step, two_views(N, D, seed=step)[0]))
        np.testing.assert_array_equal(ids(straight), ids(again))
    assert again.mapped.fitted.step == 11


def test_a_snapshot_says_its_space_and_another_one_is_fitted_where_another_is_asked_for(tmp_path):
    bank, _ = full("canonical")
    ids(bank)
    path = save_snapshot(bank, tmp_path, 4)
    words = read_info(path).space
    assert (words["asked"], words["kind"], words["views"]) == ("canonical", "canonical", ["residual", "rgb"])
    assert "shared directions above chance" in words["why"]
    np.testing.assert_array_equal(ids(load_snapshot(path)), ids(bank))  # who only looks sees what the run saw
    other = load_snapshot(path, a_bank("white"))
    assert other.mapped.fitted is None
    np.testing.assert_array_equal(ids(other), ids(full("white")[0]))
    np.testing.assert_array_equal(ids(load_snapshot(path, a_bank("raw"))), ids(full("raw")[0]))


def test_a_space_that_is_not_what_was_written_is_refused(tmp_path):
    bank, _ = full("white")
    ids(bank)
    path = save_snapshot(bank, tmp_path, 4)
    array = zarr.open_group(str(path), mode="r+")["space-matrix-rgb"]
    array[0, 0] = array[0, 0] + 1
    with pytest.raises(BankError, match=r"is damaged \(its mining space is not what was written\)"):
        load_snapshot(path, a_bank("white"))


def test_a_raw_bank_keeps_no_second_table_and_writes_no_space(tmp_path):
    bank, _ = full("raw")
    ids(bank)
    assert bank.mapped.tables(bank)[0] is bank.views
    assert read_info(save_snapshot(bank, tmp_path, 4)).space == {}


def test_a_pool_is_drawn_anew_when_the_space_is_another():
    views, _ = two_views(N, D)
    pool = SlotPool(150, every_rows=10_000)
    bank = EmbeddingBank(N, D, VIEWS, pool=pool, mapped=MappedRows("white", 10))
    bank.push(rows_of(np.arange(N), 3, views))
    ids(bank, np.arange(5))
    bank.push(rows_of(np.arange(N), 13, two_views(N, D, seed=5)[0]))
    found = ids(bank, np.arange(5))
    slots = pool._drawn.slots
    image = bank.mapped.tables(bank)[0]
    again = mine(
        [image[view][:5] for view in VIEWS],
        [image[view][slots] for view in VIEWS],
        PLAN,
        exclude=[np.flatnonzero(slots == slot) for slot in range(5)],
    )
    np.testing.assert_array_equal(found, slots[again.ids])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["raw", "white", "canonical"])
def test_one_table_of_both_rows_mines_what_their_sum_mines(kind, dtype):
    bank, views = full(kind, dtype=dtype)
    rng = np.random.default_rng(0)
    for step in (4, 15):  # rows that change, and a new space
        moved = {view: unit(rows + 0.02 * rng.standard_normal(rows.shape)) for view, rows in views.items()}
        bank.push(rows_of(np.arange(step, N, 3), step, moved))
        by_sum, by_one = (
            bank.mine(np.arange(N), CascadePlan(N, 1, k=4, strategy=strategy), *VIEWS) for strategy in ("sum", "joint")
        )
        assert (by_sum.ids == by_one.ids).mean() > 0.99  # but for sums that float32 makes equal
        np.testing.assert_array_equal(by_one.vectors, bank.vectors(by_one.ids, "rgb"))
    (joined, _), (tables, _) = bank.mapped.joint(bank), bank.mapped.tables(bank)
    np.testing.assert_array_equal(joined, np.concatenate([tables[view] for view in VIEWS], 1))
    assert kind == "raw" or all(np.shares_memory(joined, rows) for rows in tables.values())


def test_on_an_integer_grid_the_joint_table_equals_the_oracles_sum_ties_included():
    rng = np.random.default_rng(3)
    rows = {view: rng.integers(-1, 2, (N, 6)).astype(np.float32) for view in VIEWS}
    bank = EmbeddingBank(N, 6, VIEWS)
    bank.fill(rows, np.zeros(N, np.int64), 0)
    plan = CascadePlan(N, 1, k=6, strategy="joint")
    exclude = bank.exclusions(np.arange(N))
    slow = mine(list(rows.values()), list(rows.values()), plan, exclude=exclude, backend="oracle")
    np.testing.assert_array_equal(bank.mine(np.arange(N), plan, *VIEWS).ids, slow.ids)
