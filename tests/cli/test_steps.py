"""What a long command says of its steps, off a terminal."""

from asyncinfer.cli import steps


def test_a_step_that_lasts_is_told_and_a_short_one_is_not(capsys, monkeypatch):
    monkeypatch.setattr(steps, "_PERIOD", 0.001)
    with steps.Steps() as tell:
        tell("long: 1 of 2")
        said = ""
        while not said.endswith("\n"):
            said += capsys.readouterr().err
        assert said == "long: 1 of 2\n"
        monkeypatch.setattr(steps, "_PERIOD", 60.0)
        tell("short")
    assert capsys.readouterr().err == ""


def test_it_ends_with_an_error(capsys):
    try:
        with steps.Steps() as tell:
            tell("failing")
            raise ValueError
    except ValueError:
        assert capsys.readouterr().err == ""
