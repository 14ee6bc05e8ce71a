"""Real frames for the report, straight out of the shards: three of each clip, so that its motion can be seen."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final

from cluster.page.pictures import film_strip
from pipelines.loading.windows import span_of
from vidssl.errors import DataError
from vidssl.recipe import Clips

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest

__all__ = ["StripReader"]

SHOWN: Final = 3


class StripReader:
    """Film strips of packed videos: first, middle and last frame of the clip in the middle of a video.

    Args:
        manifest: The packed data.
        clips: Length and stride of a clip.
    """

    def __init__(self, manifest: Manifest, clips: Clips) -> None:
        from pipelines.loading.feed import ShardReader

        self._reader = ShardReader(manifest)
        self._span = span_of(clips.frames, clips.stride)
        self._made: dict[int, str | None] = {}

    def __enter__(self) -> StripReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def strip(self, instance: int) -> str | None:
        """A data URI of the strip; None where the video cannot be read."""
        if instance not in self._made:
            self._made[instance] = self._make(instance)
        return self._made[instance]

    def _make(self, instance: int) -> str | None:
        from pipelines.loading.decode import decode_clips

        try:
            video, table = self._reader.read(instance)
            start = max(int(table[0]) - self._span, 0) // 2
            step = max((min(self._span, int(table[0])) - 1) // (SHOWN - 1), 1)
            return film_strip(decode_clips(video, table, [start], SHOWN, step)[0], height=112)
        except DataError:
            return None
