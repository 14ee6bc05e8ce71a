from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from cluster.commands.handlers import report
from cluster.commands.words import Words
from cluster.page.histogram import counts, histogram
from cluster.report.packed import contents_of, counted, read_verdicts
from cluster.report.packed_page import is_packed, write_data_report
from pipelines.pack import PackOptions, pack
from tests.cluster.report.test_write import Words as Page
from tests.pipelines.footage import write_video
from vidssl.errors import DataError, RecipeError, StorageError

FRAMES = (30, 45, 60, 60)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Four videos of two classes, a copy of the last one, and two that are no videos."""
    root = tmp_path_factory.mktemp("source")
    for number, frames in enumerate(FRAMES):
        write_video(
            root / ("run" if number % 2 else "walk <b>") / f"v{number}.mp4", frames, 128, 128, corner=number > 2
        )
    write_video(root / "run" / "v3 again.mp4", FRAMES[-1], 128, 128, corner=True, options={"crf": "30"})
    (root / "run" / "no.mp4").write_bytes(b"nothing")
    write_video(root / "run" / "short.mp4", frames=3)
    out = tmp_path_factory.mktemp("out") / "my data"
    return pack("folder", root, out, PackOptions(duplicates="siblings"), workers=1)


def test_the_page_and_the_lines_say_what_is_in_the_data(packed):
    said: list[str] = []
    place = write_data_report(packed.root, None, said.append)
    assert place == packed.root / "report.html"
    text = place.read_text()
    page = Page(text)
    assert not page.open
    assert not page.unbalanced
    for words in (
        "5 videos",
        "walk <b>",
        "128×128",
        "h264",
        "25 fps",
        "my data",
        packed.hash,
        "only … frames (min_frames=…)",
    ):
        assert words in page.text or words in re.sub(r"\s+", " ", page.text), words
    assert not re.search(r"""(src|href)=["']?(?!["']?(data:|#))""", text)
    assert text.count('<img src="data:image/jpeg') >= 4
    seconds = (sum(FRAMES) + FRAMES[-1]) / 25
    assert f"5 videos, {seconds / 3600:.2f} hours" in said[0]
    assert "2 classes, 4 groups, the largest of 2 videos" in said[0]
    assert "1 video is a copy (0 mirrored), siblings of what they copy; 2 rejected" in said[0]
    assert "1 × opening failed: Invalid data found when processing input, e.g. 'run/no.mp4'" in said[0]


def test_numbers_are_those_of_the_manifest_and_the_verdicts(packed):
    contents = contents_of(packed.root)
    assert dict(contents.of_class) == {"run": 3, "walk <b>": 2}
    assert contents.verdicts.copies == [("run/v3.mp4", "run/v3 again.mp4", False)]
    assert list(contents.splits()) == [("all", 5, contents.hours, 2, 4)]
    assert np.allclose(np.sort(contents.seconds), np.sort([*FRAMES, FRAMES[-1]]) / np.array(25.0))
    assert dict(contents.originals())["size"] == [("128×128", 5)]
    assert contents.torn == 0


def test_a_pack_without_verdicts_or_with_damaged_ones_has_a_page_that_says_so(packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packed.root, copy)
    (copy / "verdicts.csv").unlink()
    said: list[str] = []
    write_data_report(copy, None, said.append)
    assert "verdicts.csv cannot be read (No such file or directory), so nothing is known of the originals" in said[0]
    (copy / "verdicts.csv").write_text("path,verdict\na,b\n")
    assert read_verdicts(copy).missing == "verdicts.csv is damaged, so nothing is known of the originals"
    write_data_report(copy, None, said.append)
    assert "verdicts.csv is damaged" in (copy / "report.html").read_text()


def test_nothing_that_is_no_page_of_ours_is_written_over(packed, tmp_path):
    (tmp_path / "thesis.html").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.html is no page of a data report, and is left alone; give another"):
        write_data_report(packed.root, str(tmp_path / "thesis.html"), lambda line: None)
    assert (tmp_path / "thesis.html").read_text() == "mine"
    with pytest.raises(DataError, match=r"is a folder; give the name of a page, e\.g\. out="):
        write_data_report(packed.root, str(tmp_path), lambda line: None)
    with pytest.raises(
        StorageError, match=r"cannot be written .*; type vidssl report .* out=PAGE\.html to write it elsewhere"
    ):
        write_data_report(packed.root, str(tmp_path / "no" / "page.html"), lambda line: None)
    for _ in range(2):
        write_data_report(packed.root, str(tmp_path / "page.html"), lambda line: None)


def test_words_of_a_run_and_of_packed_data_are_not_mixed_up(packed, tmp_path):
    def typed(home, *settings):
        return report(Words({"RUN|SWEEP|PACKED": str(home)}, {}, settings, ()))

    assert is_packed(packed.root)
    assert not is_packed(tmp_path)
    with pytest.raises(RecipeError, match=r"'data=x' is no setting of a report on packed data; type out=PAGE\.html"):
        typed(packed.root, "data=x")
    with pytest.raises(RecipeError, match=r"'out=x' is no setting of a run's report; type data=FOLDER where the data"):
        typed(tmp_path, "out=x")


def test_a_histogram_counts_every_value_once_and_gathers_the_far_ones_in_its_last_bar():
    values = np.concatenate([np.linspace(0, 10, 1000), [500.0]])
    told = re.findall(r"<title>(\d+): ([\d.]+) to ([\d.]+) s", histogram(values, "s"))
    assert sum(int(number) for number, _, _ in told) == 1001
    assert float(told[-1][2]) < 11
    assert "≥ " in histogram(values, "s")
    assert "≥ " not in histogram(np.array([3.0, 3.0]), "s")
    assert "Nothing to count" in histogram(np.zeros(0), "s")


def test_of_many_counts_the_first_are_shown_and_the_rest_are_counted():
    text = counts([(f"<{i}>", 10 - i) for i in range(5)], most=2)
    assert "&lt;1&gt;" in text
    assert "&lt;2&gt;" not in text
    assert "and 3 more, 21 of 40" in text


def test_one_is_not_many():
    assert [counted(number, noun) for number, noun in ((0, "video"), (1, "video"), (1, "class"), (2, "class"))] == [
        "0 videos",
        "1 video",
        "1 class",
        "2 classes",
    ]
