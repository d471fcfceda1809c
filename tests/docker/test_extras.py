"""What a smaller installation says of the commands that it is too small for."""

import sys

import pytest

from service.cli.main import main


def test_a_command_names_the_extra_that_it_lacks(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as where only the agent is installed
    monkeypatch.setattr(sys, "argv", ["tailor", "api"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "uvicorn is not installed here" in capsys.readouterr().err
