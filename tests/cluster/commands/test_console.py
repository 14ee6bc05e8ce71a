"""Whatever the terminal is, and however a command ends: an exit code, at most two lines, no traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from cluster.cli import main
from cluster.commands.console import OutputGone, say
from cluster.commands.table import VERBS
from vidssl.errors import OurFault

pytestmark = pytest.mark.usefixtures("usual_signals")

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def vidssl(*words: str | bytes, env: dict[str, str] | None = None, stdout: int = subprocess.PIPE):
    command = [sys.executable, "-m", "cluster", *words]
    return subprocess.run(
        command, env=os.environ | (env or {}), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("env", [ASCII, {"PYTHONIOENCODING": "ascii"}])
def test_a_terminal_without_our_signs_reads_plain_ones(env):
    done = vidssl("train", "cpr-tiny", "--help", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"number >= " in done.stdout
    assert done.stdout.isascii()


def test_a_refusal_in_an_ascii_terminal_is_plain_too():
    done = vidssl("recipes", "a", "b", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert done.stderr == b"vidssl: 'b' is one word too many; type vidssl recipes NAME key=value ...\n"


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({}, rb"^vidssl: 'runs/\\udcff' holds bytes that are not UTF-8; rename the file, or give a link to it\n$"),
        (
            ASCII,
            rb"^vidssl: 'runs/\\udcff' cannot be read in this locale \(ascii\); type export LC_ALL=C.UTF-8 first\n$",
        ),
    ],
)
def test_bytes_that_are_not_utf_8_are_refused(env, sentence):
    done = vidssl("evaluate", b"runs/\xff", env=env)
    assert done.returncode == 2
    assert re.search(sentence, done.stderr)


def test_a_full_disk_behind_standard_output_is_one_sentence():
    with open("/dev/full", "wb") as full:
        done = vidssl("recipes", stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr == b"vidssl: standard output cannot be written ([Errno 28] No space left on device)\n"


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = vidssl("recipes", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_nobody_to_complain_to_is_an_exit_code():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "cluster", "trian"], stdout=full, stderr=full)
    assert done.returncode == 2


def test_a_line_that_cannot_be_printed_says_so(monkeypatch):
    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OutputGone, match="No space left"):
        say("x")


def ends_with(error: BaseException, monkeypatch) -> int:
    def run(words):
        raise error

    monkeypatch.setitem(VERBS, "report", replace(VERBS["report"], run=run))
    return main(["report", "x"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied; mend that and type"),
        (OSError(errno.EXDEV, "Cross-device link", "/a", None, "/b"), "/a → /b: Cross-device link; mend"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/nowhere/b"),
            r"/nowhere/b cannot be written: the disk .* is full \(.* free\)",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9000), "^vidssl: x{120}…: File name too long"),
        (OSError("odd\nlines"), "^vidssl: odd lines; mend"),
        (OSError(errno.ENOSPC, "No space left on device"), r"^vidssl: \[Errno 28\] No space left on device; mend"),
        (RuntimeError("Symlink loop from '/a'"), "^vidssl: Symlink loop from '/a'; mend"),
        (RuntimeError("Could not determine home directory."), "^vidssl: Could not determine home directory"),
    ],
)
def test_a_disk_that_refuses_is_one_sentence_that_names_the_file(error, sentence, monkeypatch, capsys):
    assert ends_with(error, monkeypatch) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said)
    assert said.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback_and_asks_for_a_report(monkeypatch, capsys):
    assert ends_with(ZeroDivisionError("by zero"), monkeypatch) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-2:] == [
        "ZeroDivisionError: by zero",
        "vidssl: this is a mistake of ours and not of your words; please report it with the lines above",
    ]


def test_a_fault_of_ours_that_was_understood_is_a_sentence_and_exit_code_1(monkeypatch, capsys):
    assert ends_with(OurFault("our own call failed; report it"), monkeypatch) == 1
    assert capsys.readouterr().err == "vidssl: our own call failed; report it\n"


@pytest.mark.parametrize("what", ["raised", "swallowed"])
def test_ctrl_c_ends_with_130_and_no_line_even_where_a_library_swallows_it(what, monkeypatch, capsys):
    def run(words):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if what == "raised":
                raise
        raise AttributeError("module 'numpy' has no attribute 'nonzero'")  # as a half imported library says it

    monkeypatch.setitem(VERBS, "report", replace(VERBS["report"], run=run))
    assert main(["report", "x"]) == 130
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_on_another_thread_leaves_signals_alone(monkeypatch):
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["recipes"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("module", ["cluster.commands.table", "torch", "numpy.linalg"])
def test_ctrl_c_in_the_middle_of_the_imports_prints_nothing(module, tmp_path):
    words = ["evaluate", str(tmp_path), "what=knn"]
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    command = [sys.executable, "-X", "importtime", "-m", "cluster", *words]
    said: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said += [] if line.startswith("import time:") else [line]
            if line.rsplit("|", 1)[-1].strip() == module:
                process.send_signal(signal.SIGINT)
    assert process.returncode in (130, -signal.SIGINT)
    assert said == []
