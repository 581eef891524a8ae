"""The link against a board whose every answer the test writes: times, repetition, credit."""

import asyncio
import math
import random
import statistics
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest

from asyncinfer.errors import DeviceLost, DeviceTimeout, ProtocolError
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.codec import Decoder
from asyncinfer_drivers.cortex_m.constants import LAST_SEQUENCE, ErrorCode
from asyncinfer_drivers.cortex_m.link import Link
from asyncinfer_drivers.cortex_m.quality import LineQuality
from asyncinfer_drivers.cortex_m.timing import Estimator, Timing
from asyncinfer_drivers.cortex_m.transport import memory_pair
from asyncinfer_drivers.cortex_m.window import TooLong

SAMPLE = bytes(4)


class Scripted:
    """A board that says HELLO and nothing else by itself; ``got`` has what came, with the time."""

    def __init__(self, spec):
        self.spec = spec
        self.got = []
        self.decoder = Decoder()
        self.lost = False
        self.deaf = False
        #: HELLOs after the first one, and when they came
        self.asked = []

    async def connect(self, receiver):
        host, self.end = memory_pair(receiver, self)
        return host

    def data_received(self, data):
        for frame in map(frames.parse, self.decoder.feed(data)):
            now = round(asyncio.get_running_loop().time(), 6)
            if isinstance(frame, frames.Hello):
                self.asked.append((now, frame))
                if not self.deaf:
                    self.send(frames.HelloReply(frame.sequence, self.spec))
            else:
                self.got.append((now, frame))

    def connection_lost(self, error):
        self.lost = True

    def send(self, frame):
        self.end.write(frames.encode(frame))

    def result(self, sequence, first=0, count=1):
        self.send(frames.Result(sequence, count, 0, bytes([first, 0, 0]) * count))

    @property
    def sequences(self):
        return [frame.sequence for _, frame in self.got]


def infer(sequence, count=1):
    return frames.Infer(sequence, count, SAMPLE * count)


@pytest.fixture
def linked(virtual, board):
    """Runs ``use(link, scripted board)`` on the virtual clock; a third request waits for credit."""

    def run(use, timing=None, **options):
        async def go():
            scripted = Scripted(replace(board().spec, frames_in_flight=2))
            link = Link("mcu", scripted.connect, timing or Timing(), **options)
            try:
                await link.open()
                return await use(link, scripted)
            finally:
                await link.close()
                assert scripted.lost

        return virtual(go())

    return run


def settled():
    return asyncio.sleep(1e-6)


def test_no_more_requests_are_in_flight_than_the_board_takes(linked):
    async def use(link, board):
        futures = [link.start(infer, 1) for _ in range(5)]
        for done in range(5):
            await settled()
            assert len(board.got) == min(5, done + 2)
            board.result(board.sequences[done], done)
        return [(await future).data[0] for future in futures]

    assert linked(use) == [0, 1, 2, 3, 4]


def test_answers_may_come_in_any_order(linked):
    async def use(link, board):
        one, other = link.start(infer, 1), link.start(frames.Stats)
        await settled()
        first, second = board.sequences
        board.send(frames.StatsReply(second))
        await settled()
        assert other.done()
        assert not one.done()
        board.result(first, 7)
        assert (await one).data[0] == 7
        assert len(board.got) == 2

    linked(use)


def test_a_request_overtaken_by_a_later_one_is_sent_again_at_once(linked):
    async def use(link, board):
        one, other = link.start(infer, 1), link.start(infer, 1)
        await settled()
        lost, good = board.sequences
        board.result(good, 1)
        await settled()
        assert board.sequences == [lost, good, lost]
        board.result(lost, 2)
        assert [(await future).data[0] for future in (one, other)] == [2, 1]
        assert (link.stats.resent, link.stats.timeouts) == (1, 0)

    linked(use)


def test_a_silent_board_is_asked_with_growing_pauses_and_then_given_up(linked):
    async def use(link, board):
        board.deaf = True
        with pytest.raises(DeviceLost, match="silent: 4 timeouts in a row"):
            await link.start(infer, 1)
        with pytest.raises(DeviceLost, match="silent"):
            link.start(infer, 1)
        assert len(board.got) == 1  # it may be computing: that it shall compute again helps nobody
        return [time for time, _ in board.asked]

    timing = Timing(first=1.0, slack=0.5, longest=4.0, timeouts=4)
    assert linked(use, timing) == [0.0, 1.5, 4.5, 10.5]


def test_a_board_that_was_quick_is_given_up_sooner(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        await asyncio.sleep(0.1)
        board.result(board.sequences[0])
        await future
        board.deaf = True
        start = asyncio.get_running_loop().time()
        with pytest.raises(DeviceLost, match="silent: 6 timeouts in a row"):
            await link.start(infer, 1)
        return asyncio.get_running_loop().time() - start

    # 0.1 s, 4 deviations of 0.05 s; doubled five times, but none longer than 2 s
    assert linked(use, Timing(slack=0.0, longest=2.0)) == pytest.approx(0.3 + 0.6 + 1.2 + 3 * 2.0)


def test_the_first_request_that_is_lost_is_sent_again_after_the_first_wait(linked):
    """However many samples it has, and with nothing measured."""

    async def use(link, board):
        sends = [link.start(partial(infer, count=4), 4) for _ in range(2)]
        await asyncio.sleep(3.06)
        assert [time for time, _ in board.got] == pytest.approx([0.0, 0.0, 3.05, 3.05])
        for sequence in board.sequences[:2]:
            board.result(sequence, count=4)
        await asyncio.gather(*sends)

    linked(use)


def test_what_is_lost_is_sent_again_only_when_it_is_known_who_is_there(linked):
    """A board may have booted with another program, and its banner been damaged."""

    async def use(link, board):
        future = link.start(infer, 1)
        await settled()
        board.spec = replace(board.spec, model="other")
        with pytest.raises(ProtocolError, match="another program"):
            await future
        assert len(board.got) == 1

    linked(use)


def test_a_boot_whose_banner_was_damaged_is_noticed(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        await settled()
        board.spec = replace(board.spec, boot_counter=board.spec.boot_counter + 1)
        await asyncio.sleep(4)
        board.result(board.sequences[-1], 5)
        assert (await future).data[0] == 5
        return link.stats.boots, len(board.got)

    assert linked(use) == (1, 2)


def test_another_program_with_the_same_boot_counter_is_noticed(linked):
    """A board that was without power counts from the beginning."""

    async def use(link, board):
        future = link.start(infer, 1)
        await settled()
        board.send(frames.HelloReply(0, replace(board.spec, model="other")))
        with pytest.raises(ProtocolError, match="another program"):
            await future

    linked(use)


def test_the_wait_does_not_grow_while_the_board_is_heard(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        await asyncio.sleep(0.1)
        board.result(board.sequences[0])
        await future
        link.start(infer, 1).add_done_callback(lambda future: future.exception())
        await asyncio.sleep(10)
        return [time for time, _ in board.got[1:]]

    times = linked(use, Timing(slack=0.0))
    assert len(times) > 20
    assert all(after - before == pytest.approx(0.3) for before, after in pairwise(times))


def test_a_board_that_became_slow_is_learned_from_answers_to_what_was_repeated(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        await asyncio.sleep(0.1)
        board.result(board.sequences[0])
        await future
        future = link.start(infer, 1)
        await asyncio.sleep(1.0)  # it answers HELLO meanwhile, as the protocol does not forbid
        board.send(frames.Result(board.sequences[-1], 1, 2000, bytes(3)))
        await future
        return link._window._estimator.wait(1), board.spec.tick_hz

    wait, hz = linked(use)
    assert wait >= 2000 / hz


def test_a_request_that_was_lost_is_given_back_if_it_is_too_long_for_the_line(linked):
    async def use(link, board):
        (pixels,) = board.spec.inputs
        large = replace(pixels, shape=(500,))
        link._window.board = board.spec = replace(board.spec, inputs=(large,), receive_buffer=2048)
        assert link.samples_per_frame == 4
        future = link.start(lambda sequence: frames.Infer(sequence, 4, bytes(2000)), 4)
        assert isinstance(await future, TooLong)
        return link.samples_per_frame, len(board.got)

    assert linked(use) == (1, 1)


@pytest.mark.parametrize("one_in", [100, 1_000, 10_000, 1_000_000])
@pytest.mark.parametrize("sample", [10, 70, 500, 3_000])
def test_requests_are_as_long_as_the_line_is_good(one_in, sample):
    """Against trying each length out on a line that damages one byte in so many."""
    chance, quality, most = random.Random(42), LineQuality(), 32

    def through(size):
        return chance.random() < math.exp(-size / one_in)

    def share(count):
        size = count * sample + 40
        return count * math.exp(-size / one_in) / size

    found = []
    for turn in range(600):
        count = quality.samples(most, sample)
        size = count * sample + 40
        quality.add(size, lost=not through(size))
        if turn >= 100:
            found.append(share(count))
    best = max(share(count) for count in range(1, most + 1))
    assert statistics.fmean(found) > 0.85 * best


def test_a_line_that_became_good_gets_long_requests_again():
    quality = LineQuality()
    for _ in range(50):
        quality.add(2_000, lost=True)
    assert quality.samples(4, 500) == 1
    for _ in range(2_000):
        quality.add(540, lost=False)
    assert quality.samples(4, 500) == 4


def test_the_timeout_follows_what_answers_take(linked):
    async def use(link, board):
        for n in range(50):
            future = link.start(infer, 1)
            await asyncio.sleep(0.1)
            board.result(board.sequences[n])
            await future
        started = asyncio.get_running_loop().time()
        link.start(infer, 1).add_done_callback(lambda future: future.exception())
        await asyncio.sleep(0.3)
        return board.got[-1][0] - started, link.stats.timeouts

    took, timeouts = linked(use)
    assert timeouts == 1
    assert took == pytest.approx(0.15, abs=0.01)


def test_the_time_on_a_slow_line_is_allowed_for(linked):
    async def use(link, board):
        link.start(infer, 1).add_done_callback(lambda future: future.exception())
        await asyncio.sleep(20)
        return board.got[1][0], len(frames.encode(board.got[0][1]))

    resent, size = linked(use, Timing(first=1.0, slack=0.0), byte_seconds=0.1)
    assert resent == pytest.approx(1.0 + 0.1 * size)


def test_late_and_doubled_answers_are_ignored(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        await settled()
        (sequence,) = board.sequences
        board.result(sequence % LAST_SEQUENCE + 1, 9)
        board.result(sequence, 1)
        board.result(sequence, 2)
        assert (await future).data[0] == 1
        await settled()
        other = link.start(infer, 1)
        board.result(sequence, 3)  # it was computed before a reset, say
        await settled()
        assert not other.done()
        board.result(board.sequences[-1], 4)
        assert (await other).data[0] == 4
        return link.stats.late

    assert linked(use) == 3


def test_a_cancelled_request_keeps_its_credit_until_it_is_answered(linked):
    async def use(link, board):
        futures = [link.start(infer, 1) for _ in range(4)]
        await settled()
        futures[0].cancel()
        futures[2].cancel()
        await settled()
        assert len(board.got) == 2
        board.result(board.sequences[0])
        await settled()
        assert len(board.got) == 3  # the third was never sent
        board.result(board.sequences[1])
        board.result(board.sequences[2], 5)
        return (await futures[3]).data[0]

    assert linked(use) == 5


def test_a_cancelled_request_that_was_lost_frees_its_credit(linked):
    async def use(link, board):
        futures = [link.start(infer, 1) for _ in range(3)]
        await settled()
        for future in futures[:2]:
            future.cancel()
        await asyncio.sleep(60)
        board.result(board.sequences[-1], 5)
        assert len(set(board.sequences)) == 3
        return (await futures[2]).data[0]

    assert linked(use, Timing(timeouts=100)) == 5


def test_a_boot_sends_everything_unanswered_again_in_order(linked):
    async def use(link, board):
        one, other = link.start(infer, 1), link.start(frames.Reset)
        await settled()
        first, second = board.sequences
        spec = replace(board.spec, boot_counter=board.spec.boot_counter + 1)
        for _ in range(2):  # a doubled banner is one boot
            board.send(frames.HelloReply(0, spec))
        assert (await other).board == spec == link.board
        await settled()
        assert board.sequences == [first, second, first]
        board.result(first)
        await one
        return link.stats.boots

    assert linked(use) == 1


def test_another_program_after_a_boot_ends_the_link(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        await settled()
        board.send(frames.HelloReply(0, replace(board.spec, boot_counter=99, firmware="new")))
        with pytest.raises(ProtocolError, match="another program"):
            await future

    linked(use)


def test_busy_is_no_loss_and_ends_with_a_timeout_if_it_never_ends(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        for _ in range(5):
            await asyncio.sleep(0.1)
            board.send(frames.Error(board.sequences[-1], ErrorCode.BUSY))
        with pytest.raises(DeviceTimeout, match="sent 4 times"):
            await future
        return link.stats.timeouts

    assert linked(use, Timing(attempts=4)) == 0


@pytest.mark.parametrize(
    "answer",
    [
        frames.Pong,
        partial(frames.Result, count=2, ticks=0, data=bytes(6)),
        partial(frames.Result, count=1, ticks=0, data=bytes(2)),
    ],
)
def test_an_answer_of_another_kind_or_length_breaks_the_protocol(linked, answer):
    async def use(link, board):
        future = link.start(infer, 1)
        await settled()
        board.send(answer(board.sequences[0]))
        with pytest.raises(ProtocolError):
            await future
        other = link.start(infer, 1)
        await settled()
        board.result(board.sequences[-1], 3)
        return (await other).data[0]

    assert linked(use) == 3


def test_sequence_numbers_go_round_and_leave_out_zero(linked):
    async def use(link, board):
        kept = link.start(infer, 1)
        await settled()
        (pending,) = board.sequences
        used = [link._window.next_sequence() for _ in range(LAST_SEQUENCE + 10)]
        kept.cancel()
        return pending, used

    pending, used = linked(use)
    assert 0 not in used
    assert pending not in used
    assert len(set(used)) == LAST_SEQUENCE - 1


def test_noise_is_counted_and_harms_nothing(linked):
    async def use(link, board):
        future = link.start(infer, 1)
        board.end.write(b"\x00\x05hello\x00\x03\x01\x01\x00" + bytes(range(256)))
        await settled()
        board.result(board.sequences[0], 6)
        return (await future).data[0], link.stats.bad_frames

    output, bad = linked(use)
    assert output == 6
    assert bad >= 1


def test_close_ends_what_waits(linked):
    async def use(link, board):
        futures = [link.start(infer, 1) for _ in range(4)]
        await link.close()
        for future in futures:
            with pytest.raises(DeviceLost, match="closed"):
                await future

    linked(use)


def test_the_wait_is_per_sample_and_clamped():
    estimator = Estimator(Timing(slack=0.0, first=1.0, longest=5.0))
    assert estimator.wait(1) == 1.0
    assert estimator.wait(4) == 1.0
    for _ in range(3):
        estimator.timed_out()
    assert estimator.wait(1) == 8.0  # it may be slow
    estimator.add(1.0, 1)
    estimator.add(1.0, 1)
    assert estimator.wait(1) == 5.0
    assert estimator.wait(8) > 8.0  # never less than it should take
    for _ in range(100):
        estimator.add(0.2, 10)
    assert estimator.wait(10) == pytest.approx(8 * 0.2, rel=0.01)
    estimator.heard()
    assert estimator.wait(10) == pytest.approx(0.2, rel=0.01)
    assert estimator.wait(0) == estimator.wait(1)
