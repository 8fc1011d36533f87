"""What the daemon asks of a spool: clips are put, replaced and deleted; the file is kept."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from atlasd.daemon import spoolfile
from atlasd.daemon.spool import Spool
from atlasd.daemon.spoolclips import SpoolClips
from atlasd.daemon.spoolfile import (
    ConflictError,
    CorruptError,
    DeletedError,
    DiskFullError,
    JournaledError,
    QuotaError,
    SpoolError,
    StorageError,
    UnknownClipError,
)
from spools import filled, ids


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder):
    with Spool(folder) as opened:
        yield opened


# Clips.


def test_a_clip_is_there_for_another_process_once_append_has_returned(folder):
    with SpoolClips(folder) as daemons, Spool(folder) as other:
        daemons.append("a", b"first")
        assert other.next_batch(0, 8, 7).clips[0].payload == b"first"


def test_the_same_clip_twice_is_stored_once(spool):
    assert spool.append("a", b"first") == "stored"
    assert spool.append("a", b"first") == "same"
    assert spool.status().clips == {"pending": 1}


def test_a_file_from_before_totals_were_kept_gets_them(spool, folder):
    filled(spool, 3).delete("c1")
    kept = ("pause", "totals", "classes")
    with closing(sqlite3.connect(folder / "clips.sqlite")) as before:
        named = before.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL")
        for kind, name in named.fetchall():
            if kind == "trigger" or name in {*kept, "pending_by_age", "batches_aside"}:
                before.execute(f"DROP {kind} {name}")
        before.commit()
    with Spool(folder) as opened:
        assert opened.status().clips == {"pending": 2, "deleted": 1}
        assert (opened.status().held, opened.status().bytes) == (2, 18)
        assert not opened.is_paused


def test_the_digest_says_what_the_same_clip_is(spool):
    spool.append("a", b"first", digest=b"d")
    assert spool.append("a", b"made anew", digest=b"d") == "same"
    assert spool.recognise("a", b"d") == "same"
    assert spool.recognise("b", b"d") is None


def test_the_same_id_with_other_content_is_refused(spool):
    spool.append("a", b"first")
    with pytest.raises(ConflictError, match="'a' names a clip with other content"):
        spool.append("a", b"second")
    assert spool.next_batch(0, 1, 0).clips[0].payload == b"first"


def test_a_pending_clip_is_replaced_at_its_place(spool):
    filled(spool, 2)
    assert spool.append("c0", b"better", replace=True) == "replaced"
    batch = spool.next_batch(0, 8, 0)
    assert [clip.payload for clip in batch.clips] == [b"better", b"payload 1"]


def test_one_wrong_clip_of_a_batch_that_was_set_aside_does_not_cost_its_neighbours(spool):
    filled(spool, 4).next_batch(0, 4, 7)
    spool.quarantine(1, "poison")
    with pytest.raises(ConflictError, match="set aside"):
        spool.append("c1", b"mended")
    assert spool.append("c1", b"mended", replace=True) == "replaced"
    spool.delete("c2")
    (aside,) = spool.status().set_aside
    assert (aside.number, aside.ids) == (1, ("c0", "c1", "c3"))
    assert spool.next_batch(1, 4, 0) is None, "it waits for a person all the same"
    spool.release(1)
    batch = spool.next_batch(1, 4, 0)
    payloads = [b"payload 0", b"mended", b"payload 3"]
    assert (ids(batch), [c.payload for c in batch.clips]) == (["c0", "c1", "c3"], payloads)


def test_a_clip_put_anew_is_not_thrown_away_with_the_batch_that_it_was_taken_out_of(spool):
    filled(spool, 2).next_batch(0, 2, 7)
    spool.quarantine(1, "poison")
    spool.delete("c1")
    assert spool.append("c1", b"mended", replace=True) == "replaced"
    spool.discard(1)
    assert spool.status().clips == {"discarded": 1, "pending": 1}
    assert [c.payload for c in spool.next_batch(1, 4, 0).clips] == [b"mended"]
    with pytest.raises(JournaledError, match="is discarded; only one that is pending or set aside"):
        spool.delete("c0")


def test_a_journaled_clip_is_neither_replaced_nor_deleted(spool):
    filled(spool, 1).next_batch(0, 1, 0)
    with pytest.raises(JournaledError, match="journaled"):
        spool.append("c0", b"better", replace=True)
    with pytest.raises(JournaledError, match="only one that is pending"):
        spool.delete("c0")


def test_a_deleted_clip_does_not_come_back_by_a_late_duplicate(spool):
    filled(spool, 1).delete("c0")
    spool.delete("c0")
    with pytest.raises(DeletedError, match="with replace"):
        spool.append("c0", b"payload 0")
    assert spool.next_batch(0, 1, 0) is None
    assert spool.append("c0", b"payload 0", replace=True) == "replaced"
    assert ids(spool.next_batch(0, 1, 0)) == ["c0"]


def test_deleting_what_is_not_there_is_refused(spool):
    with pytest.raises(UnknownClipError, match="'nothing'"):
        spool.delete("nothing")


def test_over_quota_is_refused_and_what_is_there_stays(folder):
    with Spool(folder, max_clips=2) as spool:
        filled(spool, 2)
        with pytest.raises(QuotaError, match=r"2 clips .*; 2 are allowed.*max_clips"):
            spool.append("c2", b"x")
        assert spool.append("c1", b"payload 1") == "same"
    with Spool(folder, max_bytes=20) as spool:
        with pytest.raises(QuotaError, match=r"18 bytes .* and the clip has 3.*max_mb"):
            spool.append("c2", b"xyz")
        assert spool.append("c1", b"12345678901", replace=True) == "replaced"
        assert spool.status().bytes == 20


def test_what_a_checkpoint_holds_makes_room(folder):
    with Spool(folder, max_clips=1) as spool:
        filled(spool, 1).next_batch(0, 1, 0)
        spool.finish(1, 1)
        assert spool.append("c1", b"x") == "stored"


def test_what_is_being_learned_keeps_nothing_out_and_is_told_where_it_is_too_much(folder):
    with Spool(folder, max_clips=1) as spool:
        for number in (1, 2, 3):
            assert spool.append(f"c{number}", b"payload") == "stored"
            spool.next_batch(number - 1, 1, 0)
        assert [spool.is_crowded(number) for number in range(4)] == [False, False, True, True]
        spool.finish(3, 2)
        assert not spool.is_crowded(3)
        assert spool.status().held == 1


def test_clips_that_are_set_aside_count_and_a_refusal_says_so(folder):
    with Spool(folder, max_clips=1) as spool:
        filled(spool, 1).next_batch(0, 1, 0)
        spool.quarantine(1, "poison")
        with pytest.raises(QuotaError, match="discard the 1 that are set aside"):
            spool.append("c1", b"x")
        spool.discard(1)
        assert spool.append("c1", b"x") == "stored"


@pytest.mark.parametrize("clip_id", ["", "x" * 257])
def test_an_id_out_of_bounds_is_refused(spool, clip_id):
    with pytest.raises(SpoolError, match="1 to 256"):
        spool.append(clip_id, b"x")


def test_status_counts_and_tells_the_oldest(folder):
    ticks = count(1000)
    with Spool(folder, clock=lambda: next(ticks)) as spool:
        assert spool.status().oldest_ns is None
        filled(spool, 5)
        spool.next_batch(0, 2, 0)
        spool.delete("c4")
        status = spool.status()
    assert status.clips == {"pending": 2, "journaled": 2, "deleted": 1}
    assert (status.held, status.bytes, status.oldest_ns) == (4, 36, 1002)
    assert (status.journaled_up_to, status.finished_up_to, status.retired_up_to) == (1, 0, 0)


# The file.


def test_others_can_read_neither_the_folder_nor_its_files(spool, folder):
    spool.append("a", b"x")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 4, "the database, its log and index, the turnstile"


def test_a_folder_that_others_may_read_is_refused(folder):
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(StorageError, match=r"mode 755.*chmod 700"):
        Spool(folder)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made"):
        Spool(tmp_path / "file" / "spool")


def test_a_file_that_is_no_spool_is_refused(folder):
    folder.mkdir(mode=0o700)
    (folder / "clips.sqlite").write_bytes(b"not a database, but long enough to be read" * 100)
    with pytest.raises(CorruptError, match=r"is damaged.*move it away"):
        Spool(folder)


def test_a_database_of_something_else_is_refused(folder):
    folder.mkdir(mode=0o700)
    with sqlite3.connect(folder / "clips.sqlite") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(CorruptError, match="another folder"):
        Spool(folder)


def test_a_damaged_payload_is_told_and_not_learned(spool, folder):
    spool.append("a", b"x" * 200_000)
    spool.close()
    path = folder / "clips.sqlite"
    data = path.read_bytes()
    place = data.rindex(b"xxxx") - 1000
    path.write_bytes(data[:place] + b"y" + data[place + 1 :])
    with Spool(folder) as spool, pytest.raises(CorruptError, match=r"clip 'a'.*damaged"):
        spool.next_batch(0, 1, 0)


def test_a_full_disk_is_told_and_what_is_there_stays(folder, monkeypatch):
    with Spool(folder) as spool:
        filled(spool, 1)
    connect = sqlite3.connect

    def on_a_small_disk(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA max_page_count=20")
        return connection

    monkeypatch.setattr(spoolfile.sqlite3, "connect", on_a_small_disk)
    with Spool(folder) as spool:
        with pytest.raises(DiskFullError, match="make room"):
            spool.append("big", bytes(1_000_000))
        assert spool.append("small", b"x") == "stored"
        assert ids(spool.next_batch(0, 9, 0)) == ["c0", "small"]


def test_another_process_that_holds_the_file_for_long_is_told(folder, monkeypatch):
    monkeypatch.setattr(spoolfile, "_BUSY_S", 0.01)
    with Spool(folder) as spool, closing(sqlite3.connect(spool.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            spool.append("a", b"x")
