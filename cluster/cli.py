"""`vidssl VERB … key=value …`: words in, exit codes out.

0 done · 2 a mistake of the user, or a disk that refuses, in one sentence · 130 stopped · 141 nobody reads the output ·
1 a mistake of ours, with its traceback. Only the standard library is imported here: Ctrl-C must not find a half-read module.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    pressed: list[int] = []
    restore = _listen_for_ctrl_c(pressed)
    try:
        from cluster.commands.console import prepare_streams

        prepare_streams()
        return _run(words)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _explain(error, bool(pressed))
    finally:
        restore()
        if argv is None and pressed:  # this process ends now, and a second Ctrl-C must not find Python half gone
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _listen_for_ctrl_c(pressed: list[int]) -> Callable[[], object]:
    """Note each Ctrl-C besides raising it: libraries that are half imported swallow it, or make an error of it."""

    def stop(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return lambda: None
    signal.signal(signal.SIGINT, stop)
    return lambda: signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(words: list[str]) -> int:
    from cluster.commands.console import say
    from cluster.commands.words import read_words, refuse_unreadable

    refuse_unreadable(words[:1])
    if not words or words[0] in ("--help", "-h", "help"):
        say(_help(words[1:]))
        return 0
    if words[0] in ("--version", "-V"):
        from vidssl import __version__

        say(f"vidssl {__version__}")
        return 0
    name = _verb_named(words[0])
    if {"--help", "-h"} & set(words):
        say(_help([name, *words[1:]]))
        return 0
    from cluster.commands.table import VERBS

    verb = VERBS[name]
    return verb.run(read_words(name, verb.places, verb.options, words[1:]))


def _verb_named(word: str) -> str:
    from cluster.commands.table import VERBS
    from vidssl.errors import RecipeError
    from vidssl.tables.lookup import did_you_mean

    if word in VERBS:
        return word
    if word.startswith("-") or "=" in word:
        raise RecipeError(
            f"'{word}' stands where a verb is expected; type vidssl VERB … key=value …, see: vidssl --help"
        )
    raise RecipeError(f"no verb '{word}'; there are {', '.join(VERBS)}{did_you_mean(word.lower(), VERBS)}")


def _help(words: Sequence[str]) -> str:
    """The page for the words beside `--help`: of all, of a verb, or of a verb with a recipe."""
    from cluster.commands.pages import front_page, recipe_page, verb_page
    from cluster.commands.table import VERBS
    from cluster.commands.words import read_words
    from vidssl import __version__
    from vidssl.recipe import load_recipe

    words = [word for word in words if word not in ("--help", "-h")]
    if not words:
        return front_page(__version__)
    name = _verb_named(words[0])
    verb = VERBS[name]
    if verb.recipe:
        return recipe_page(name, verb, verb.recipe, load_recipe(verb.recipe))
    if any(place.name == "RECIPE" for place in verb.places) and len(words) > 1:
        given = read_words(name, verb.places, verb.options, words[1:])
        chosen = given.place("RECIPE")
        if chosen is not None:
            return recipe_page(name, verb, chosen, load_recipe(chosen, given.settings))
    return verb_page(name, verb)


def _explain(error: Exception, pressed: bool) -> int:
    """An error as a sentence and an exit code."""
    from cluster.commands.console import OutputGone, complain, forget_output
    from vidssl.errors import OurFault, VidsslError

    if isinstance(error, OutputGone):
        forget_output()
        if isinstance(error.__cause__, BrokenPipeError):
            return 141
        complain(f"vidssl: standard output cannot be written ({error.__cause__})")
        return 2
    if pressed:
        return 130
    if isinstance(error, VidsslError):
        complain(f"vidssl: {error}")
        return 1 if isinstance(error, OurFault) else 2
    if isinstance(error, OSError) or _is_no_path(error):
        complain(f"vidssl: {_disk_sentence(error)}")
        return 2
    complain("".join(traceback.format_exception(error)).rstrip())
    complain("vidssl: this is a mistake of ours and not of your words; please report it with the lines above")
    return 1


def _is_no_path(error: Exception) -> bool:
    """Whether pathlib says of a path that it leads nowhere: a link to itself, the home of nobody."""
    return isinstance(error, RuntimeError) and str(error).startswith(("Symlink loop", "Could not determine home"))


def _disk_sentence(error: Exception) -> str:
    from pathlib import Path

    from vidssl.files import disk_words, is_full

    if not isinstance(error, OSError) or error.filename is None:
        return f"{' '.join(str(error).split())[:300]}; mend that and type the same words again"
    if is_full(error):
        return f"{disk_words(error, Path(os.fsdecode(error.filename)))}; make room and type the same words again"
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " → ".join(name if len(name) <= 120 else f"{name[:120]}…" for name in names)
    return f"{where}: {error.strerror}; mend that and type the same words again"
