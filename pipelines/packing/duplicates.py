"""What becomes of copies? Fingerprints of all that was packed → siblings in one group, or all but one of them left out.

Groups are merged whole: what was cut from a source and from its copy are siblings all. What copies what stands in the verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.packing.copies import Copy, Prints, find_copies
from pipelines.packing.listing import Catalog, Row
from pipelines.packing.options import PackOptions
from pipelines.packing.prints import read_print
from pipelines.packing.staging import Staged, Staging

__all__ = ["settle"]

_MANY = 0.01
"""Share of all videos from which one group of copies is worth a word."""


@dataclass(frozen=True)
class _Link:
    """A video and the copy of it: rows of the catalogue."""

    kept: int
    copy: int
    mirrored: bool


def settle(
    catalog: Catalog, staged: Sequence[Staged], staging: Staging, options: PackOptions, say: Callable[[str], None]
) -> tuple[Catalog, list[Staged]]:
    """Find copies among what was packed, and make siblings of them or leave them out.

    Args:
        catalog: All rows.
        staged: What was staged of each; fingerprints where there is something packed.
        staging: Where they lie.
        options: Reads `duplicates` and `test_share`.
        say: Told how many there are.

    Returns:
        The catalogue with its groups (and, where they were drawn, its splits), and what was staged with the verdicts.

    Raises:
        DamagedStaging: a fingerprint cannot be read.
    """
    if options.duplicates == "keep":
        return catalog, list(staged)
    rows = [row for row, one in enumerate(staged) if one.bytes]
    read = [read_print(staging.fingerprint(row, staged[row])) for row in rows]
    prints = Prints([numbers for numbers, _ in read], [sparks for _, sparks in read])
    copies = find_copies(prints, _files([catalog.rows[row] for row in rows]))
    copies = [replace(pair, first=rows[pair.first], second=rows[pair.second]) for pair in copies]
    merged = _merged(catalog, copies, options)
    drop = options.duplicates == "drop"
    links = _left_out(merged, staged, copies) if drop else _said(copies)
    say(_told(catalog, merged, links, drop))
    if crossing := [link for link in links if merged.rows[link.kept].split != merged.rows[link.copy].split]:
        say(_crossing(merged, crossing, drop))
    return merged, _with_words(catalog, staged, links, drop)


def _files(rows: Sequence[Row]) -> list[int]:
    """A number for each video; clips of one source, which are siblings already, have the same."""
    of: dict[tuple[str, int], int] = {}
    return [
        of.setdefault((row.source, row.part.offset), len(of)) if row.part.is_range else -at - 1
        for at, row in enumerate(rows)
    ]


def _merged(catalog: Catalog, copies: Iterable[Copy], options: PackOptions) -> Catalog:
    """The catalogue with the groups of copies made one, called by the first of their names."""
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while (up := above.get(name, name)) != name:
            above[name] = name = above.get(up, up)
        return name

    for pair in copies:
        one, other = sorted((top(catalog.rows[pair.first].group), top(catalog.rows[pair.second].group)))
        if one != other:
            above[other] = one
    rows = [replace(row, group=top(row.group)) if row.group in above else row for row in catalog.rows]
    return replace(catalog, rows=tuple(_one_split(rows) if options.test_share else rows))


def _one_split(rows: Sequence[Row]) -> list[Row]:
    """Splits that were drawn by group (`test_share`): a group lies where its first video does."""
    home: dict[str, str] = {}
    for row in rows:
        home.setdefault(row.group, row.split)
    return [replace(row, split=home[row.group]) for row in rows]


def _said(copies: Iterable[Copy]) -> list[_Link]:
    """Each copy beside the first video that it copies."""
    first: dict[int, _Link] = {}
    for pair in copies:
        first.setdefault(pair.second, _Link(pair.first, pair.second, pair.mirrored))
    return list(first.values())


def _left_out(catalog: Catalog, staged: Sequence[Staged], copies: Iterable[Copy]) -> list[_Link]:
    """One of each set of copies is kept, and the others, which are copies of that very one, are left out.

    What a split for tests holds is kept before what is trained on; then the largest original, the longest, the first.
    """
    of: dict[int, dict[int, bool]] = {}
    for pair in copies:
        of.setdefault(pair.first, {})[pair.second] = pair.mirrored
        of.setdefault(pair.second, {})[pair.first] = pair.mirrored

    def worth(row: int) -> tuple[bool, int, int, int]:
        origin = staged[row].verdict
        trained = catalog.rows[row].split in ("train", "all", "unused")
        return trained, -origin.width * origin.height, -staged[row].frames, row

    kept: set[int] = set()
    links: list[_Link] = []
    for row in sorted(of, key=worth):
        twin = min((other for other in of[row] if other in kept), key=worth, default=None)
        if twin is None:
            kept.add(row)
        else:
            links.append(_Link(twin, row, of[row][twin]))
    return links


def _with_words(catalog: Catalog, staged: Sequence[Staged], links: Iterable[_Link], drop: bool) -> list[Staged]:
    made = list(staged)
    for link in links:
        one = made[link.copy]
        words = f"a {'mirrored ' if link.mirrored else ''}copy of '{catalog.rows[link.kept].path}'"
        if drop:
            verdict = replace(one.verdict, verdict="rejected", reason=f"{words} (duplicates=drop)")
            made[link.copy] = replace(one, verdict=verdict, bytes=0)
        else:
            reason = "; ".join(filter(None, (one.verdict.reason, words)))
            made[link.copy] = replace(one, verdict=replace(one.verdict, reason=reason))
    return made


def _told(before: Catalog, after: Catalog, links: Sequence[_Link], drop: bool) -> str:
    if not links:
        return "no video is a copy of another"
    mirrored = sum(link.mirrored for link in links)
    what = "left out" if drop else "made siblings of what they copy"
    sentence = (
        f"{len(links)} of {len(after.rows)} videos are copies ({mirrored} mirrored) and {what}; verdicts.csv names them"
    )
    sizes: dict[str, int] = {}
    for row in after.rows:
        sizes[row.group] = sizes.get(row.group, 0) + 1
    changed = {now.group for was, now in zip(before.rows, after.rows, strict=True) if was.group != now.group}
    largest = max(changed, key=lambda name: sizes[name], default=None)
    if largest is not None and sizes[largest] > max(_MANY * len(after.rows), 10):
        sentence += (
            f"; one group holds {sizes[largest]} videos now ('{largest}'), which are never told from one another"
        )
    return sentence


def _crossing(catalog: Catalog, crossing: Sequence[_Link], drop: bool) -> str:
    link = crossing[0]
    one, other = catalog.rows[link.kept], catalog.rows[link.copy]
    kept = (
        "that of the test split is kept"
        if drop
        else "what is measured on them is no test; duplicates=drop keeps one of each"
    )
    return f"{len(crossing)} copies lie in another split, e.g. '{other.path}' ({other.split}) of '{one.path}' ({one.split}): {kept}"
