from __future__ import annotations

import io
import json

import av
import pytest

from pipelines.dataset.shards import read_index
from pipelines.pack import PackOptions, pack
from tests.pipelines.footage import write_video


def test_flow_has_the_rate_of_the_video_whether_made_with_it_or_added(tmp_path):
    pytest.importorskip("cv2")
    for number, rate in enumerate((12, 30)):
        write_video(tmp_path / "src" / "a" / f"{number}.mp4", frames=10, width=128, height=128, rate=rate)
    pack("folder", tmp_path / "src", tmp_path / "added", PackOptions(fps="source"), workers=1)
    added = pack("folder", tmp_path / "src", tmp_path / "added", PackOptions(fps="source", add="flow"), workers=1)
    once = pack("folder", tmp_path / "src", tmp_path / "once", PackOptions(fps="source", flow="dis"), workers=1)
    assert added.hash == once.hash
    data, index = once.shard_path(0).read_bytes(), read_index(once.shard_path(0))
    for row in range(len(index)):
        part = {name: data[at[row] :][: index.size[name][row]] for name, at in index.offset.items()}
        rates = []
        for name in ("mp4", "flow.mp4"):
            with av.open(io.BytesIO(part[name])) as container:
                rates.append(container.streams.video[0].average_rate)
        assert rates == [json.loads(part["json"])["fps"]] * 2
