from __future__ import annotations

import os

import av
import pytest
from PIL import Image

from pipelines.packing.foreign import Rejected, opened
from pipelines.packing.normalise import normalise
from pipelines.packing.part import Part
from pipelines.packing.verdict import Target
from tests.pipelines.footage import numbers_of, write_video

PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{video}\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile {video}\n",
    "dash.mpd": """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
        mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
        <AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{video}</BaseURL>
        </Representation></AdaptationSet></Period></MPD>""",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("place", ["beside it", "elsewhere"])
def test_a_playlist_pulls_in_nothing(tmp_path, name, place):
    folder = tmp_path / "source"
    target = (folder if place == "beside it" else tmp_path / "private") / "video.ts"
    write_video(target, frames=30)
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(PLAYLISTS[name].format(video=os.path.relpath(target, folder)))
    outcome = normalise(str(folder / name), name, Target(), lambda: None)
    assert (outcome.verdict.verdict, outcome.mp4, outcome.verdict.frames) == ("rejected", b"", 0)
    if name != "dash.mpd":  # not every FFmpeg is built with DASH
        assert outcome.verdict.reason.startswith("it is a playlist that points at ")


def test_a_name_with_a_pattern_opens_that_one_file_and_no_sequence(tmp_path):
    for number in (1, 2, 3):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "f%d.png").write_bytes((tmp_path / "f2.png").read_bytes())
    with opened(str(tmp_path / "f%d.png")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1


def test_a_title_that_is_not_utf_8_does_not_stop_a_video(tmp_path):
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as container:
        container.metadata["title"] = "caf____"
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    data = source.read_bytes()
    assert b"caf____" in data
    source.write_bytes(data.replace(b"caf____", b"caf\xe9\xff\xfe\x80"))
    assert normalise(str(source), "a.mkv", Target(), lambda: None).verdict.verdict == "packed"


def test_a_path_that_is_not_utf_8_is_opened(tmp_path):
    plain = write_video(tmp_path / "a.mp4")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    os.rename(plain, odd)
    assert numbers_of(normalise(odd, "x", Target(), lambda: None).mp4) == list(range(20))


@pytest.mark.parametrize(
    ("kind", "words"), [("folder", "no regular file"), ("pipe", "no regular file"), ("empty", "empty")]
)
def test_what_is_no_file_of_bytes_is_rejected_without_waiting_for_it(tmp_path, kind, words):
    path = tmp_path / "a.mp4"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "empty": path.touch}[kind]()
    with pytest.raises(Rejected, match=words), opened(str(path)):
        pass


def test_a_stretch_of_a_file_is_read_from_its_first_to_its_last_byte_and_no_further(tmp_path):
    first = write_video(tmp_path / "a.ts", frames=10).read_bytes()
    second = write_video(tmp_path / "b.ts", frames=15).read_bytes()
    both = tmp_path / "both"  # a transport stream has no end of its own: who reads on gets the other video too
    both.write_bytes(first + second)
    parts = Part(size=len(first)), Part(offset=len(first), size=len(second))
    found = [numbers_of(normalise(str(both), "x", Target(), lambda: None, part).mp4) for part in parts]
    assert found == [list(range(10)), list(range(15))]
    cut = normalise(str(both), "x", Target(), lambda: None, Part(offset=len(first), size=len(second) + 1))
    assert (cut.verdict.verdict, cut.verdict.reason) == ("rejected", "the tar ends within it")
