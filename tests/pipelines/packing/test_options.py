from __future__ import annotations

import json
from fractions import Fraction

import pytest

from pipelines.packing.options import PackOptions, pack_options
from pipelines.packing.part import Cut
from vidssl.errors import RecipeError


def test_words_become_typed_options():
    options = pack_options(["size=160", "fps=29.97", "codec=vp9", "fresh=true", "fold=2", "group=_(g[0-9]+)_"])
    assert (options.size, options.codec, options.fresh, options.fold) == (160, "vp9", True, 2)
    assert options.target().fps == Fraction(30000, 1001)
    assert options.target().crf == 34
    assert PackOptions().target().crf == 23


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("size", "'size' is no option; type key=value, e.g. size=160"),
        ("sise=160", "unknown option 'sise'; did you mean 'size'?"),
        ("qqq=1", "unknown option 'qqq'; there are codec, fps, size"),
        ("size=64", "size=64: input should be greater than or equal to 128"),
        ("size=131", "size=131: input should be a multiple of 2"),
        ("codec=av1", "codec=av1: input should be 'h264' or 'vp9'"),
        ("crf=60", "crf=60: h264 takes 0 to 51"),
        ("group=g1", "group=g1: the expression has no (...) to take the group from"),
        ("group=(", "group=(: no regular expression: "),
        ("test_share=1", "test_share=1: input should be less than 1"),
        ("timeout=inf", "timeout=inf: input should be a finite number"),
        ("timeout=nan", "timeout=nan: input should be a finite number"),
        ("timeout=-1", "timeout=-1: input should be greater than 0"),
        ("timeout=1e300", "timeout=1e300: input should be less than or equal to 86400"),
        ("max_seconds=inf", "max_seconds=inf: input should be a finite number"),
        ("max_seconds=0", "max_seconds=0: input should be greater than 0"),
        ("max_minutes=nan", "max_minutes=nan: input should be a finite number"),
        ("max_minutes=-5", "max_minutes=-5: input should be greater than 0"),
        ("memory_mb=0", "memory_mb=0: input should be greater than or equal to 1024"),
        ("memory_mb=1e99", "memory_mb=1e99: input should be"),
        ("shard_mb=inf", "shard_mb=inf: input should be a finite number"),
        ("fps=natural", "fps=natural: input should be a number, or source for each video's own"),
        ("label_key=json", "label_key=json: input should be cls, txt or json.KEY, e.g. json.label"),
        ("group_key=json..x", "group_key=json..x: input should be cls, txt or json.KEY, e.g. json.label"),
        ("fps=nan", "fps=nan: input should be"),
        ("max_aspect=nan", "max_aspect=nan: input should be"),
        ("test_share=nan", "test_share=nan: input should be"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("seed=100000000000000000000000", "seed=100000000000000000000000: input should be less than"),
        ("size=100000000000000000000000", "size=100000000000000000000000: input should be less than"),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(word, sentence):
    with pytest.raises(RecipeError) as refused:
        pack_options([word])
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_the_rate_of_the_source_is_a_word_and_another_pack():
    kept = pack_options(["fps=source"])
    assert (kept.target().own_rate, PackOptions().target().own_rate) == (True, False)
    assert kept.identity() != PackOptions().identity()
    assert pack_options(["fps=25"]).identity() == PackOptions(fps=25).identity() == PackOptions().identity()


def test_two_ways_to_name_the_source_are_refused():
    with pytest.raises(RecipeError, match=r"^group=\(a\) and group_key=txt both name the source; type one of them$"):
        pack_options(["group=(a)", "group_key=txt"])


def test_what_does_not_change_the_bytes_is_not_part_of_the_identity():
    given = PackOptions(timeout=5, max_seconds=5, memory_mb=2000, fresh=True)
    assert given.identity() == PackOptions().identity()
    assert (given.limits().timeout, given.limits().max_seconds, given.limits().memory_mb) == (5, 5, 2000)
    assert PackOptions(max_minutes=1).identity() != PackOptions().identity()
    assert PackOptions(crf=24).identity() != PackOptions().identity()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cut=10"], r"cut=10: input should be none, scenes, or the seconds of a clip from 0\.5s on, e\.g\. 10s"),
        (["cut=0.1s"], r"cut=0\.1s: input should be none, scenes, or the seconds"),
        (["cut_min=2"], "cut_min=2 is about clips, and cut=none makes none; type cut=10s or cut=scenes"),
        (["cut=5s", "cut_min=9"], "cut_min=9 rejects every clip of cut=5s; type cut_min=5 or less"),
        (["cut=5s", "cut_threshold=9"], "cut_threshold=9 is about scenes, and cut=5s looks for none; type cut=scenes"),
        (["duplicates=yes"], "duplicates=yes: input should be 'keep', 'siblings' or 'drop'"),
    ],
)
def test_words_about_clips_and_copies_that_mean_nothing_are_refused_in_a_sentence(words, sentence):
    with pytest.raises(RecipeError, match=sentence):
        pack_options(words)


def test_packs_without_cuts_and_duplicates_are_the_packs_that_were_made_before_there_were_any():
    said = json.loads(PackOptions().identity())
    assert not {"cut", "cut_min", "cut_threshold", "duplicates"} & said.keys()
    assert json.loads(PackOptions(cut="scenes", duplicates="drop").identity()).keys() - said.keys() == {
        *("cut", "cut_min", "cut_threshold", "duplicates"),
    }


def test_the_shortest_clip_is_a_second_or_half_of_what_is_cut():
    assert PackOptions().cutting() is None
    assert [PackOptions(cut=word).cutting() for word in ("10s", "1.5s", "scenes")] == [
        Cut(10.0, 1.0, 6.0),
        Cut(1.5, 0.75, 6.0),
        Cut(None, 1.0, 6.0),
    ]
