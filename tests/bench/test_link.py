"""The suite link: its rows and claims; against QEMU if it is here, without timing anything."""

import math

import pytest

from asyncinfer.bench.link import board, lines
from asyncinfer.bench.link import suite as link
from asyncinfer.bench.record import Run
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig, parse
from asyncinfer.errors import ConfigError


def test_lines_by_name():
    emulated = DeviceConfig("cortex_m4_emulated", "m4", {"baudrate": 115_200})
    assert lines.Line(emulated, 4).name == "m4: 115200 baud, 4 in flight"
    unpaced = lines.Line(DeviceConfig("cortex_m4_emulated", "m4"), 1)
    assert unpaced.name == "m4: not paced, 1 in flight"
    assert math.isnan(unpaced.baudrate)
    real = lines.Line(DeviceConfig("cortex_m4", "m4", {"port": "/dev/ttyACM0"}), 1)
    assert real.baudrate == 921_600  # the driver's default


def test_a_line_gets_tasks_for_a_time():
    line = lines.Line(DeviceConfig("cortex_m4_emulated", "m4", {"baudrate": 115_200}), 4)
    assert line.tasks(79, 2.0) == 291  # 11,520 bytes a second
    assert line.tasks(79, 0.001) == 10
    unpaced = lines.Line(DeviceConfig("cortex_m4_emulated", "m4"), 1)
    assert unpaced.tasks(79, 0.5) == 200


def test_the_driver_has_so_many_in_flight():
    pytest.importorskip("numpy")
    driver = lines.Line(DeviceConfig("cortex_m4_emulated", "m4", {"elf": "x.elf"}), 3).driver()
    assert (driver.max_batch, driver.concurrency) == (1, 3)


def test_figures_of_a_line():
    figures = lines.line_figures(100.0, 80, 115_200)
    assert figures["bytes_per_second"] == 8000
    assert figures["line_share"] == pytest.approx(80_000 / 115_200)
    assert math.isnan(lines.line_figures(100.0, 80, math.nan)["line_share"])


def test_bytes_of_a_request():
    assert lines.request_bytes(64) > 64


def _line(share, *, bare=1.0, baud=115_200, in_flight=4, policy="wire protocol"):
    figures = {
        "line_share": share,
        "bare_efficiency": bare,
        "turns": [share / min(1, bare)] * 3,
        "baudrate": baud,
        "in_flight": in_flight,
        "bytes_per_second": share * baud / 10,
    }
    case = f"m4: {baud} baud, {in_flight} in flight"
    return Run(suite="link", case=case, policy=policy, throughput=100.0, figures=figures)


def _trip(times):
    figures = {"overhead": times, "bare_echo_seconds": 0.001, "link_seconds": 0.001 * times}
    return Run(suite="link", case="round trip", figures=figures)


def test_checks_say_whether_claims_hold():
    runs = [_line(0.99), _line(0.94), _line(0.96), _trip(1.25)]
    share, trip = link.checks(runs)
    assert share.met
    assert share.measured == "96.0% of what the line allows; 96.0% of the line"
    assert (trip.met, trip.measured) == (False, "1.25 x")
    assert trip.why
    assert not link.checks([_line(0.9)])[0].met
    assert link.checks([_trip(1.2)])[0].met


def test_a_board_slower_than_the_line_is_the_limit():
    (share,) = link.checks([_line(0.52, bare=0.53)] * 3)
    assert share.met
    assert share.measured == "98.1% of what the board allows; 52.0% of the line"


@pytest.mark.parametrize(("bare", "limit"), [(1.0, "line"), (0.8, "board")])
def test_a_link_that_waits_for_each_answer_is_found_out(bare, limit):
    (share,) = link.checks([_line(0.57, bare=bare)] * 3)
    assert not share.met
    assert f"of what the {limit} allows; 57.0% of the line" in share.measured
    assert share.why


def test_turns_count_alike_in_whichever_round():
    """A round in which the host was busy is outvoted, turn by turn."""
    slow, fast = _line(0.3, bare=0.6), _line(0.99)
    assert link.checks([slow, fast, fast])[0].met
    assert not link.checks([fast, slow, slow])[0].met


def test_only_the_stated_line_counts():
    other = [_line(0.1, baud=230_400), _line(0.1, in_flight=1), _line(0.1, policy="stream")]
    assert link.checks(other) == []


def test_without_the_emulator(monkeypatch):
    def missing():
        raise ConfigError("the emulated board needs qemu-system-arm: ...")

    monkeypatch.setattr(link, "firmware", missing)
    outcome = link.run(Context(short=True))
    assert outcome.skipped == [
        "the emulated Cortex-M4: the emulated board needs qemu-system-arm: ..."
    ]
    assert outcome.runs == outcome.tables == outcome.checks == []


def test_firmware_says_what_is_missing(monkeypatch):
    pytest.importorskip("numpy")
    monkeypatch.setattr("asyncinfer_drivers.cortex_m.emulated_driver.missing", lambda: "a tool")
    with pytest.raises(ConfigError, match="a tool"):
        board.firmware()


def test_a_board_that_is_not_there_is_skipped(monkeypatch, tmp_path):
    pytest.importorskip("numpy")
    monkeypatch.setattr(link, "_emulated", lambda *_: None)
    monkeypatch.setattr(link, "firmware", lambda: "x.elf")
    config = parse(
        f"""[[device]]
        driver = "cortex_m4"
        name = "own"
        [device.options]
        port = "{tmp_path}/no-port"
        """
    )
    outcome = link.run(Context(config=config, short=True))
    assert [line.partition(":")[0] for line in outcome.skipped] == ["boards of the config"]
    assert not outcome.runs


@pytest.mark.slow
@pytest.mark.timeout(300)  # the first one builds the firmware
def test_the_short_form():
    pytest.importorskip("torch")
    from asyncinfer_drivers.cortex_m.emulated_driver import missing

    if reason := missing():
        pytest.skip(reason)
    outcome = link.run(Context(short=True))
    assert outcome.suite == "link"
    assert not outcome.skipped
    lines = [run for run in outcome.runs if "line_share" in run.figures]
    assert {(run.policy, run.figures["in_flight"]) for run in lines} == {
        ("stream", 1),
        ("stream", 4),
        ("wire protocol", 4),
    }
    for run in lines:
        assert 0 < run.figures["line_share"] <= 1.1
        assert run.throughput > 0
    assert len(outcome.checks) == 2
    for table in outcome.tables:
        assert "Emulated" in table.note or "emulated" in table.note
        assert all(len(row) == len(table.columns) for row in table.rows)
