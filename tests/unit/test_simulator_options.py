"""The simulator's options on its two command lines."""

from __future__ import annotations

import pytest

from api_client.simulator.__main__ import _build_parser, parse_config
from worker.cli.lazy import load_commands


def test_both_commands_have_the_same_options() -> None:
    own = {option for action in _build_parser()._actions for option in action.option_strings}
    ours = {option for param in load_commands("simulating")["simulate"].params for option in param.opts}
    assert own - {"-h", "--help"} == ours - {"--help"} | {"--key-env", "--log-calls"}


def test_limits_are_read_from_the_command_line() -> None:
    line = (
        "--refuse-above 40 --refuse-keys-above 4,20 --refuse-status 503 --refuse-wait 0.5 --refuse-code busy --slope 2.5 --tpm 900 "
        "--rate-window 6 --rate-shape bucket --rate-headers --no-tell-wait --call-tokens 40 --knee 24 --answer-tokens 300 "
        "--answer-spread 0.8 --capacity 2 --key b,c --spent-keys d --revoked-keys e,f "
        "--at 60:capacity=0.5 --at 30:is_dead=true"
    )
    config = parse_config(line.split(), {})
    assert (config.refuse_above, config.refuse_status, config.refuse_retry_after_s) == (40, 503, 0.5)
    assert config.refuse_keys_above == "4,20"
    assert (config.refuse_code, config.slope_per_s, config.tpm, config.rate_window_s) == ("busy", 2.5, 900, 6)
    assert (config.rate_shape, config.rate_headers, config.tells_wait) == ("bucket", True, False)
    assert (config.call_tokens_per_s, config.knee, config.capacity) == (40, 24, 2)
    assert (config.answer_tokens, config.answer_spread) == (300, 0.8)
    assert (config.key, config.spent_keys, config.revoked_keys) == ("b,c", "d", "e,f")
    assert config.timetable == ((30.0, {"is_dead": True}), (60.0, {"capacity": 0.5}))


def test_a_step_that_cannot_be_read_ends_the_command_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(["--at", "soon"], {})
    assert ended.value.code == 2
    assert "as in 30:capacity=0.5, not 'soon'" in capsys.readouterr().err
