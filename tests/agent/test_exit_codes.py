"""Exit codes are a promise to scripts: numbers stay, each has a meaning."""

from agent.exit_codes import ExitCode


def test_codes_never_change_their_number():
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "BUG": 1,
        "USAGE": 2,
        "CONFIGURATION": 3,
        "ALREADY_RUNNING": 4,
        "STORE": 5,
        "PORT": 6,
        "BROKER": 7,
        "DEMO_FAILED": 8,
        "NO_READING": 9,
        "DIFFERENT": 10,
        "VALVE_UNCONFIRMED": 11,
        "NOT_DONE": 12,
        "INTERRUPTED": 130,
        "OUTPUT_CLOSED": 141,
    }


def test_every_code_says_what_it_means():
    meanings = [code.meaning for code in ExitCode]
    assert all(meaning.endswith(".") and "\n" not in meaning for meaning in meanings)
    assert len(set(meanings)) == len(meanings)
    assert ExitCode(3) is ExitCode.CONFIGURATION
