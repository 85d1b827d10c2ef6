"""Watches the changes of raftkv with Python's standard library, written from docs/watch.md.

    raftkv_watch.py ENDPOINT[,ENDPOINT...] [PREFIX]

prints a line for each thing that is told. In a program:

    for items in Copy(["http://127.0.0.1:12380", "http://127.0.0.1:22380"], prefixes=["config/"]):
        print(items["config/app"]["value"])
"""
import base64
import http.client
import json
import random
import sys
import time
import urllib.parse


class Refused(Exception):
    """The nodes do not take the request: to send it again does not help."""


class Watch:
    """Yields the messages of a watch, without an end, from whichever endpoint answers.

    A message has "event", often "id" and "data", as docs/watch.md has them; values are bytes.
    position is the revision up to which everything was taken: who keeps it, with what was made
    of the messages, goes on there with after=position, in another process, too."""

    def __init__(self, endpoints, prefixes=(), keys=(), state=False, after=None, timeout=40, **more):
        self.endpoints = [urllib.parse.urlsplit(e) for e in endpoints]
        self.timeout = timeout  # a node says something every 15 s
        query = [("prefix", p) for p in prefixes] + [("key", k) for k in keys]
        query += [(name, str(v).lower() if isinstance(v, bool) else v) for name, v in {"state": state, **more}.items()]
        self.target = "/v1/watch?" + urllib.parse.urlencode(query)
        self.position = after

    def __iter__(self):
        while True:
            wait = 1
            try:
                for message in self.once():
                    yield message
                    if message["event"] == "unavailable":
                        wait = message["retry"] / 1000
                    self.position = message.get("id", self.position)
            except (OSError, http.client.HTTPException, ValueError):
                pass  # it broke off, perhaps within a line
            self.endpoints.append(self.endpoints.pop(0))  # the next node
            time.sleep(wait * random.uniform(0.5, 1.5))  # not all clients of a node at once

    def once(self):
        endpoint, headers = self.endpoints[0], {"Accept": "application/x-ndjson"}
        if self.position is not None:
            headers["Last-Event-ID"] = str(self.position)
        conn = http.client.HTTPConnection(endpoint.hostname, endpoint.port, timeout=self.timeout)
        try:
            conn.request("GET", self.target, headers=headers)
            answer = conn.getresponse()
            if answer.status != 200:
                text = answer.read(1000).decode(errors="replace")
                if answer.status in (429, 502, 503, 504):
                    return  # something between, or a node that has not started
                raise Refused(f"{answer.status}: {text}")
            for line in answer:
                message = json.loads(line)
                for item in message.get("data", {}).get("events", []) + message.get("data", {}).get("items", []):
                    if "value_base64" in item:
                        item["value"] = base64.b64decode(item.pop("value_base64"))
                    elif "value" in item:
                        item["value"] = item["value"].encode()
                yield message
        finally:
            conn.close()


class Copy:
    """Keeps what is there under prefixes and keys: items is {key: item}. Yields items each time
    that a revision has changed them. A first time comes once they are whole."""

    def __init__(self, endpoints, prefixes=(), keys=(), **more):
        self.watch = Watch(endpoints, prefixes, keys, state=True, **more)
        self.items = {}

    def __iter__(self):
        synced = False
        for message in self.watch:
            event, data = message["event"], message.get("data", {})
            if event == "reset":
                self.items, synced = {}, False
            for item in data.get("items", []) + data.get("events", []):
                if item.pop("type", "put") == "put":
                    self.items[item["key"]] = item
                else:
                    self.items.pop(item["key"], None)
            synced = synced or event == "synced"
            if synced and event in ("synced", "change") and not data.get("more"):
                yield self.items


if __name__ == "__main__":
    for m in Watch(sys.argv[1].split(","), sys.argv[2:3], state=True):
        print(m["event"], m.get("id", "-"), m.get("data", ""), flush=True)
