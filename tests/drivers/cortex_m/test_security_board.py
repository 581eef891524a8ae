"""What a board says of itself is not believed without limit."""

from dataclasses import replace

import pytest

from asyncinfer.errors import ProtocolError
from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.link import MAX_BODY


def test_a_board_that_announces_huge_answers_is_refused(virtual, board, driver):
    peer = board("perfect")
    (output,) = peer.spec.outputs
    for shape in ((1 << 31,), (1 << 31,) * 100):
        peer.spec = replace(peer.spec, outputs=(replace(output, shape=shape),))
        greedy = driver(peer)

        async def opening(greedy=greedy):
            try:
                await greedy.open()
            finally:
                await greedy.close()

        with pytest.raises(ProtocolError, match=f"more than {MAX_BODY:,}"):
            virtual(opening())


def test_a_boards_words_do_not_command_the_terminal(caplog):
    log = frames.parse(frames.Log(0, 30, "hot\x1b[2J\x07").to_bytes())
    assert log.text == "hot\ufffd[2J\ufffd"
    error = frames.parse(frames.Error(1, 2, 3, "\x1b]0;x\n").to_bytes())
    assert error.text == "\ufffd]0;x\ufffd"
