"""The contract: every message there and back, everything invalid refused, and the documents that others build on."""

import importlib.util
import json
import re
import typing
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import contract
from protocols.contract import (
    AbsenceCommand,
    AbsenceNotice,
    Ack,
    AcknowledgeCommand,
    Alert,
    AlertBody,
    AlertState,
    Daily,
    Dropped,
    Ending,
    Kind,
    Leaf,
    Level,
    NotUnderstood,
    PresentCommand,
    ReadNowCommand,
    Refusal,
    Reply,
    ResolveCommand,
    Result,
    State,
    Stream,
    Telemetry,
    TelemetryReading,
    Transition,
)
from protocols.errors import ContractError

ROOT = Path(__file__).resolve().parents[2]
EPOCH = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

names = st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z")
epochs = st.from_regex(r"\A[0-9A-HJKMNP-TV-Z]{26}\Z")
seqs = st.integers(1, contract.INTEGER_MAX)
counts = st.integers(0, contract.INTEGER_MAX)
instants = st.integers(0, 4_000_000_000_000).map(contract.instant)
# NUL and control characters are JSON like any other; surrogates are not text.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
missing = st.builds(
    TelemetryReading,
    meter=names,
    at=instants,
    volume_ml=st.none(),
    quality=st.just("missing"),
    clock=st.sampled_from(["synced", "unsynced"]),
    reason=texts,
)
present = st.builds(
    TelemetryReading,
    meter=names,
    at=instants,
    volume_ml=counts,
    quality=st.sampled_from(["ok", "suspect"]),
    clock=st.sampled_from(["synced", "unsynced"]),
    reason=st.none(),
    flags=st.lists(texts, max_size=3).map(tuple),
    uncertainty_ms=st.none() | counts,
)
envelope = {"gateway": names, "epoch": epochs, "seq": seqs, "sent_at": instants}
telemetry = st.builds(
    Telemetry,
    schema=st.just(contract.TELEMETRY_SCHEMA),
    readings=st.lists(missing | present, max_size=4).map(tuple),
    dropped=st.none(),
    **envelope,
) | st.builds(
    Telemetry,
    schema=st.just(contract.TELEMETRY_SCHEMA),
    readings=st.none(),
    dropped=st.builds(Dropped, readings=counts, start=instants, end=instants),
    **envelope,
)
alerts = st.builds(
    Alert,
    schema=st.just(contract.ALERT_SCHEMA),
    alert=st.builds(
        AlertBody,
        id=epochs,
        meter=st.none() | names,
        kind=st.sampled_from(Kind),
        state=st.sampled_from(AlertState),
        level=st.sampled_from(Level),
        since=instants,
        at=instants,
        historical=st.booleans(),
        evidence=st.dictionaries(texts, st.none() | st.booleans() | counts | texts, max_size=4),
        transition=st.none() | st.sampled_from(Transition),
        text=st.none() | st.fixed_dictionaries({"zh": texts, "en": texts}),
    ),
    **envelope,
)
times_of_day = st.integers(0, 1439).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
dailies = st.lists(times_of_day, min_size=2, max_size=2, unique=True).map(
    lambda pair: Daily(start=pair[0], end=pair[1])
)
absence = {"meter": names, "start": instants, "until": instants, "daily": st.none() | dailies}
absences = st.builds(AbsenceNotice, **absence) | st.builds(
    AbsenceNotice, ended_at=instants, ended_by=st.sampled_from(Ending), **absence
)
states = st.builds(
    State,
    schema=st.just(contract.STATE_SCHEMA),
    online=st.booleans(),
    epoch=st.none() | epochs,
    agent=st.none() | texts,
    boot_id=st.none() | texts,
    meters=st.none() | counts,
    reason=st.none() | texts,
    oldest_alert=st.none() | seqs,
    oldest_telemetry=st.none() | seqs,
    absences=st.lists(absences, max_size=3).map(tuple),
)
command = {"schema": st.just(contract.COMMAND_SCHEMA), "id": epochs, "deadline": instants}
roles = st.from_regex(r"\A[a-z][a-z0-9-]{0,62}\Z")
spans = st.tuples(st.none() | st.integers(0, 4_000_000_000_000), st.integers(1, 10**9)).map(
    lambda span: (
        None if span[0] is None else contract.instant(span[0]),
        contract.instant((span[0] or 0) + span[1]),
    )
)
commands = (
    st.builds(
        lambda span, **fields: AbsenceCommand(start=span[0], until=span[1], **fields),
        spans,
        meter=names,
        declared_by=roles,
        daily=st.none() | dailies,
        **command,
    )
    | st.builds(PresentCommand, meter=names, **command)
    | st.builds(AcknowledgeCommand, alert=epochs, **command)
    | st.builds(ResolveCommand, alert=epochs, result=st.sampled_from(Result), why=st.just("a reason"), **command)
    | st.builds(ReadNowCommand, meter=names, **command)
)
reply = {"schema": st.just(contract.REPLY_SCHEMA), "id": epochs, "at": instants}
replies = st.builds(Reply, done=st.just(True), reason=st.none(), reading=st.none() | present, **reply) | st.builds(
    Reply, done=st.just(False), reason=texts, text=st.none() | st.fixed_dictionaries({"zh": texts}), **reply
)
acks = st.builds(
    Ack,
    schema=st.just(contract.ACK_SCHEMA),
    epoch=epochs,
    alert_up_to=counts,
    telemetry_up_to=counts,
    not_understood=st.lists(
        st.builds(NotUnderstood, stream=st.sampled_from(Stream), seq=seqs, reason=texts), max_size=3
    ).map(tuple),
)
messages = telemetry | alerts | states | acks | commands | replies
LEAF_OF_MESSAGE = {
    message: leaf for leaf, union in contract.MESSAGE_OF_LEAF.items() for message in typing.get_args(union) or (union,)
}


def _validator(leaf):
    schema = json.loads((ROOT / f"docs/schemas/{leaf}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


VALIDATORS = {leaf: _validator(leaf) for leaf in Leaf}


@given(messages)
def test_every_message_comes_back_as_it_was_and_fits_its_schema(message):
    leaf = LEAF_OF_MESSAGE[type(message)]
    payload = contract.encode(message)
    assert contract.decode(leaf, payload) == message
    VALIDATORS[leaf].validate(json.loads(payload))


@given(telemetry | alerts)
def test_the_number_is_readable_without_the_rest(message):
    assert contract.decode_number(contract.encode(message)) == contract.Numbered(epoch=message.epoch, seq=message.seq)


@given(st.sampled_from(Leaf), st.binary(max_size=200))
def test_random_bytes_are_refused_by_a_contract_error_and_nothing_else(leaf, payload):
    with pytest.raises(ContractError, match=f"^{leaf}: "):
        contract.decode(leaf, payload)
    contract.decode_number(payload)


TELEMETRY = {
    "schema": "shuiwang/telemetry/1",
    "gateway": "g-1",
    "epoch": EPOCH,
    "seq": 1,
    "sent_at": "2026-11-21T20:39:00.000Z",
    "readings": [
        {"meter": "m-1", "at": "2026-11-21T20:39:00.000Z", "volume_ml": 5, "quality": "ok", "clock": "synced"}
    ],
}
READING = TELEMETRY["readings"][0]
TOMBSTONE = {"readings": 1, "from": "2026-11-21T20:39:00.000Z", "to": "2026-11-21T20:39:00.000Z"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "shuiwang/telemetry/2"}, "shuiwang/telemetry/2"),
        ({"schema": "shuiwang/telemetry/1\n"}, r"\$.schema"),
        ({"gateway": "g-1\n"}, r"\$.gateway"),
        ({"gateway": "G-1"}, r"\$.gateway"),
        ({"gateway": "g" * 64}, r"\$.gateway"),
        ({"epoch": EPOCH + "\n"}, r"\$.epoch"),
        ({"epoch": EPOCH.lower()}, r"\$.epoch"),
        ({"seq": 0}, r"\$.seq"),
        ({"seq": "1"}, r"\$.seq"),
        ({"seq": 1.5}, r"\$.seq"),
        ({"seq": True}, r"\$.seq"),
        ({"seq": 2**53}, r"\$.seq"),
        ({"seq": 2**64}, r"\$.seq"),
        ({"sent_at": "2026-11-21T20:39:00Z"}, r"\$.sent_at"),
        ({"sent_at": "2026-11-21T20:39:00.000+08:00"}, r"\$.sent_at"),
        ({"sent_at": "２０２６-11-21T20:39:00.000Z"}, r"\$.sent_at"),
        ({"sent_at": "2026-11-21T20:39:00.000Z\n"}, r"\$.sent_at"),
        ({"sent_at": "2026-13-45T20:39:00.000Z"}, "month"),
        ({"sent_at": "2026-02-30T20:39:00.000Z"}, "day"),
        ({"sent_at": "2026-11-21T24:39:00.000Z"}, "hour"),
        ({"readings": None}, "exactly one of"),
        ({"dropped": TOMBSTONE}, "exactly one of"),
        ({"readings": None, "dropped": TOMBSTONE | {"from": "2026-00-01T00:00:00.000Z"}}, r"\$.dropped"),
        ({"readings": None, "dropped": TOMBSTONE | {"readings": -1}}, r"\$.dropped.readings"),
        ({"readings": [READING | {"at": "2026-13-45T20:39:00.000Z"}]}, r"\$.readings\[0\]"),
        ({"readings": [READING | {"volume_ml": None}]}, "volume_ml"),
        ({"readings": [READING | {"volume_ml": None, "quality": "missing"}]}, "reason"),
        ({"readings": [READING | {"reason": "no_response"}]}, "reason"),
        ({"readings": [READING | {"quality": "missing", "reason": "no_response"}]}, "volume_ml"),
        ({"readings": [READING | {"volume_ml": -1}]}, r"volume_ml"),
        ({"readings": [READING | {"volume_ml": 5.0}]}, r"volume_ml"),
        ({"readings": [{key: value for key, value in READING.items() if key != "volume_ml"}]}, "volume_ml"),
    ],
)
def test_what_is_not_quite_a_message_is_refused_and_told_where(change, says):
    with pytest.raises(ContractError, match=says):
        contract.decode(Leaf.TELEMETRY, json.dumps(TELEMETRY | change).encode())
    contract.decode(Leaf.TELEMETRY, json.dumps(TELEMETRY).encode())


COMMAND = {"schema": "shuiwang/command/1", "id": EPOCH, "deadline": "2026-11-21T20:39:00.000Z"}
ABSENCE = COMMAND | {"do": "absence", "meter": "m-1", "until": "2026-12-01T00:00:00.000Z", "declared_by": "technician"}
RESOLVE = COMMAND | {"do": "resolve", "alert": EPOCH, "result": "fine"}
NOT_QUITE_COMMANDS = [
    (ABSENCE | {"do": "absense"}, r"'absense' - at `\$.do`"),
    (COMMAND | {"meter": "m-1"}, "missing required field `do`"),
    (COMMAND | {"do": "present"}, "missing required field `meter`"),
    (ABSENCE | {"id": "1"}, r"\$.id"),
    (ABSENCE | {"id": EPOCH + "\n"}, r"\$.id"),
    (ABSENCE | {"deadline": "tomorrow"}, r"\$.deadline"),
    (ABSENCE | {"deadline": "2026-02-30T00:00:00.000Z"}, "day"),
    (ABSENCE | {"until": "2026-13-01T00:00:00.000Z"}, "month"),
    ({key: value for key, value in ABSENCE.items() if key != "until"}, "missing required field `until`"),
    (ABSENCE | {"from": ABSENCE["until"]}, "`until` must be later than `from`"),
    (ABSENCE | {"from": "2026-12-02T00:00:00.000Z"}, "`until` must be later than `from`"),
    (ABSENCE | {"declared_by": "Wang Li"}, r"\$.declared_by"),
    (ABSENCE | {"declared_by": "王丽"}, r"\$.declared_by"),
    (ABSENCE | {"daily": {"from": "22:00"}}, "missing required field `to`"),
    (ABSENCE | {"daily": {"from": "22:00", "to": "24:00"}}, r"\$.daily.to"),
    (ABSENCE | {"daily": {"from": "22:00", "to": "6:00"}}, r"\$.daily.to"),
    (ABSENCE | {"daily": {"from": "22:00", "to": "22:00"}}, "the same time"),
    (RESOLVE | {"result": "well"}, r"'well' - at `\$.result`"),
    (RESOLVE | {"result": "false"}, "`why` must say"),
    (RESOLVE | {"result": "false", "why": " "}, "`why` must say"),
    (RESOLVE | {"why": "x" * 501}, r"\$.why"),
]
IN_CODE_ALONE = ("day", "month", "later than", "the same time")  # what a JSON Schema cannot say


@pytest.mark.parametrize(("payload", "says"), NOT_QUITE_COMMANDS)
def test_what_is_not_quite_a_command_is_refused_and_told_where(payload, says):
    with pytest.raises(ContractError, match=says):
        contract.decode(Leaf.COMMAND, json.dumps(payload).encode())
    if not any(words in says for words in IN_CODE_ALONE):
        assert not VALIDATORS[Leaf.COMMAND].is_valid(payload)
    for sound in (ABSENCE, RESOLVE | {"why": "x" * 500}):
        contract.decode(Leaf.COMMAND, json.dumps(sound).encode())
        VALIDATORS[Leaf.COMMAND].validate(sound)


@given(commands)
def test_the_id_of_a_command_is_readable_without_the_rest(message):
    payload = contract.encode(message)
    assert contract.decode_command_id(payload) == message.id
    assert contract.decode_command_id(payload.replace(b'"do"', b'"does"')) == message.id


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"id":5}', b'{"id":"short"}', b"\xff", b"[" * 100_000])
def test_where_there_is_no_id_nobody_can_be_answered(payload):
    assert contract.decode_command_id(payload) is None


@pytest.mark.parametrize(("done", "reason"), [(True, "late"), (False, None)])
def test_a_reply_has_a_reason_exactly_when_nothing_was_done(done, reason):
    payload = {"schema": "shuiwang/reply/1", "id": EPOCH, "at": TELEMETRY["sent_at"], "done": done}
    payload |= {"reason": reason} if reason else {}
    with pytest.raises(ContractError, match="`reason` must be present exactly when"):
        contract.decode(Leaf.REPLY, json.dumps(payload).encode())
    assert not VALIDATORS[Leaf.REPLY].is_valid(payload)


def test_an_absence_that_ended_says_when_and_by_what():
    notice = {"meter": "m-1", "from": TELEMETRY["sent_at"], "until": TELEMETRY["sent_at"]}
    state = {"schema": "shuiwang/state/1", "online": True, "absences": [notice | {"ended_by": "use"}]}
    with pytest.raises(ContractError, match="must be present together"):
        contract.decode(Leaf.STATE, json.dumps(state).encode())
    assert not VALIDATORS[Leaf.STATE].is_valid(state)
    assert VALIDATORS[Leaf.STATE].is_valid(state | {"absences": [notice]})


def test_what_was_said_before_commands_existed_is_understood():
    """Additions within version 1: both ends meet older ones."""
    old_alert = {
        "id": EPOCH,
        "meter": "m-1",
        "kind": "low_usage",
        "state": "open",
        "level": "yellow",
        "since": TELEMETRY["sent_at"],
        "at": TELEMETRY["sent_at"],
        "historical": False,
        "evidence": {},
    }
    envelope = {key: TELEMETRY[key] for key in ("gateway", "epoch", "seq", "sent_at")}
    alert = contract.decode(
        Leaf.ALERT, json.dumps(envelope | {"schema": "shuiwang/alert/1", "alert": old_alert}).encode()
    )
    assert (alert.alert.transition, alert.alert.text) == (None, None)
    assert json.loads(contract.encode(alert))["alert"] == old_alert, "and an old end gets what it knows"
    state = contract.decode(Leaf.STATE, b'{"schema":"shuiwang/state/1","online":true}')
    assert state.absences == ()


def test_a_birth_that_names_everybody_fits_the_limit():
    notice = AbsenceNotice(
        meter="m" * 63,
        start="2026-11-21T20:39:00.000Z",
        until="2026-11-21T20:39:00.000Z",
        daily=Daily(start="22:00", end="06:00"),
        ended_at="2026-11-21T20:39:00.000Z",
        ended_by=Ending.REPLACED,
    )
    state = State(schema=contract.STATE_SCHEMA, online=True, absences=(notice,) * contract.ABSENCES_MAX)
    payload = contract.encode(state)
    assert contract.decode(Leaf.STATE, payload) == state
    with pytest.raises(ContractError, match=r"\$.absences"):
        contract.decode(
            Leaf.STATE, payload.replace(b'"absences":[', b'"absences":[' + msgspec.json.encode(notice) + b",")
        )


@pytest.mark.parametrize("payload", [b"", b"[" * 100_000, b'{"alert":' * 100_000, b"\xff\xfe", b'"\\ud800"', b"1e999"])
def test_hostile_json_is_refused(payload):
    for leaf in Leaf:
        with pytest.raises(ContractError):
            contract.decode(leaf, payload)
    assert contract.decode_number(payload) is None


def test_a_payload_may_be_as_long_as_the_limit_and_no_longer():
    short = json.dumps(TELEMETRY).encode()
    full = short + b" " * (contract.PAYLOAD_BYTES_MAX - len(short))
    contract.decode(Leaf.TELEMETRY, full)
    with pytest.raises(ContractError, match="262145 bytes"):
        contract.decode(Leaf.TELEMETRY, full + b" ")


def test_a_full_message_of_readings_fits_the_limit():
    longest = TelemetryReading(
        meter="m" * 63,
        at="2026-11-21T20:39:00.000Z",
        volume_ml=contract.INTEGER_MAX,
        quality="suspect",
        clock="unsynced",
        flags=("low_battery", "reverse_flow"),
        uncertainty_ms=contract.INTEGER_MAX,
    )
    message = msgspec.structs.replace(
        contract.decode(Leaf.TELEMETRY, json.dumps(TELEMETRY).encode()),
        readings=(longest,) * contract.READINGS_PER_MESSAGE_MAX,
    )
    assert len(contract.encode(message)) <= contract.PAYLOAD_BYTES_MAX


def test_a_key_that_is_not_known_is_ignored():
    known = contract.decode(Leaf.TELEMETRY, json.dumps(TELEMETRY).encode())
    added = TELEMETRY | {"added": {"later": 1}, "readings": [READING | {"temperature_c": 7}]}
    assert contract.decode(Leaf.TELEMETRY, json.dumps(added).encode()) == known


@given(names, names, st.sampled_from(Leaf))
def test_topics_come_back_as_they_were(county, gateway, leaf):
    text = contract.topic(county, gateway, leaf)
    assert contract.parse_topic(text) == contract.Topic(county=county, gateway=gateway, leaf=leaf)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shuiwang/v1/shenxian/g-1",
        "shuiwang/v1/shenxian/g-1/other",
        "shuiwang/v2/shenxian/g-1/alert",
        "shuiwang/v1/shenxian/g-1/alert/x",
        "shuiwang/v1/shenxian/G-1/alert",
        "shuiwang/v1/shenxian/g-1\n/alert",
        "shuiwang/v1/shenxian/g-1/alert\n",
        "shuiwang/v1//g-1/alert",
        "shuiwang/v1/+/g-1/alert",
    ],
)
def test_other_topics_are_refused(text):
    with pytest.raises(ContractError):
        contract.parse_topic(text)


@given(st.integers(0, 4_000_000_000_000))
def test_instants_come_back_to_the_millisecond(milliseconds):
    assert contract.wall_ms(contract.instant(milliseconds)) == milliseconds


def test_an_instant_reads_as_the_contract_says():
    assert contract.instant(1_795_293_540_007) == "2026-11-21T20:39:00.007Z"
    with pytest.raises(ContractError, match="2026-13-45"):
        contract.wall_ms("2026-13-45T00:00:00.000Z")


def _generator():
    spec = importlib.util.spec_from_file_location("generate_contract", ROOT / "tools/generate_contract.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_documents_are_the_generated_ones():
    generated = _generator().generate()
    for path, text in generated.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"run `python tools/generate_contract.py` for {path}"
    on_disk = {path.relative_to(ROOT) for path in (ROOT / "docs/schemas").iterdir()}
    assert on_disk == {path for path in generated if path.parent.name == "schemas"}


def test_the_asyncapi_document_points_only_at_what_it_has():
    document = json.loads((ROOT / "docs/asyncapi.json").read_text(encoding="utf-8"))
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))
    assert references
    for reference in references:
        place = document
        for key in reference.split("/"):
            place = place[key]
    assert {operation["action"] for operation in document["operations"].values()} == {"send", "receive"}
    assert {channel["address"].rsplit("/", 1)[1] for channel in document["channels"].values()} == set(Leaf)
    retained = {name for name, operation in document["operations"].items() if operation["bindings"]["mqtt"]["retain"]}
    assert retained == {"receive-state"}


DOCUMENT = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- example: (\w+) -->\n```json\n(.*?)```", DOCUMENT, re.DOTALL)


def test_every_json_block_of_the_reference_is_an_example_and_every_leaf_has_one():
    assert DOCUMENT.count("```json") == len(EXAMPLES)
    assert f"{contract.WHY_CHARACTERS_MAX} characters" in DOCUMENT
    assert {leaf for leaf, _ in EXAMPLES} == set(Leaf)


@pytest.mark.parametrize(("leaf", "example"), EXAMPLES)
def test_the_examples_of_the_reference_are_valid_and_use_known_keys_only(leaf, example):
    message = contract.decode(Leaf(leaf), example.encode())
    VALIDATORS[Leaf(leaf)].validate(json.loads(example))
    assert json.loads(contract.encode(message)) == json.loads(example)


def test_the_reference_states_the_limits_and_words_of_the_code():
    for number in (contract.PAYLOAD_BYTES_MAX, contract.READINGS_PER_MESSAGE_MAX, contract.INTEGER_MAX):
        assert f"{number:,}" in DOCUMENT
    asked = [command.__struct_config__.tag for command in typing.get_args(contract.Command)]
    for word in (*Leaf, *Kind, *Level, *AlertState, *Stream, *Transition, *Result, *Ending, *Refusal, *asked):
        assert f"`{word}`" in DOCUMENT, word


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "shuiwang/telemetry/2"},
        {"gateway": "g-1\n"},
        {"seq": 0},
        {"seq": 2**53},
        {"sent_at": "2026-11-21T20:39:00Z"},
        {"dropped": TOMBSTONE},
        {"readings": None},
        {"readings": [READING | {"volume_ml": None}]},
        {"readings": [READING | {"reason": "no_response"}]},
        {"readings": [READING | {"quality": "missing", "volume_ml": None}]},
    ],
)
def test_the_schema_refuses_what_the_code_refuses(change):
    assert VALIDATORS[Leaf.TELEMETRY].is_valid(TELEMETRY)
    assert not VALIDATORS[Leaf.TELEMETRY].is_valid(TELEMETRY | change)
