"""The sizing table is arithmetic: what is needed, what one process does, how many keep up, and wrong words are refused."""

from __future__ import annotations

import math

import pytest

from vidssl.errors import RecipeError
from vidssl.mining.sizing import RATES, Sizing, sizing_lines, sizing_modes

WORDS = ["slots=100M", "views=2", "workers=64", "step_s=.25"]


def modes(*words):
    return {mode.name.split(",")[0].split(" of ")[0]: mode for mode in sizing_modes(asked(*words))}


def asked(*words):
    return Sizing.model_validate(dict(word.split("=") for word in (*WORDS, *words) if word))


def test_the_numbers_of_an_example_are_those_of_a_hand():
    found = modes()
    needed = 64 * 32 / 0.25
    assert asked().needed == needed == 8192
    per_core = 1e6 / 4.4e-3 / 100e6  # comparisons per second over slots
    assert found["miners CPU"].rows_per_s == pytest.approx(4 * per_core)
    assert found["miners CPU"].processes == math.ceil(needed / (4 * per_core))
    assert found["miners CPU"].bytes_each == 100e6 * (2 * 128 * 2 + 40)
    assert "shards or a pool" not in found["miners CPU"].note  # 55 GB fit into 64
    assert found["bank's process"].age_epochs == pytest.approx(needed / (4 * per_core))
    assert found["pool"].rows_per_s == pytest.approx(100 * found["miners CPU"].rows_per_s)
    assert found["shards"].bytes_each <= 64e9


def test_what_grows_grows_and_what_does_not_stays():
    small, large, fast = modes("slots=1M"), modes("slots=10M"), modes("slots=1M", "step_s=.125")
    for name in ("bank's process", "miners CPU", "miners GPU", "shards"):
        assert small[name].rows_per_s > large[name].rows_per_s
        assert small[name].bytes_each < large[name].bytes_each
    assert small["pool"].rows_per_s == large["pool"].rows_per_s
    assert small["inline"] == large["inline"]
    assert fast["miners CPU"].processes in (2 * small["miners CPU"].processes - 1, 2 * small["miners CPU"].processes)
    assert all(mode.step_ms == 0 for name, mode in small.items() if name != "inline")


def test_a_bank_that_keeps_up_has_no_age_and_one_that_does_not_says_what_to_use():
    found = modes("slots=10k", "workers=1", "stages=7", "ratio=.5")
    assert (found["bank's process"].age_epochs, found["bank's process"].note) == (0, "keeps up")
    assert "use miners, a pool or a GPU" in modes()["bank's process"].note
    assert "more than 1 GB each" in modes("memory_gb=1")["miners CPU"].note


def test_the_table_says_where_every_rate_is_from_and_which_are_estimates():
    text = "\n".join(sizing_lines(WORDS))
    assert "100M videos, 2 views of 128 in float16: 51.2 GB of rows" in text
    assert "need 8,192 mined rows/s; an epoch takes 3.39 h" in text
    for rate in RATES.values():
        assert rate.source in text
        assert rate.measured == ("estimate" not in rate.source)
    starred = [line for line in text.splitlines() if line.endswith(" *")]
    assert [line.split("  ")[0] for line in starred] == ["miners GPU", "shards"]
    assert all(len(line) <= 120 for line in sizing_lines(WORDS)[:-3])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], r"how many videos\? Type slots=N"),
        (["workers=3"], r"how many videos\? Type slots=N"),
        (["slots"], r"'slots' is no setting; type key=value"),
        (["slots=1M", "slots=2M"], "slots is given twice: slots=1M and slots=2M"),
        (["slots=many"], r"slots='many': input should be a valid integer"),
        (["slots=.M"], r"slots='\.M': input should be a valid integer"),
        (["slots=0"], r"slots='0': input should be greater than or equal to 1"),
        (["slots=1M", "wokers=3"], "unknown key 'wokers'; did you mean 'workers'"),
        (["slots=1M", "step_s=0"], "step_s='0': input should be greater than 0"),
        (["slots=1M", "stages=9", "ratio=.1"], "fewer than mining.topk=5"),
    ],
)
def test_wrong_words_are_refused_in_a_sentence(words, sentence):
    with pytest.raises(RecipeError, match=sentence) as error:
        sizing_lines(words)
    assert "\n" not in str(error.value)
