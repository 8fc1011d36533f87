"""Epochs from two interleaved tracks' timestamps: breaks, holes, strays, bounds."""

from __future__ import annotations

import dataclasses

from atlasd.streams.clips import NS_PER_S
from atlasd.streams.timeline import HOLD_ITEMS, Break, Item, Odd, Placed, Timeline

MS = 1_000_000
BOTH = ("video", "audio")


def video(at_s, *, size=1) -> Item[str]:
    return Item("video", round(at_s * NS_PER_S), round((at_s + 0.04) * NS_PER_S), size, f"v{at_s}")


def audio(at_s) -> Item[str]:
    return Item("audio", round(at_s * NS_PER_S), round((at_s + 0.02) * NS_PER_S), 1, f"a{at_s}")


def interleaved(first_s, last_s, *, audio_ahead_s=0.0) -> list[Item[str]]:
    """Both tracks over a stretch, sound earlier in the file by some seconds."""
    count = round((last_s - first_s) / 0.02)
    items = [(first_s + i * 0.02 - audio_ahead_s, audio(first_s + i * 0.02)) for i in range(count)]
    items += [(first_s + i * 0.04, video(first_s + i * 0.04)) for i in range(count // 2)]
    return [item for _, item in sorted(items, key=lambda pair: pair[0])]


def run(items, tracks=BOTH) -> list[Placed[str] | Break | Odd]:
    timeline = Timeline[str](tracks)
    out = [placed for item in items for placed in timeline.add(item)]
    return out + list(timeline.finish())


def placed(out, track=None, epoch=None) -> list[Placed[str]]:
    return [
        p
        for p in out
        if isinstance(p, Placed)
        and track in (None, p.item.track)
        and epoch in (None, p.epoch)
    ]  # fmt: skip


def test_the_origin_is_the_earliest_of_both_tracks():
    """An offset between the tracks stays, whichever begins first in the file."""
    out = run([video(1.44), audio(1.40), video(1.48), audio(1.42)])
    assert [p.start_ns // MS for p in placed(out)] == [40, 0, 80, 20]


def test_a_track_that_begins_late_does_not_hold_the_other_for_long():
    """Pictures go out after a second, or the bound of items."""
    out, timeline, pushed = [], Timeline[str](BOTH), 0
    while not out:
        out = list(timeline.add(video(pushed * 0.04)))
        pushed += 1
    assert pushed <= HOLD_ITEMS
    assert len(out) == pushed


def test_negative_times_are_times():
    """The origin may lie before the container's zero."""
    out = run([audio(-0.02), video(-0.01), video(0.03)])
    assert [p.start_ns // MS for p in placed(out)] == [0, 10, 50]


def test_both_tracks_reset_and_the_tail_of_the_old_comes_first():
    """Sound is 0.5 s ahead in the file, so it resets first; order and sync hold."""
    one = interleaved(10, 12, audio_ahead_s=0.5)
    two = interleaved(0, 2, audio_ahead_s=0.5)
    mixed = [*one[:-12], *two[:12], *one[-12:], *two[12:]]
    assert {i.track for i in two[:12]} == {"audio"}
    out = run(mixed)
    at = next(i for i, p in enumerate(out) if isinstance(p, Break))
    assert all(p.epoch == 0 for p in out[:at])
    assert all(p.epoch == 1 for p in out[at + 1 :])
    assert len(placed(out)) == len(mixed)
    old, new = placed(out, epoch=0), placed(out, epoch=1)
    assert {p.start_ns - p.item.start_ns for p in old} == {-10 * NS_PER_S}
    assert len({p.start_ns - p.item.start_ns for p in new}) == 1
    assert min(p.start_ns for p in new) == 2 * NS_PER_S


def test_a_jump_forward_of_both_is_a_break():
    """Ten seconds later, both."""
    out = run([*interleaved(0, 2), *interleaved(12, 14)])
    assert [p.epoch for p in out if isinstance(p, Break)] == [1]
    assert len(placed(out, epoch=0)) == len(placed(out, epoch=1)) == 150


def test_lost_sound_is_a_hole_not_a_break():
    """Sound stops for three seconds while pictures go on."""
    items = [i for i in interleaved(0, 6) if i.track == "video" or not 2 <= i.start_ns / 1e9 < 5]
    out = run(items)
    assert not [p for p in out if isinstance(p, Break)]
    assert len(placed(out)) == len(items)
    assert all(p.start_ns == p.item.start_ns for p in placed(out))


def test_a_stalled_camera_is_a_hole_not_a_break():
    """Pictures stop for three seconds while sound goes on."""
    items = [i for i in interleaved(0, 6) if i.track == "audio" or not 2 <= i.start_ns / 1e9 < 5]
    out = run(items)
    assert not [p for p in out if isinstance(p, Break)]
    assert len(placed(out)) == len(items)


def test_a_slow_video_does_not_break_at_every_picture():
    """A picture each two seconds: a period of two seconds is no jump."""
    slow = [
        Item("video", i * 2 * NS_PER_S, (i + 1) * 2 * NS_PER_S, 1, str(i)) for i in range(5)
    ]  # fmt: skip
    assert not [p for p in run(slow, ("video",)) if isinstance(p, Break)]


def test_one_stray_timestamp_is_repaired_and_told():
    """A single wild picture keeps its place in the order; no epoch opens."""
    items = interleaved(0, 2)
    k = next(i for i, item in enumerate(items) if item.payload == video(1.0).payload)
    items[k] = video(500.0)
    out = run(items)
    assert [p.kind for p in out if isinstance(p, Odd)] == ["stray_pts"]
    assert not [p for p in out if isinstance(p, Break)]
    pictures = placed(out, "video")
    assert [p.start_ns for p in pictures] == sorted(p.start_ns for p in pictures)
    assert len(placed(out)) == len(items)


def test_pictures_without_a_sound_track_break_at_once():
    """There is nobody to ask."""
    out = run([video(0), video(0.04), video(10)], ("video",))
    assert [type(p) for p in out] == [Placed, Placed, Break, Placed]
    assert out[-1].start_ns == 80 * MS


def test_pictures_that_reset_alone_open_an_epoch_and_old_sound_is_told():
    """After a second without an answer the pictures decide; sound joins when it resets too."""
    alone = [*interleaved(10, 11), *(video(i * 0.04) for i in range(30))]
    stale = [audio(11.0), audio(11.02)]
    joined = [audio(1.2), video(1.2), audio(1.22)]
    out = run([*alone, *stale, *joined])
    assert [p.epoch for p in out if isinstance(p, Break)] == [1]
    assert [p.kind for p in out if isinstance(p, Odd)] == ["stale_audio"] * 2
    assert [p.item.payload for p in placed(out, "audio", 1)] == ["a1.2", "a1.22"]
    offsets = {p.start_ns - p.item.start_ns for p in placed(out, epoch=1)}
    assert len(offsets) == 1


def test_held_pictures_are_bounded_by_their_bytes():
    """Two pictures of 40 MB are enough to decide without sound."""
    timeline = Timeline[str](BOTH)
    for item in interleaved(10, 11):
        list(timeline.add(item))
    assert not list(timeline.add(video(0.0, size=40_000_000)))
    assert list(timeline.add(video(0.04, size=40_000_000)))


def test_what_is_held_at_the_end_comes_out():
    """A jump in the very last items loses nothing."""
    for jumped in ([video(0.0)], [audio(0.0)], [audio(30.0)]):
        items = [*interleaved(10, 11), *jumped]
        assert len(placed(run(items))) == len(items)
    assert run([]) == []


def live(items, arrivals_s) -> list[Item[str]]:
    pairs = zip(items, arrivals_s, strict=True)
    return [dataclasses.replace(item, arrival_ns=round(at * NS_PER_S)) for item, at in pairs]


def test_a_live_jump_that_took_its_time_is_a_hole():
    """The network was down for five seconds: times and the host's clock went on alike."""
    times = [0.0, 0.04, 0.08, 5.12, 5.16]
    out = run(live([video(t) for t in times], [t + 100.3 for t in times]), ("video",))
    assert [p.start_ns for p in placed(out)] == [round(t * NS_PER_S) for t in times]
    assert not [x for x in out if isinstance(x, Break)]


def test_a_live_jump_that_took_no_time_is_a_break():
    """The sender's times were set: five seconds of them passed in forty milliseconds."""
    times = [0.0, 0.04, 0.08, 5.12, 5.16]
    out = run(live([video(t) for t in times], [100 + i * 0.04 for i in range(5)]), ("video",))
    assert [b.epoch for b in out if isinstance(b, Break)] == [1]


def test_a_live_jump_backwards_is_a_break_however_long_it_took():
    out = run(live([video(9.0), video(9.04), video(0.0)], [100.0, 100.04, 109.0]), ("video",))
    assert [b.epoch for b in out if isinstance(b, Break)] == [1]
