"""When mining does not keep up the run says so once, with the cause that the numbers show and what to type."""

from __future__ import annotations

from cluster.bank.alarm import AgeAlarm, FallbackAlarm, alarms_of
from tests.cluster.bank.bank_parts import spec


def said(fallback, steps=range(9, 400, 10), alarm=None, **numbers):
    alarm = alarm or FallbackAlarm()
    row = {f"bank/{name}": value for name, value in numbers.items()}
    lines = [alarm.note({"step": step, "bank/fallback_ratio": fallback} | row) for step in steps]
    return [line for line in lines if line]


def test_up_to_a_twentieth_nothing_is_said():
    assert said(0.05, mined_per_s=10.0, needed_per_s=900.0) == []


def test_nothing_is_said_before_a_hundred_steps_and_then_once():
    assert said(0.5, steps=range(9, 98, 10)) == []
    assert len(said(0.5)) == 1


def test_miners_that_are_too_slow_are_named_with_what_to_set():
    (line,) = said(0.23, mined_per_s=420.0, needed_per_s=1280.0)
    assert line.startswith(
        "over the last 100 steps 23 % of a rank's rows were trained without mined positives: "
        "420 rows/s are mined and 1,280 are needed; type "
    )


def test_shards_that_are_too_slow_are_to_be_more_for_a_recipe_with_miners_would_be_refused():
    (line,) = said(0.23, alarm=FallbackAlarm(3), mined_per_s=420.0, needed_per_s=1280.0)
    assert line.endswith("420 rows/s are mined and 1,280 are needed; type mining.shards=10, or a smaller mining.stages")


def test_answers_that_come_too_late_are_told_from_slow_miners():
    (line,) = said(0.3, mined_per_s=1280.0, needed_per_s=1280.0)
    assert line.endswith("1,280 rows/s are mined: answers come too late; type a larger mining.lookahead")


def test_a_bank_that_is_asked_too_often_is_told_from_slow_miners():
    alarm = FallbackAlarm()
    row = {"bank/fallback_ratio": 0.4, "bank/mined_per_s": 100.0, "bank/needed_per_s": 1280.0}
    lines = [alarm.note({**row, "step": step, "bank/dropped": step / 3}) for step in range(9, 300, 10)]
    (line,) = [line for line in lines if line]
    assert line.endswith(
        "the bank's process is asked more often than it can answer, and 30 pushes of a rank were dropped; fewer workers with a "
        "larger trainer.batch ask less often (docs/scaling.md)"
    )


def test_videos_that_were_never_seen_are_no_alarm():
    assert said(0.9, unseen_ratio=0.9) == []


def test_it_is_said_again_when_it_was_well_in_between():
    alarm = FallbackAlarm()
    lines = [
        said(share, range(start + 9, start + 300, 10), alarm) for share, start in ((0.5, 0), (0.0, 300), (0.5, 600))
    ]
    assert [len(one) for one in lines] == [1, 0, 1]


def test_a_run_without_a_bank_has_no_alarm():
    assert FallbackAlarm().note({"step": 500, "loss": 1.0}) == ""


def aged(age, alarm=None, steps=range(9, 400, 10), mined=420.0, needed=1280.0):
    alarm = alarm or AgeAlarm(50, 16384)
    row = {"bank/age_p99": age, "bank/mined_per_s": mined, "bank/needed_per_s": needed}
    return [line for line in [alarm.note({"step": step} | row) for step in steps] if line]


def test_positives_that_grow_old_are_said_once_with_what_to_set():
    (line,) = aged(160.0)
    assert line == (
        "mined positives are up to 160 steps old (an epoch has 50): 420 rows/s are mined and 1,280 are needed; type "
        "mining.miners=4, or mining.pool_slots=5376 to mine among fewer"
    )


def test_what_is_no_older_than_two_epochs_or_mined_as_fast_as_needed_is_no_alarm():
    assert aged(100.0) == []
    assert aged(400.0, mined=1200.0) == []  # after a pause: it comes round again
    assert aged(160.0, steps=range(9, 98, 10)) == []
    assert AgeAlarm(50).note({"step": 9}) == ""


def test_no_pool_is_advised_where_it_would_be_tiny_or_refused():
    assert aged(160.0, AgeAlarm(50, 2000))[0].endswith("type mining.miners=4, or a smaller mining.stages")
    several = {"n_slots": 16384}
    for words in ({"shards": 2}, {"pool_slots": 2048}, {"deterministic": True}, {"gpus_per_miner": 0.5}):
        _, age = alarms_of(spec(**several, **words))
        assert "pool_slots" not in aged(10_000.0, age)[0]
    assert alarms_of(None) == ()
