"""`vidssl import` and `vidssl export`: published checkpoint files and runs become model cards that everything here reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.keywords import OF_AN_IMPORT, SOURCES, ExportWords, ImportWords, own_words
from vidssl.errors import CheckpointError, RecipeError
from vidssl.recipe import Recipe, recipe_from_tree

if TYPE_CHECKING:
    from vidssl.saved.card import Facts
    from vidssl.saved.published import Published

__all__ = ["export_card", "import_file"]

_CLIPS_OF_COCLR: Final = {"clips.frames": 32, "clips.stride": 1, "clips.size": 128, "augment.normalize": "imagenet"}
_CLIPS_OF_IIC: Final = {
    "clips.frames": 16,
    "clips.stride": 1,
    "clips.size": 112,
    "clips.residual_boundary": "wrap",
    "clips.residual_scale": "half_shift",
    "augment.normalize": "unit",
}
_PROTOCOL: Final[dict[str, dict[str, Any]]] = {
    "coclr": {"method.name": "coclr", **_CLIPS_OF_COCLR},
    "cpr": {"method.name": "cpr", **_CLIPS_OF_COCLR},
    "vicc": {"method.name": "vicc", **_CLIPS_OF_COCLR},
    "iic": {"method.name": "iic", "method.second_view": "residual", **_CLIPS_OF_IIC},
}
"""What the papers' code trained with; their files hold weights and say nothing of this."""


def import_file(path: str | Path, source: str | None, out: str | None = None, words: Sequence[str] = ()) -> str:
    """Read a published checkpoint; with `out`, write it as a card.

    Args:
        path: The file.
        source: Whose code wrote it, one of `SOURCES`.
        out: The card folder to write, which must not exist; None: look only.
        words: `clips.*`, `method.name`, `method.view`, `method.second_view` (iic), `augment.normalize`, where the file was
            trained with other than the published values; `encoder=`, which network of the file to take.

    Returns:
        The lines to print: what was loaded, missing, unexpected and ignored, and what was assumed.

    Raises:
        CheckpointError: no such file, no checkpoint, another layout than `source`, weights that are not whole, or `out`
            exists.
        RecipeError: another source or encoder, a word that is not allowed here, a stream of other channels.
    """
    from vidssl.saved.card import card_of, export

    own, words = own_words(ImportWords, words)
    _check(source, words)
    assert source is not None  # `_check` has seen it
    published = _read(path, source, own.encoder)
    recipe, assumed = _recipe(source, published, words)
    lines = _lines(Path(path).name, recipe, published, assumed)
    if out is None:
        return "\n".join([*lines, "nothing was written; to keep it, add --out CARD"])
    origin = f"{source} file {Path(path).name}" + ("" if own.encoder == "encoder_q" else f", {own.encoder}")
    facts = _facts(Path(path).expanduser(), origin, recipe, assumed)
    export(out, published.artifact, card_of(recipe, recipe.method.view, facts, "parity"))
    return "\n".join([*lines, f"card: {out}; next: vidssl evaluate {out} data=PACKED"])


def export_card(run: str | Path, out: str, words: Sequence[str] = ()) -> Path:
    """Write the last checkpoint of a run as a card.

    Args:
        run: A run folder.
        out: The card folder to write, which must not exist.
        words: `view=…`, the stream to take (default: the trained one).

    Returns:
        The card folder.

    Raises:
        CheckpointError: no run or checkpoint, no such view, or `out` exists.
        RecipeError: another word.
    """
    from vidssl.saved.card import export
    from vidssl.saved.pretrained import read_encoder

    own, unknown = own_words(ExportWords, words)
    if unknown:
        raise RecipeError(f"'{unknown[0]}' is no setting of an export; type view=rgb, or another stream of the run")
    card, state = read_encoder(run, own.view)
    return export(out, state, card)


def _check(source: str | None, words: Sequence[str]) -> None:
    if source not in SOURCES:
        given = "nobody was named as the file's author" if source is None else f"--from {source} is unknown"
        raise RecipeError(f"{given}; type --from with one of {', '.join(SOURCES)}")
    for word in words:
        if not word.startswith(OF_AN_IMPORT):
            raise RecipeError(
                f"'{word}' cannot be set for an import; type clips.*, method.name, method.view, method.second_view, "
                "augment.normalize or encoder (the network itself is read from the file)"
            )


def _read(path: str | Path, source: str, encoder: str) -> Published:
    from vidssl.saved.published import import_published

    file = Path(path).expanduser()
    if file.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file, or for a run: vidssl export {path}")
    if file.exists() and not file.is_file():
        raise CheckpointError(f"{path} is a pipe or a device and no file; give the checkpoint file")
    found = import_published(file, encoder=encoder)
    if found.source != ("coclr" if source == "cpr" else source):
        raise CheckpointError(f"{path} has the layout of {found.source}, not of {source}; type --from {found.source}")
    return found


def _recipe(source: str, published: Published, words: Sequence[str]) -> tuple[Recipe, tuple[str, ...]]:
    """The published protocol with the user's words, and which of its facts nobody stated."""
    two_channels = published.model.flow_channels == 2
    facts = {"method.view": "flow" if two_channels else "rgb"} | _PROTOCOL[source]
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if two_channels and given.get("method.view", "flow") != "flow":
        raise RecipeError(
            f"method.view={given['method.view']} has 3 channels and this encoder reads 2; type method.view=flow"
        )
    if given.get("method.view") == "residual" and "method.second_view" not in given:
        facts["method.second_view"] = "rgb"
    tree: dict[str, Any] = {"model": published.model.model_dump(mode="json"), "mining": {"where": "off"}}
    for key, value in facts.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    recipe = recipe_from_tree(tree, words)
    if recipe.method.streams != "shared":  # one stream is in the card: the other is nobody's fact
        facts.pop("method.second_view", None)
    return recipe, tuple(f"{key}={value}" for key, value in facts.items() if key not in given)


def _facts(path: Path, origin: str, recipe: Recipe, assumed: tuple[str, ...]) -> Facts:
    from vidssl.saved.card import Facts

    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Facts(method=recipe.method.name, source=origin, source_sha256=digest, assumed=assumed)


def _lines(name: str, recipe: Recipe, published: Published, assumed: Sequence[str]) -> list[str]:
    model, report = recipe.model, published.report
    left = len(report.ignored) + len(report.doubles)
    head = "no head" if model.head == "none" else "two-layer head"
    return [
        f"{name}: {model.backbone} of {recipe.method.view}, {head}, D={model.dim}",
        f"  {len(report.loaded)} loaded, {len(report.missing)} missing, {len(report.unexpected)} unexpected, {left} ignored",
        *(f"  {line}" for line in report.lines()),
        f"  assumed, as published: {', '.join(assumed) or 'nothing'}",
    ]
