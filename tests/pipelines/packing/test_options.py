from __future__ import annotations

from fractions import Fraction

import pytest

from pipelines.packing.options import PackOptions, pack_options
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
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(word, sentence):
    with pytest.raises(RecipeError) as refused:
        pack_options([word])
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_what_does_not_change_the_bytes_is_not_part_of_the_identity():
    assert PackOptions(timeout=5, fresh=True).identity() == PackOptions().identity()
    assert PackOptions(crf=24).identity() != PackOptions().identity()
