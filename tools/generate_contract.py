"""Writes docs/asyncapi.json and docs/schemas/*.json from protocols/contract.py; a test fails where they differ.

Usage, from the top of the project: python tools/generate_contract.py
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from protocols import contract  # noqa: E402  # the project's top must be on the path first
from protocols.contract import Leaf  # noqa: E402

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# What the structs check in code, said in JSON Schema.
RULES: Final[dict[str, dict[str, Any]]] = {
    "Telemetry": {
        "oneOf": [
            {"required": ["readings"], "properties": {"readings": {"type": "array"}, "dropped": {"type": "null"}}},
            {"required": ["dropped"], "properties": {"dropped": {"type": "object"}, "readings": {"type": "null"}}},
        ]
    },
    "TelemetryReading": {
        "if": {"properties": {"quality": {"const": "missing"}}},
        "then": {
            "required": ["reason"],
            "properties": {"volume_ml": {"type": "null"}, "reason": {"type": "string"}},
        },
        "else": {"properties": {"volume_ml": {"type": "integer"}, "reason": {"type": "null"}}},
    },
    "Reply": {
        "if": {"properties": {"done": {"const": True}}},
        "then": {"properties": {"reason": {"type": "null"}}},
        "else": {"required": ["reason"], "properties": {"reason": {"type": "string"}}},
    },
    "ResolveCommand": {
        "if": {"properties": {"result": {"const": "false"}}},
        "then": {"required": ["why"], "properties": {"why": {"type": "string", "pattern": r"\S"}}},
    },
    "AbsenceNotice": {"dependentRequired": {"ended_at": ["ended_by"], "ended_by": ["ended_at"]}},
}
SUMMARY: Final = {
    Leaf.STATE: ("receive", "A gateway has come or gone. Retained; also the gateway's will."),
    Leaf.TELEMETRY: ("receive", "Readings of one poll cycle, or a tombstone in their place."),
    Leaf.ALERT: ("receive", "One step of one alert episode."),
    Leaf.ACK: ("send", "What the county has stored. Published only after it is on the disk."),
    Leaf.COMMAND: ("send", "What the county asks of a gateway; repeated with the same id until a reply comes."),
    Leaf.REPLY: ("receive", "What became of a command."),
}


def generate() -> dict[Path, str]:
    """Return the text of every generated file by its path below the project's top."""
    files = {Path("docs/asyncapi.json"): asyncapi()}
    for leaf in Leaf:
        files[Path(f"docs/schemas/{leaf}.json")] = json_schema(leaf)
    return {path: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for path, content in files.items()}


def json_schema(leaf: Leaf) -> dict[str, Any]:
    """Return the JSON Schema of one kind of message, complete in itself."""
    (message,), definitions = msgspec.json.schema_components(
        [contract.MESSAGE_OF_LEAF[leaf]], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": DIALECT,
        "title": f"shuiwang {leaf}, version 1",
        **message,
        "$defs": _tidy(definitions),
    }


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI document, seen from the county."""
    messages = list(contract.MESSAGE_OF_LEAF.values())
    payloads, definitions = msgspec.json.schema_components(messages, ref_template="#/components/schemas/{name}")
    channels, operations, components = {}, {}, {}
    for leaf, payload in zip(contract.MESSAGE_OF_LEAF, payloads, strict=True):
        action, summary = SUMMARY[leaf]
        channels[leaf.value] = {
            "address": contract.topic("{county}", "{gateway}", leaf),
            "parameters": {
                "county": {"description": f"The county's name, {contract.NAME_PATTERN}"},
                "gateway": {"description": f"The gateway's name, {contract.NAME_PATTERN}"},
            },
            "messages": {leaf.value: {"$ref": f"#/components/messages/{leaf}"}},
        }
        operations[f"{action}-{leaf}"] = {
            "action": action,
            "summary": summary,
            "channel": {"$ref": f"#/channels/{leaf}"},
            "messages": [{"$ref": f"#/channels/{leaf}/messages/{leaf}"}],
            "bindings": {"mqtt": {"qos": 1, "retain": leaf is Leaf.STATE}},
        }
        components[leaf.value] = {
            "name": leaf.value.title(),
            "contentType": "application/json",
            "payload": payload,
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "shuiwang county contract",
            "version": "1",
            "description": inspect.cleandoc(contract.__doc__ or ""),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": components, "schemas": _tidy(definitions)},
    }


def _tidy(definitions: dict[str, Any]) -> dict[str, Any]:
    """Add the rules, straighten the docstrings and sort, so that the same types always give the same text."""
    for name, rule in RULES.items():
        if name in definitions:
            definitions[name] |= rule
    tidied: dict[str, Any] = _straighten(dict(sorted(definitions.items())))
    return tidied


def _straighten(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: inspect.cleandoc(item) if key == "description" and isinstance(item, str) else _straighten(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_straighten(item) for item in value]
    return value


if __name__ == "__main__":
    for path, text in generate().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)
