"""Runs the same exchanges under CPython and MicroPython; `test_modbus.py` compares. Argument: the repository.

A task is a line of JSON with a request, the bytes that come back and in pieces of how many; so is the outcome.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

from protocols import errors, modbus


def outcome(task):
    """Return how one exchange ends and what both sides make of the request."""
    heard = modbus.RequestReader().feed(b"\x00" + bytes.fromhex(task["request"]) + b"\x00")
    line, step = bytes.fromhex(task["line"]), task["step"]
    reader = heard.reader()
    try:
        frame = None
        for start in range(0, len(line), step):
            frame = frame or reader.feed(line[start : start + step])
        if frame is None:
            reader.close()
        registers = modbus.decode_response(frame)
        assert modbus.encode_response(heard, registers) == frame
        end = "registers: " + str(registers)
    except errors.MeterError as error:
        end = type(error).__name__ + ": " + str(error) + " [" + error.reason + "]"
    return {
        "request": modbus.hex_dump(heard.encode()),
        "refusal": modbus.hex_dump(modbus.encode_exception(heard, modbus.ILLEGAL_DATA_ADDRESS)),
        "response_bytes": heard.response_bytes,
        "end": end,
    }


for task_line in sys.stdin:
    print(json.dumps(outcome(json.loads(task_line))))
