"""A county platform written against the design's page alone: paho, JSON, no code of ours. Acknowledges when told to."""

import json
import threading
import uuid

import paho.mqtt.client as mqtt


class PlainCounty:
    """Keeps every message as it came, in order of arrival; `acknowledging` turns receipts on and off."""

    def __init__(self, port, *, county="shenxian", gateway="g-0371522", acknowledging=True):
        self.acknowledging = acknowledging
        self.messages = []  # (leaf, message), duplicates included
        self._root = f"shuiwang/v1/{county}/{gateway}"
        self._stored = {"alert": {}, "telemetry": {}}  # of the newest epoch: seq -> message
        self._epoch = None
        self._lock = threading.Lock()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"county-{uuid.uuid4().hex[:8]}", clean_session=True
        )
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self._root}/+", qos=1)
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._client.connect("127.0.0.1", port, keepalive=5)
        self._client.loop_start()

    def _on_message(self, _client, _userdata, incoming):
        leaf = incoming.topic.rsplit("/", 1)[1]
        if leaf not in {"state", "alert", "telemetry"}:
            return
        message = json.loads(incoming.payload)
        with self._lock:
            self.messages.append((leaf, message))
            if leaf == "state":
                return
            if message["epoch"] != self._epoch:
                self._epoch, self._stored = message["epoch"], {"alert": {}, "telemetry": {}}
            self._stored[leaf][message["seq"]] = message
        if self.acknowledging:
            self.acknowledge()

    def acknowledge(self):
        """Send a receipt for everything without a hole."""
        ack = {
            "schema": "shuiwang/ack/1",
            "epoch": self._epoch,
            "alert_up_to": self._up_to("alert"),
            "telemetry_up_to": self._up_to("telemetry"),
        }
        self._client.publish(f"{self._root}/ack", json.dumps(ack), qos=1)

    def _up_to(self, stream):
        seq = 0
        while seq + 1 in self._stored[stream]:
            seq += 1
        return seq

    def of(self, leaf):
        """All messages of one kind, in order of arrival, duplicates included."""
        with self._lock:
            return [message for kind, message in self.messages if kind == leaf]

    def alerts(self):
        """The steps of all alerts, each once, in the order of seq: (kind, state, meter, id)."""
        with self._lock:
            bodies = [message["alert"] for _, message in sorted(self._stored["alert"].items())]
        return [(body["kind"], body["state"], body["meter"], body["id"]) for body in bodies]

    def seqs(self, stream):
        """The numbers that have come, each once, sorted."""
        with self._lock:
            return sorted(self._stored[stream])

    def readings(self, meter):
        """The readings of a meter, each message once, in the order of seq."""
        with self._lock:
            messages = [message for _, message in sorted(self._stored["telemetry"].items())]
        return [r for message in messages for r in message.get("readings", ()) if r["meter"] == meter]

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()
