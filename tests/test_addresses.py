"""Addresses are shown without what is secret in them, whatever they look like."""

from __future__ import annotations

import pytest
from atlasd.streams.addresses import check, is_address, redacted, without_secrets
from atlasd.streams.sources import UnsupportedError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://cam/stream1", "rtsp://cam/stream1"),
        ("rtsp://joe:pw@cam:554/a/b", "rtsp://***@cam:554/a/b"),
        ("rtsp://joe@cam", "rtsp://***@cam"),
        ("RTSP://joe:p%40w@[::1]:554/", "RTSP://***@[::1]:554/"),
        ("rtsp://joe:p@w@cam/x", "rtsp://***@cam/x"),
        ("rtsp://joe:p/w@cam/x", "rtsp://***"),
        ("rtsp://joe:p?w@cam/x?q=1", "rtsp://***"),
        ("http://h/v.m3u8?token=abc&w=1;k=2#t=3", "http://h/v.m3u8?token=***&w=***#***"),
        ("http://h/v?a=b&cd&e e=f", "http://h/v?a=***&***&***"),
        ("http://h/v?abcdef", "http://h/v?***"),
        ("http://h/v#frag", "http://h/v#***"),
        ("video.mp4", "video.mp4"),
        ("/media/a?b=c.mp4", "/media/a?b=c.mp4"),
        ("file:///media/a.mp4", "file:///media/a.mp4"),
    ],
)
def test_what_is_secret_is_not_shown(address, shown):
    assert redacted(address) == shown
    assert redacted(shown) == shown


SECRET = st.text("abcXYZ019._-~%!$:;&=[]/?#@", min_size=4, max_size=20)


@given(SECRET, SECRET)
def test_no_password_and_no_token_is_ever_shown(password, token):
    """Whatever characters they hold, and wherever people forgot to encode them."""
    password, token = f"<{password}>", f"<{token}>"
    for address in (f"rtsp://joe:{password}@host/path", f"http://host/path?token={token}"):
        shown = redacted(address)
        assert "<" not in shown
        assert shown.partition("://")[0] in {"rtsp", "http"}
        told = without_secrets(f"cannot open '{address}': refused", address)
        assert password not in told
        assert token not in told


def test_a_library_that_quotes_parts_of_an_address_tells_nothing():
    address = "http://joe:s3cr%40et@cam/v?token=t0ken"
    words = "user joe:s3cr@et of s3cr%40et with token=t0ken at http://cam/v"
    assert without_secrets(words, address) == "user *** of *** with *** at http://cam/v"
    assert without_secrets("as it was", "video.mp4") == "as it was"


def test_only_addresses_are_addresses():
    assert is_address("rtsp://h/x")
    assert not is_address("C:/a.mp4")
    assert not is_address("file:///a.mp4")
    assert not is_address("a.mp4")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gopher://h/x", "begins with gopher://"),
        ("rtsp:///x", "has no host"),
        ("rtsp://h:99999/x", "port"),
        ("rtsp://h:port/x", "port"),
        ("rtsp://joe:s3cret@h:port/x", "port"),
        ("rtsp://[::1/x", "brackets"),
        ("rtsp://h/a b", "blanks"),
        ("rtsp://h/a\nb", "blanks"),
        ("rtsp://h/" + "a" * 5000, "most"),
    ],
)
def test_what_no_attempt_could_open_is_refused_at_once(address, words):
    with pytest.raises(UnsupportedError, match=words) as caught:
        check(address)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["rtsp://h/x", "http://1.2.3.4:80", "udp://@:5000", "srt://h:9000?mode=caller"]
)
def test_what_may_be_opened_is_let_through(address):
    check(address)
