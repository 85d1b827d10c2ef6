"""A client of raftkv in Python's standard library, written from docs/api.md."""
import base64
import http.client
import json
import time
import urllib.parse
import uuid


class Problem(Exception):
    """An answer that is an error. outcome is not_applied or unknown: then it may have happened."""

    def __init__(self, status, code, outcome, retry, detail, revision=None, after=None):
        super().__init__(f"{code or status}: {detail}")
        self.status, self.code, self.outcome, self.retry = status, code, outcome, retry
        self.revision, self.after = revision, after


class Client:
    """Asks the first of its endpoints that answers. give_up is how many seconds it goes on trying."""

    def __init__(self, endpoints, timeout=10, give_up=20):
        self.endpoints = [urllib.parse.urlsplit(e) for e in endpoints]
        self.timeout, self.give_up = timeout, give_up

    def request(self, method, path, query=None, body=None, headers=None, stream=False, missing=False, gone=False):
        """Returns the answer; with missing None for a key that is not there, and with gone None if
        a lease is not there that a sending before this one may have ended."""
        headers = dict(headers or {})
        if method != "GET" and not path.startswith("/v1/leases/"):  # those may be repeated as they are
            headers["Idempotency-Key"] = f'"{uuid.uuid4()}";keep=60'
        query = {k: str(v).lower() if isinstance(v, bool) else v for k, v in (query or {}).items() if v is not None}
        body = body.encode() if isinstance(body, str) else body  # http.client would make Latin-1 of it
        target = path + ("?" + urllib.parse.urlencode(query) if query else "")
        deadline, failed, unknown = time.monotonic() + self.give_up, 0, False
        while True:
            try:
                return self.once(self.endpoints[0], method, target, body, headers, stream)
            except Problem as p:
                if missing and p.code == "not_found":
                    return None
                if gone and unknown and p.code == "no_such_lease":
                    return None
                unknown = unknown or p.outcome == "unknown"
                again = p.outcome == "unknown" and p.retry or p.after or p.status in (0, 500, 503)
                if not again or time.monotonic() > deadline:
                    if unknown and p.status >= 429:
                        p.outcome = "unknown"  # this sending was refused, but one before it may have happened
                    raise
                after = p.after or 0.2
            failed += 1
            self.endpoints.append(self.endpoints.pop(0))  # the next node, and stay with it
            if failed % len(self.endpoints) == 0:
                time.sleep(after)

    def once(self, endpoint, method, target, body, headers, stream):
        # A connection for each request is slow, and simple: before it stands, nothing was sent.
        conn = http.client.HTTPConnection(endpoint.hostname, endpoint.port, timeout=self.timeout)
        try:
            conn.connect()
        except OSError as e:
            raise Problem(0, None, "not_applied", True, f"{endpoint.netloc}: {e}") from e
        try:
            conn.request(method, target, body, headers)
            answer = conn.getresponse()
            answer.body = None if stream and answer.status < 400 else answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise Problem(0, None, "unknown", True, f"{endpoint.netloc}: {e!r}") from e
        tag = (answer.getheader("ETag") or "").strip('"')
        answer.revision = int(tag) if tag.isdigit() else None
        if answer.status < 400:
            return answer
        try:
            p, after = json.loads(answer.body), float(answer.getheader("Retry-After") or 0)
            p = Problem(answer.status, p["code"], p["outcome"], p["retry"], p["detail"], answer.revision, after)
        except (ValueError, KeyError, TypeError):  # it came from something between
            p = Problem(answer.status, None, "unknown", False, repr(answer.body[:200]))
        raise p

    def ask(self, method, path, query=None, body=None):
        """Sends JSON, if there is any, and returns the JSON of the answer."""
        body = None if body is None else json.dumps(body)
        return json.loads(self.request(method, path, query, body, {"Content-Type": "application/json"}).body)

    # One key; its value is bytes, and a str is sent as UTF-8. Its revision is what is between the quotes of the ETag.

    def get(self, key, **freshness):
        """Returns value and revision; None and 0 if there is no such key."""
        answer = self.request("GET", path_of(key), freshness, missing=True)
        return (answer.body, answer.revision) if answer else (None, 0)

    def put(self, key, value, ttl=None, lease=None, if_revision=None):
        """Returns the revision. if_revision 0: only if there is no such key."""
        query = {"ttl": ttl, "lease": lease}
        return self.request("PUT", path_of(key), query, value, condition(if_revision)).revision

    def delete(self, key, if_revision=None):
        """Returns whether the key was there."""
        return self.request("DELETE", path_of(key), headers=condition(if_revision), missing=True) is not None

    def add(self, key, delta, ttl=None):
        return int(self.request("POST", "/v1/add", {"key": key, "ttl": ttl}, str(delta)).body)

    # Many keys, as items.

    def list(self, prefix="", **query):
        """Yields the items under a prefix, a page at a time; with delimiter, behind the items of a
        page, {"prefix": P} for each group of keys; with count=True the one {"revision": R, "count": N}."""
        while True:
            page = self.ask("GET", "/v1/kv", {"prefix": prefix, **query})
            if "items" not in page:
                yield page
                return
            yield from map(item_of, page["items"])
            yield from ({"prefix": p} for p in page.get("prefixes", ()))
            if "next" not in page:
                return
            query["start_after"] = page["next"]

    def stream(self, prefix=""):
        """Yields the items under a prefix, all of one revision."""
        answer = self.request("GET", "/v1/kv", {"prefix": prefix}, headers={"Accept": "application/x-ndjson"}, stream=True)
        try:
            for line in map(json.loads, answer):
                if "error" in line:
                    p = line["error"]
                    raise Problem(p["status"], p["code"], p["outcome"], p["retry"], p["detail"])
                if "end" in line:
                    return
                if "key" in line:
                    yield item_of(line)
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise Problem(0, None, "not_applied", True, f"the stream broke off: {e!r}") from e
        raise Problem(0, None, "not_applied", True, "the stream broke off")

    def append(self, prefix, value, ttl=None, lease=None):
        """Returns the key that the store gave to the value."""
        answer = self.request("POST", "/v1/kv", {"prefix": prefix, "ttl": ttl, "lease": lease}, value)
        return urllib.parse.unquote(answer.getheader("Location").removeprefix("/v1/kv/"))

    def txn(self, conditions=(), then=(), otherwise=()):
        return self.ask("POST", "/v1/txn", body={"if": list(conditions), "then": list(then), "else": list(otherwise)})

    # Leases.

    def grant(self, ttl):
        return self.ask("POST", "/v1/leases", body={"ttl": ttl})["id"]

    def keep(self, lease):
        return self.ask("PUT", f"/v1/leases/{lease}")["expires_in_seconds"]

    def revoke(self, lease):
        self.request("DELETE", f"/v1/leases/{lease}", gone=True)


def path_of(key):
    return "/v1/kv/" + urllib.parse.quote(key, safe="")


def condition(revision):
    if revision is None:
        return {}
    return {"If-Match": f'"{revision}"'} if revision else {"If-None-Match": "*"}


def item_of(item):
    encoded = item.pop("value_base64", None)
    if encoded is not None:
        item["value"] = base64.b64decode(encoded)
    elif "value" in item:
        item["value"] = item["value"].encode()
    return item
