from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import av
import pytest

from pipelines.packing.guard import Guard
from pipelines.packing.verdict import Limits, Target
from tests.pipelines.footage import write_video
from vidssl.errors import DataError, OurFault, StorageError


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


class Fragile(Guard):
    """A guard whose child is killed as soon as it is ready, the first `deaths` times."""

    deaths = 0

    def _ready(self):
        wire = super()._ready()
        if self.deaths and self._process is not None:
            self.deaths -= 1
            self._process.kill()
            self._process.wait()
        return wire


def test_one_child_does_many_videos(tmp_path):
    good = write_video(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"nonsense")
    with Guard(Target()) as guard:
        verdicts = [guard.run(str(path), path.name).verdict for path in (good, tmp_path / "b.mp4", good)]
        child = guard._process
        assert child is not None
    assert [verdict.verdict for verdict in verdicts] == ["packed", "rejected", "packed"]
    assert gone_within(child.pid, 5)


def test_a_video_that_hangs_is_rejected_and_the_next_one_gets_a_new_child(tmp_path):
    good = write_video(tmp_path / "a.mp4", frames=200)
    with Guard(Target()) as guard:
        guard.run(str(good), "a.mp4")
        first = guard._process
        guard.limits = Limits(timeout=0.001)  # no frame can come that fast: to the watchdog this is a hang
        hung = guard.run(str(good), "a.mp4").verdict
        guard.limits = Limits()
        assert guard.run(str(good), "a.mp4").verdict.verdict == "packed"
        assert first is not None
        assert not alive(first.pid)
    assert (hung.verdict, hung.reason) == ("rejected", "decoding hung: no new frame within 0.001 s")


def test_a_child_that_dies_once_is_given_a_second_try(tmp_path):
    with Fragile(Target()) as guard:
        guard.deaths = 1
        assert guard.run(str(write_video(tmp_path / "a.mp4")), "a.mp4").verdict.verdict == "packed"


def test_a_child_that_dies_twice_is_a_verdict_and_the_next_video_goes_on(tmp_path):
    good = str(write_video(tmp_path / "a.mp4"))
    with Fragile(Target()) as guard:
        guard.deaths = 2
        verdict = guard.run(good, "a.mp4").verdict
        assert (verdict.verdict, verdict.reason) == ("rejected", "the decoder crashed (Killed)")
        assert guard.run(good, "a.mp4").verdict.verdict == "packed"


def test_a_child_that_never_starts_is_said_once_and_not_blamed_on_the_video(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Guard(Target()) as guard,
        pytest.raises(DataError, match=r"does not start \(exit code 1\); try: /bin/false"),
    ):
        guard.run("a.mp4", "a.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel ends children with their parent")
def test_the_child_dies_with_a_killed_parent(tmp_path):
    source = write_video(tmp_path / "a.mp4")
    script = f"""
        from pipelines.packing.guard import Guard
        from pipelines.packing.verdict import Limits, Target
        import time
        guard = Guard(Target())
        guard.run({str(source)!r}, "a")
        print(guard._process.pid, flush=True)
        time.sleep(60)
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)
    assert gone_within(child, 5)


BROKEN = """
import pipelines.packing.normalise as module
def opened(path, part): {body}
module.opened = opened
"""


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return __import__('av').open(path, no_such_word=1)", "TypeError"),
        ("return None.nothing", "AttributeError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("return {}['x']", "KeyError"),
        ("raise ValueError('ours')", "ValueError"),
        ("return 1 / 0", "ZeroDivisionError"),
        ("return __import__('av').CodecContext.create('no_such_codec', 'w')", "UnknownCodecError"),
    ],
)
def test_an_error_of_our_own_is_no_verdict_and_says_what_to_report(tmp_path, monkeypatch, body, kind):
    source = write_video(tmp_path / "a.mp4")
    # `sitecustomize` is the one thing that a Python reads by itself: so the child's own code is broken for real.
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BROKEN.format(body=body))
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    with Guard(Target()) as guard, pytest.raises(OurFault) as stopped:
        guard.run(str(source), "a.mp4")
    said = str(stopped.value)
    assert said.startswith(f"a fault of vidssl itself, not of 'a.mp4', stops the pack (what is done is kept): {kind}: ")
    assert "please report this line and 'a.mp4' with vidssl " in said
    assert f"PyAV {av.__version__}" in said
    assert "\n" not in said


def test_what_pyav_says_of_a_file_is_a_verdict_whatever_its_type(tmp_path, monkeypatch):
    source = write_video(tmp_path / "a.mp4")
    for body in (
        "__import__('av').VideoFormat('no_such_format')",
        "raise UnicodeDecodeError('utf-8', b'', 0, 1, 'bad')",
    ):
        (tmp_path / "sitecustomize.py").write_text(BROKEN.format(body=body))
        with monkeypatch.context() as patch, Guard(Target()) as guard:
            patch.syspath_prepend(str(tmp_path))
            assert guard.run(str(source), "a.mp4").verdict.verdict == "rejected"


def test_a_video_that_takes_too_long_in_all_is_rejected_though_frames_go_on_coming(tmp_path):
    long = write_video(tmp_path / "long.mp4", frames=3000)
    with Guard(Target()) as guard:
        guard.run(str(write_video(tmp_path / "a.mp4")), "a.mp4")
        guard.limits = Limits(timeout=30, max_seconds=0.2)
        verdict = guard.run(str(long), "long.mp4").verdict
        guard.limits = Limits()
        assert guard.run(str(tmp_path / "a.mp4"), "a.mp4").verdict.verdict == "packed"
    assert (verdict.verdict, verdict.reason) == ("rejected", "not done after 0.2 s of work (max_seconds=0.2)")


def test_a_video_that_wants_more_memory_than_it_may_have_is_rejected_and_the_next_one_packed(tmp_path):
    good = write_video(tmp_path / "a.mp4")
    large = write_video(tmp_path / "large.mp4", frames=2, width=5000, height=5000, codec="mpeg4")
    with Guard(Target(), Limits(memory_mb=310)) as guard:  # an idle child takes 250 to 290
        verdict = guard.run(str(large), "large.mp4").verdict
        assert guard.run(str(good), "a.mp4").verdict.verdict == "packed"
    assert verdict.verdict == "rejected"
    assert "not enough memory (memory_mb sets the limit)" in verdict.reason


SHAKY = """
import os
import pipelines.packing.normalise as module
real = module.opened
def opened(path, part):
    with open({count!r}, "a") as count:
        count.write("x")
    if os.path.getsize({count!r}) <= {failures}:
        raise OSError({errno}, os.strerror({errno}))
    return real(path, part)
module.opened = opened
import pipelines.packing.foreign as foreign
foreign.PAUSES_S = (0.01, 0.02, 0.04, 0.08)
"""


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("failures", [2, 99])
def test_a_store_that_does_not_answer_is_asked_again_and_is_no_verdict(tmp_path, monkeypatch, number, failures):
    source = write_video(tmp_path / "a.mp4")
    (tmp_path / "broken").mkdir()
    code = SHAKY.format(count=str(tmp_path / "count"), failures=failures, errno=number)
    (tmp_path / "broken" / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    with Guard(Target()) as guard:
        if failures == 2:
            assert guard.run(str(source), "a.mp4").verdict.verdict == "packed"
            return
        with pytest.raises(StorageError) as stopped:
            guard.run(str(source), "a.mp4")
    said = str(stopped.value)
    assert said.startswith(f"{source} cannot be read now ({os.strerror(number)}; tried several times)")
    assert "type the same command again: what is done is kept" in said
    assert not stopped.value.final
