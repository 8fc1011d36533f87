"""The bench of subscribers that come and go, in small: a real daemon, real passers-by."""

import io
import json

import pytest
import zmq
from atlasd.daemon.publisher import Publisher
from atlasd.tools.bareforward import BenchError
from atlasd.tools.passersby import pass_by
from atlasd.tools.subscribersbench import LATENCY_BAR, bench_subscribers
from rich.console import Console
from served import tiny_checkpoint
from wire import a_mask, await_subscribers, raw_subscriber


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_masks_are_timed_alone_and_while_subscribers_pass(tmp_path):
    text = io.StringIO()
    report = bench_subscribers(
        "tiny",
        subscribers=60,
        at_once=10,
        rounds=1,
        frames=30,
        fps=15,
        weights=tiny_checkpoint(tmp_path),
        json_path=tmp_path / "report.json",
        console=Console(file=text, width=160),
    )
    assert report.came == 60
    assert report.seen >= 2  # the daemon hears of a departure a little later
    assert report.lost == 0
    assert len(report.p99_ms) == 3
    for latencies in report.latency_ms.values():
        assert 0 < latencies["p50"] <= latencies["p95"] <= latencies["p99"]
    ratio = report.latency_ms["on"]["p99"] / report.latency_ms["off"]["p99"]
    assert report.ratio == pytest.approx(ratio)
    assert report.interval[0] <= ratio <= report.interval[1]
    assert report.passed == (ratio <= LATENCY_BAR)
    assert json.loads((tmp_path / "report.json").read_text())["came"] == 60
    assert "p99 on ÷ off" in text.getvalue()


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "ipc://{tmp}/bus"])
def test_passers_by_of_all_kinds_leave_nothing_behind(endpoint, tmp_path):
    with zmq.Context() as context, Publisher(endpoint.format(tmp=tmp_path), "live") as publisher:
        keen = raw_subscriber(context, publisher.endpoint, b"m/")
        await_subscribers(publisher, 1)
        assert pass_by(publisher.endpoint, 30, 20, 0.5) == 30
        await_subscribers(publisher, 1)
        publisher.publish(a_mask(0))
        assert keen.recv().startswith(b"m/main\0")
        keen.close()


def test_a_round_without_subscribers_is_refused():
    with pytest.raises(BenchError, match="each round needs at least one"):
        bench_subscribers("tiny", subscribers=3, rounds=4)
