from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.checksums import damaged_parts, pieces_of, sealed, unsealed
from pipelines.dataset.fmp4 import fragment_table, fragments_of_window
from tests.pipelines.small_packs import encode, moving

MP4 = encode(moving(0), 50, 128, 128, "h264")
TABLE = fragment_table(MP4)
IDX, JSON = bytes(24), b'{"key": "00000007"}'
WORDS = sealed(TABLE, MP4, IDX, JSON)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_the_pieces_of_a_sample_cover_every_byte_once():
    pieces = pieces_of(TABLE, len(MP4))
    assert len(pieces) == TABLE[2] + 2
    assert b"".join(MP4[begin:stop] for begin, stop in pieces) == MP4


def test_the_checksums_are_those_of_zlib_and_the_table_stays_as_it_was():
    table, checks = unsealed(WORDS)
    parts = [MP4[begin:stop] for begin, stop in pieces_of(TABLE, len(MP4))]
    assert np.array_equal(table, TABLE)
    assert checks is not None
    assert checks.tolist() == [zlib.crc32(part) for part in (*parts, IDX, JSON)]


def test_the_pieces_of_a_window_are_pieces_with_a_checksum_of_their_own():
    """A reader that fetches a window's fragments alone can check each byte of it."""
    pieces = set(pieces_of(TABLE, len(MP4)))
    for start in range(0, 50, 7):
        (head, (begin, stop)), _ = fragments_of_window(TABLE, start, 20)
        assert head in pieces
        inside = [piece for piece in pieces if begin <= piece[0] and piece[1] <= stop]
        assert sum(last - first for first, last in inside) == stop - begin


@given(st.sampled_from(["mp4", "idx", "json"]), st.data())
@settings(max_examples=80, deadline=None)
def test_any_flipped_bit_is_found_and_its_piece_named(name, data):
    parts = {"mp4": MP4, "idx": IDX, "json": JSON}
    bit = data.draw(st.integers(0, 8 * len(parts[name]) - 1))
    (found,) = damaged_parts({**parts, name: flipped(parts[name], bit)}, *unsealed(WORDS))
    assert found[0] == name
    assert found[1][0] <= bit // 8 < found[1][1]
    assert name != "mp4" or found[1] in pieces_of(TABLE, len(MP4))


def test_neighbouring_damage_is_one_range():
    begin, stop = pieces_of(TABLE, len(MP4))[1][0], pieces_of(TABLE, len(MP4))[2][1]
    changed = MP4[:begin] + bytes(stop - begin) + MP4[stop:]
    assert damaged_parts({"mp4": changed, "idx": IDX, "json": JSON}, *unsealed(WORDS)) == [("mp4", (begin, stop))]


def test_words_without_checksums_are_a_table_alone():
    table, checks = unsealed(TABLE)
    assert np.array_equal(table, TABLE)
    assert checks is None


@pytest.mark.parametrize(
    "words",
    [[], [50, 1, 0], WORDS[:-1], TABLE[:-1], [0, 9, 1, 9, 20, 0, 0], [5, 0, 1, 9, 20, 0, 5], [5, 9, 1, 20, 9, 0, 5],
     [5, 9, 1, 9, 20, 0, 6], [5, 9, 2**31 - 1, 9, 20, 0, 5]],
)  # fmt: skip
def test_words_that_are_no_table_are_refused(words):
    with pytest.raises(ValueError, match="no fragment table"):
        unsealed(np.array(words, np.int32))
