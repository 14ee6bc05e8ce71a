"""Packed data in stores: S3, Google Cloud Storage, web servers, each as a real process; what goes wrong there, in words."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.ahead import GAP, LARGEST, ReadAhead, Span, joined
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.dataset.patience import Patience
from pipelines.dataset.place import Address, address_of, place_of
from pipelines.dataset.reader import ShardReader, Windows
from pipelines.dataset.shards import RGB
from pipelines.dataset.store import open_store
from pipelines.dataset.verify import verify
from pipelines.loader import EvalLoader, LoaderSpec, TrainLoader
from tests.pipelines.small_packs import damaged_copy, make_pack
from tests.pipelines.stores import BUCKET, KEYS, S3, environment, web
from vidssl.errors import DataError, StorageError
from vidssl.recipe import Augment, Clips, Loader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Manifest:
    return make_pack(tmp_path_factory.mktemp("whole") / "pack", "h264")


def spec(batch: int = 4, **changes) -> LoaderSpec:
    return LoaderSpec(Clips(frames=4, size=32), Augment(), Loader(decode="py", **changes), ("rgb",), batch, seed=0)


def seen(loader: TrainLoader, batches: int) -> list[int]:
    try:
        return [zlib.crc32(loader.next().clips["rgb"].numpy().tobytes()) for _ in range(batches)]
    finally:
        loader.close()


def training(manifest: Manifest, say=lambda sentence: None, **changes) -> TrainLoader:
    return TrainLoader(manifest, spec(**changes), rank=0, world=1, device=CPU, say=say)


def test_a_pack_in_s3_is_the_pack_that_it_was_in_its_folder(pack, s3):
    address = s3.put_folder(pack.root, "same")
    there = load_manifest(address)
    assert (there.hash, str(there.root)) == (pack.hash, f"s3://{BUCKET}/same")
    assert load_manifest(f"{address}/manifest.json").root == there.root
    near, far = ShardReader(pack), ShardReader(there)
    for instance in range(len(pack)):
        for mine, other in zip(near.read(instance), far.read(instance), strict=True):
            np.testing.assert_array_equal(mine, other)
    straight = seen(training(pack), 4)
    assert seen(training(there), 4) == straight
    assert seen(training(there, read="windows"), 4) == straight
    windows = [
        [zlib.crc32(batch.clips["rgb"].numpy().tobytes()) for batch in EvalLoader(one, spec(), windows=3, device=CPU)]
        for one in (pack, there)
    ]
    assert windows[0] == windows[1]
    found = verify(there.root, workers=2)
    assert (found.damages, found.bytes) == ((), sum(shard.bytes for shard in pack.shards))


def test_damage_in_a_store_is_named_as_in_a_folder(pack, s3, tmp_path):
    broken = damaged_copy(pack, tmp_path / "broken", [1, 6], "body")
    address = s3.put_folder(broken.root, "broken")
    near, far = verify(broken.root, workers=2), verify(address, workers=2)
    assert list(map(str, near.damages)) == list(map(str, far.damages))
    assert far.samples == (1, 6)
    loader = training(load_manifest(address))
    loader.next(), loader.next()
    assert sorted(bad.instance for bad in loader.meter.bad) == [1, 6]
    loader.close()


@pytest.mark.parametrize("read", ["whole", "windows"])
def test_a_web_server_that_breaks_off_answers_costs_no_sample(pack, read):
    expected, said = seen(training(pack, batch=1), 16), []
    with web(pack.folder, "--cut", "3") as (address, _):
        loader = training(load_manifest(address), said.append, batch=1, prefetch=1, read=read)
        assert seen(loader, 16) == expected
    assert loader.meter.disk.retries >= 2
    assert loader.meter.bad == []
    assert re.fullmatch(
        r"http://127\S+ could not be read \((the answer was cut off|the connection was lost)\) and is tried again; .*",
        said[0],
    )


def test_a_pack_in_google_cloud_storage_is_read_by_its_address(pack, tmp_path, monkeypatch):
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/pack").symlink_to(pack.folder)
    with web(tmp_path) as (address, _):
        account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}  # fmt: skip
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        there = load_manifest("gs://bucket/pack")
        assert there.hash == pack.hash
        assert seen(training(there), 4) == seen(training(pack), 4)


def away_for(server: S3, seconds: float, pack: Manifest, prefix: str) -> tuple[list[int], list[str], TrainLoader]:
    said: list[str] = []
    loader = training(load_manifest(server.put_folder(pack.root, prefix)), said.append, batch=1, prefetch=1)
    first = [zlib.crc32(loader.next().clips["rgb"].numpy().tobytes()) for _ in range(2)]
    server.go_away()
    threading.Timer(seconds, server.come_back).start()
    return first + seen(loader, 8), said, loader


def waits_are_said(said: list[str], least: float) -> None:
    waits = [sentence for sentence in said if "could not be read" not in sentence]
    refused = r"s3://videos/\S+/shard-0000\d\.tar cannot be reached \((connection refused|the connection was lost)\): waiting for it, 240 s at most"
    assert re.fullmatch(refused, waits[0])
    back = re.fullmatch(r"s3://videos/\S+/shard-0000\d\.tar is back after (\d+) s: going on", waits[1])
    assert back is not None
    assert int(back[1]) >= least
    assert len(waits) == 2


def test_a_store_that_is_gone_for_a_moment_costs_no_sample(pack, s3):
    found, said, loader = away_for(s3, 1.6, pack, "away")
    assert found == seen(training(pack, batch=1), 10)
    assert loader.meter.bad == []
    waits_are_said(said, 1)


@pytest.mark.slow
def test_a_store_that_is_gone_for_20_seconds_costs_no_sample(pack, s3):
    found, said, loader = away_for(s3, 20.0, pack, "long-away")
    assert found == seen(training(pack, batch=1), 10)
    assert loader.meter.bad == []
    waits_are_said(said, 18)


def test_a_store_that_stays_away_is_a_storage_error_and_never_bad(pack, s3, monkeypatch):
    address = s3.put_folder(pack.root, "gone")
    manifest, said = load_manifest(address), []
    s3.go_away()
    try:
        loader = training(manifest, said.append, patience=0.6)
        with pytest.raises(
            StorageError,
            match=r"^s3://videos/gone/shard-0000\d\.\w+ could not be reached for \d s \(connection refused\); when it is back go on with --resume",
        ):
            loader.next()
        assert loader.meter.bad == []
        loader.close()
        monkeypatch.setattr("pipelines.dataset.patience.SMALL_FILE_S", 0.3)
        with pytest.raises(
            StorageError,
            match=r"^s3://videos/gone/manifest\.json could not be reached .*; when it is back type the same command again",
        ):
            load_manifest(address)
        monkeypatch.setattr("pipelines.dataset.verify.PATIENCE_S", 0.3)
        with pytest.raises(StorageError, match=r"could not be reached"):
            verify(address, workers=1)
    finally:
        s3.come_back()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://no-such-bucket/pack", r"^s3://no-such-bucket/pack cannot be read: there is no bucket 'no-such-bucket'$"),
        (f"s3://{BUCKET}/nothing", r"^s3://videos/nothing is no packed data \(no manifest\.json\); type: vidssl pack folder VIDEOS s3://videos/nothing$"),
        ("s3://", "names no place in a store; type e.g. s3://BUCKET/PACKED"),
        ("s3://b/../x", "names no place in a store"),
        ("hdfs://host/pack", r"is the address of an unknown kind of store; give a folder, or an address that begins with s3://"),
        ("s3://AKIA:hunter2@videos/pack", r"^this s3:// address holds an '@'.*keys come from the environment \(AWS_ACCESS_KEY_ID"),
        ("https://host/pack?token=hunter2", r"^this https:// address holds an '@', '\?' or '#', where keys and passwords stand; give the plain"),
    ],
)  # fmt: skip
def test_what_an_address_cannot_be_is_one_sentence(s3, address, said):
    with pytest.raises(DataError, match=said) as caught:
        load_manifest(address)
    assert "hunter2" not in str(caught.value)


def answering(status: str, body: str = "") -> tuple[int, threading.Thread]:
    """A port where everybody is told the same."""
    door = socket.create_server(("127.0.0.1", 0))
    door.settimeout(10)

    def answer() -> None:
        try:
            while True:
                one, _ = door.accept()
                one.recv(65536)
                one.sendall(
                    f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
                )
                one.close()
        except OSError:
            door.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return door.getsockname()[1], thread


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("403 Forbidden", r"^s3://videos/pack cannot be read: access is denied; give this process AWS_ACCESS_KEY_ID and"),
        ("401 Unauthorized", r"^s3://videos/pack cannot be read: access is denied; give this process AWS_ACCESS_KEY_ID and"),
        ("301 Moved Permanently", r"^s3://videos/pack cannot be read: it is kept in another region; set AWS_REGION to the bucket's"),
    ],
)  # fmt: skip
def test_a_store_that_does_not_let_us_is_one_sentence_without_any_key(s3, monkeypatch, status, said):
    port, _ = answering(status, f"<Error><AWSAccessKeyId>{KEYS['AWS_ACCESS_KEY_ID']}</AWSAccessKeyId></Error>")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(DataError, match=said) as caught:
        load_manifest("s3://videos/pack")
    assert not any(secret in str(caught.value) for secret in KEYS.values())


def test_a_store_that_is_overloaded_is_asked_again(s3, monkeypatch):
    port, _ = answering("503 Slow Down")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("pipelines.dataset.patience.SMALL_FILE_S", 0.3)
    with pytest.raises(StorageError, match=r"could not be reached for 0 s \(the store answered 503\)"):
        load_manifest("s3://videos/pack")


def test_an_endpoint_that_everybody_can_listen_to_has_to_be_allowed(s3, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(DataError, match=r"AWS_ENDPOINT_URL begins with http://.*set AWS_ALLOW_HTTP=true"):
        load_manifest(f"s3://{BUCKET}/pack")


def test_a_server_without_ranges_is_refused_before_anything_is_read_of_a_shard(pack):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(pack.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        port = re.search(r"port (\d+)", server.stdout.readline())[1]
        with pytest.raises(
            DataError,
            match=r"shard-00000\.tar cannot be read: this server does not give parts of files \(HTTP ranges\)",
        ):
            load_manifest(f"http://127.0.0.1:{port}")
        server.kill()


def test_a_missing_package_is_refused_with_the_words_that_install_it():
    program = (
        "import sys; sys.modules['obstore'] = None\n"
        "from pipelines.dataset.manifest import load_manifest\nload_manifest('s3://bucket/pack')"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert (
        "s3://bucket/pack is in a store, and obstore is not installed; type pip install 'vidssl[stores]'" in done.stderr
    )


def test_no_key_stands_in_what_is_said_or_logged(pack, s3, caplog):
    address = s3.put_folder(pack.root, "quiet")
    said: list[str] = []
    with caplog.at_level(logging.DEBUG):
        loader = training(load_manifest(address), said.append, batch=1, prefetch=1)
        loader.next()
        s3.go_away()
        threading.Timer(0.5, s3.come_back).start()
        seen(loader, 8)
    assert said
    told = "\n".join([*said, caplog.text, str(loader.manifest.root), repr(loader.spec)])
    assert not any(secret in told for secret in KEYS.values())


def test_addresses_and_folders_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = Address("s3", "bucket", "a/b")
    assert (
        address_of("s3://bucket/a/b/")
        == address_of(Path("s3://bucket/a/b"))
        == address_of("S3://bucket//a/b")
        == address
    )
    assert (str(address), str(address / "c"), address.parent, address.name) == ("s3://bucket/a/b", "s3://bucket/a/b/c", Address("s3", "bucket", "a"), "b")  # fmt: skip
    assert str(place_of("http://host:80")) == "http://host:80"
    assert place_of("packed") == tmp_path / "packed"
    assert address_of("C/x") is None
    (tmp_path / "s3:/bucket/a").mkdir(parents=True)
    assert address_of("s3:/bucket/a") is None


def test_neighbours_are_one_question_and_strangers_are_not():
    one, two = Span("a.tar", 0, 100), Span("a.tar", 100 + GAP, 50)
    far, other = Span("a.tar", 151 + 2 * GAP, 10), Span("b.tar", 0, 5)
    assert joined([far, other, two, one]) == [[one, two], [far], [other]]
    large = [Span("a.tar", number * LARGEST // 2, LARGEST // 2) for number in range(3)]
    assert joined(large) == [large[:2], large[2:]]
    assert joined([]) == []


def test_no_more_questions_are_asked_at_once_than_allowed_and_none_twice():
    asked, now, most, guard = [], 0, 0, threading.Lock()

    def fetch(spans):
        nonlocal now, most
        with guard:
            now, most = now + 1, max(most, now + 1)
            asked.extend(spans)
        time.sleep(0.02)
        with guard:
            now -= 1
        return {span: bytes(span.size) for span in spans}

    ahead = ReadAhead(fetch, at_once=3, kept=2)
    spans = [Span("a.tar", 10**6 * number, 10) for number in range(12)]
    ahead.want(spans[:8], lambda span: False)
    ahead.want(spans[4:], lambda span: False)
    assert all(len(ahead.coming(span).result()[span]) == 10 for span in spans)
    assert most == 3
    assert sorted(asked) == spans
    ahead.want([], lambda span: False)
    assert ahead.coming(spans[0]) is None
    ahead.close()


def test_what_could_not_be_fetched_is_fetched_again_when_it_is_wanted_again():
    errors = [OSError("away"), None]

    def fetch(spans):
        if (error := errors.pop(0)) is not None:
            raise error
        return dict.fromkeys(spans, b"here")

    ahead, span = ReadAhead(fetch, at_once=1, kept=3), Span("a.tar", 0, 4)
    for _ in range(3):
        ahead.want([span], lambda span: False)
        answer = ahead.coming(span)
        assert answer.exception() is None or str(answer.exception()) == "away"
    assert answer.result()[span] == b"here"
    assert errors == []
    ahead.close()


def test_a_batch_from_a_slow_store_waits_for_one_answer_and_not_for_each(pack):
    with web(pack.folder, "--latency-ms", "150") as (address, _):
        reader = ShardReader(load_manifest(address), Patience(5.0), reads=16)
        began = time.perf_counter()
        reader.want(range(len(pack)))
        for instance in range(len(pack)):
            reader.read(instance)
        assert (
            time.perf_counter() - began < 5 * 0.15
        )  # two indexes at once, then all samples at once; eight would be 1.2 s
        reader.close()


def test_windows_of_a_batch_from_a_slow_store_wait_for_their_tables_and_then_for_their_fragments(pack):
    """Two answers one after the other for each sample, those of a batch beside each other; and none for what is known."""
    wanted = [(instance, RGB, Windows((0,), 4)) for instance in range(len(pack))]
    with web(pack.folder, "--latency-ms", "150") as (address, _):
        reader = ShardReader(load_manifest(address), Patience(5.0), reads=16)
        for most in (6 * 0.15, 3 * 0.15):  # indexes, tables, fragments; the second time fragments alone
            began = time.perf_counter()
            reader.want_windows(wanted)
            found = [reader.read_windows(*one)[0] for one in wanted]
            assert time.perf_counter() - began < most
            assert all(video.any() for video in found)
            wanted = [(instance, stream, Windows((1,), 4)) for instance, stream, _ in wanted]
        reader.close()


def test_a_folder_reads_nothing_ahead(pack):
    reader, before = ShardReader(pack), threading.active_count()
    reader.want(range(len(pack)))
    assert (reader.far, open_store(pack.root).far, threading.active_count()) == (False, False, before)
    reader.close()
