"""What one point measures, held against counts that are written out video by video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.mine.measure import measure
from cluster.mine.study import About, Study, carried, study_of_rows
from cluster.mine.table import table_text
from cluster.mine.words import Point, Search
from vidssl.errors import RecipeError
from vidssl.mining.cascade import mine
from vidssl.mining.exclusions import GroupIndex
from vidssl.mining.space import fit_space
from vidssl.recipe import Recipe

N, CLASSES, DIM, K = 90, 6, 16, 4


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def study(views: int = 2, labelled: bool = True, queries: int = 4096, seed: int = 0) -> Study:
    """Class direction plus a nuisance of each view's own; three videos a source, some of unknown class."""
    rng = np.random.default_rng(seed)
    label = np.arange(N) % CLASSES
    rows = {
        name: unit(0.7 * rng.normal(size=(CLASSES, DIM))[label] + rng.normal(size=(N, DIM)))
        for name in ("residual", "rgb")[:views]
    }
    label = np.where(np.arange(N) % 11 == 0, -1, label) if labelled else np.full(N, -1)
    about = About("a bank", N, "hash", tuple("abcdef"))
    return study_of_rows(rows, np.arange(N) // 3, label, Search(queries=queries), Recipe(), about)


def mined(one: Study, point: Point) -> np.ndarray:
    """The ids of a strategy that the engine itself knows."""
    exclude = GroupIndex(one.group).exclusions(one.group[one.queries])
    rows = one.rows_in("raw")
    return mine([view[one.queries] for view in rows], rows, point.plan(N, "main"), exclude=exclude).ids


@pytest.mark.parametrize("point", [Point("cascade", 3, 12, K), Point("single", 1, N, K), Point("minrank", 1, N, K)])
def test_class_mining_recall_is_the_share_of_a_class_that_another_of_the_class_mined(point):
    one = study()
    found = measure(one, point)
    by_class: dict[int, set[int]] = {c: set() for c in range(CLASSES)}
    for query, ids in zip(one.queries, mined(one, point), strict=True):
        for video in ids:
            if one.label[query] >= 0 and one.label[video] == one.label[query]:
                by_class[int(one.label[query])].add(int(video))
    expected = {c: len(videos) / (one.label == c).sum() for c, videos in by_class.items()}
    assert found.recall == pytest.approx(expected)
    assert found.row.class_mining_recall_median == pytest.approx(np.median(list(expected.values())))
    assert found.row.class_mining_recall_least == pytest.approx(min(expected.values()))
    assert found.row.coverage == pytest.approx(sum(map(len, by_class.values())) / (one.label >= 0).sum())


def test_hubness_is_the_skewness_of_how_often_each_video_is_mined():
    one, point = study(), Point("sum", 1, N, K)
    times = [int((mined(one, point) == video).sum()) for video in range(N)]
    centred = [t - sum(times) / N for t in times]
    expected = sum(c**3 for c in centred) / N / (sum(c**2 for c in centred) / N) ** 1.5
    assert measure(one, point).row.hubness == pytest.approx(expected)


def test_purity_is_told_by_stage_and_ends_with_the_precision():
    one, point = study(), Point("cascade", 5, 8, K)
    found = measure(one, point)
    plan, known = point.plan(N, "main"), one.label[one.queries] >= 0
    exclude = GroupIndex(one.group).exclusions(one.group[one.queries])
    rows = one.rows_in("raw")
    stages = mine([view[one.queries] for view in rows], rows, plan, exclude=exclude, trace=True).stages
    for share, ids in zip(found.purity, stages, strict=True):
        there = (ids >= 0) & known[:, None]
        assert share == pytest.approx((there & (one.label[ids] == one.label[one.queries][:, None])).sum() / there.sum())
    assert found.purity[-1] == pytest.approx(found.row.precision_at_k)


def test_the_aux_view_alone_is_single_with_the_views_exchanged():
    one = study()
    swapped = study_of_rows(
        {"rgb": one.aux, "residual": one.main}, one.group, one.label, Search(), Recipe(), About("a bank", N)
    )
    aux, single = measure(one, Point("aux", 1, N, K)).row, measure(swapped, Point("single", 1, N, K)).row
    assert (aux.precision_at_k, aux.hubness) == (single.precision_at_k, single.hubness)


def test_lots_are_the_floor_and_class_mates_the_ceiling():
    one = study()
    floor, ceiling = (measure(one, Point(name, 1, N, K)).row for name in ("random", "oracle"))
    single = measure(one, Point("single", 1, N, K)).row
    assert floor.precision_at_k == pytest.approx(one.chance(), abs=0.05)
    assert floor.precision_at_k < single.precision_at_k < ceiling.precision_at_k == 1
    assert floor.sibling_rate == ceiling.sibling_rate == single.sibling_rate == 0
    most = measure(one, Point("oracle", 1, N, 30)).row  # a class has 13 or 14 known videos, three of them of one source
    assert 0.3 < most.precision_at_k < 0.5


def test_without_labels_there_is_no_precision_and_with_one_view_no_agreement():
    bare = measure(study(labelled=False), Point("single", 1, N, K))
    assert (bare.row.precision_at_k, bare.row.class_mining_recall_median, bare.recall, bare.purity) == (
        None,
        None,
        {},
        (),
    )
    assert bare.row.agreement is not None
    assert measure(study(views=1), Point("single", 1, N, K)).row.agreement is None


def test_of_a_sample_of_queries_the_recall_is_called_a_lower_bound():
    whole, part = study(), study(queries=30)
    points = [Point("single", 1, N, K), Point("cascade", 3, 12, K)]
    rows = {name: [measure(one, point).row for point in points] for name, one in (("whole", whole), ("part", part))}
    assert rows["part"][0].class_mining_recall_median < rows["whole"][0].class_mining_recall_median
    assert "Only 30 of 90 videos asked, so it is a lower bound; type queries=90" in "\n".join(
        table_text(rows["part"], part, "precision_at_k", K)
    )
    text = "\n".join(table_text(rows["whole"], whole, "precision_at_k", K))
    assert "Class mining recall: share of a class's videos that another video of the class mined" in text
    assert "lower bound" not in text


def test_mining_in_a_space_is_mining_in_the_mapped_rows_and_agreement_is_of_the_rows_as_they_are():
    one = study()
    mapped = fit_space("white", {"residual": one.main, "rgb": one.aux})
    rows = {"residual": mapped.apply("residual", one.main), "rgb": mapped.apply("rgb", one.aux)}
    beside = study_of_rows(rows, one.group, one.label, Search(), Recipe(), About("a bank", N))
    for point in (Point("cascade", 3, 12, K), Point("sum", 1, N, K)):
        here, there = measure(one, replace(point, space="white")), measure(beside, point)
        assert here.recall == there.recall
        assert here.row.hubness == there.row.hubness
        ids = mined(beside, point)
        lower = [min(one.main[q] @ one.main[i], one.aux[q] @ one.aux[i]) for q in range(N) for i in ids[q]]
        assert here.row.agreement == pytest.approx(np.mean(lower), abs=1e-5)


def test_a_space_that_the_rows_do_not_carry_is_left_out_in_a_sentence_or_refused_where_it_is_all_that_was_asked_for():
    rng = np.random.default_rng(0)
    few = study_of_rows(
        {name: unit(rng.normal(size=(12, DIM))) for name in ("residual", "rgb")},
        np.arange(12),
        np.arange(12) % 2,
        Search(),
        Recipe(),
        About("a bank", 12),
    )
    search, notes = carried(few, Search())
    assert search.spaces == ("raw",)
    assert notes[0] == "white rows are left out: 12 rows of width 16 fit no map; it needs more rows than columns"
    assert notes[1].startswith("canonical rows are left out: 12 rows")
    with pytest.raises(RecipeError, match=r"spaces=\['white'\]: white rows are left out: .*; type spaces=raw"):
        carried(few, Search(spaces=("white",)))


def test_where_one_stage_is_no_worse_its_words_are_given_too():
    one = study()
    rows = [measure(one, point).row for point in (Point("cascade", 3, 12, K), Point("single", 1, N, K))]
    best, rival = (
        replace(row, precision_at_k=share, precision_se=0.02) for row, share in zip(rows, (0.5, 0.48), strict=True)
    )
    said = table_text([best, rival], one, "precision_at_k", K)
    assert (
        f"to paste: mining.strategy=cascade mining.stages=3 mining.pool=12 mining.topk={K} mining.last_view=main"
        in said
    )
    assert f"one stage, and no worse within two standard errors: mining.strategy=single mining.topk={K}" in said
    far = table_text([best, replace(rival, precision_at_k=0.3)], one, "precision_at_k", K)
    assert not [line for line in far if line.startswith("one stage, and no worse")]
