"""Calls everything of docs/examples/raftkv_client.py, under a prefix of its own, and prints what comes back:

    use_client.py DIRECTORY-OF-THE-CLIENT PREFIX ENDPOINT...
"""
import sys

sys.path.insert(0, sys.argv[1])
from raftkv_client import Client, Problem  # noqa: E402

prefix = sys.argv[2]
kv = Client(sys.argv[3:])


def show(what, *values):
    print(what, *values, sep="\t")


def problem(what, call, *args, **named):
    try:
        show(what, "no error", call(*args, **named))
    except Problem as p:
        show(what, p.status, p.code, p.outcome, p.retry)
        return p


# One key, whatever is in it.
key = prefix + "a//b/../ü?&%"
first = kv.put(key, b"\x00\xff", if_revision=0)
show("get", kv.get(key) == (b"\x00\xff", first))
p = problem("put again", kv.put, key, b"x", if_revision=0)
show("its revision is told", p.revision == first)
second = kv.put(key, b"text", if_revision=first)
show("grows", second > first)
problem("old revision", kv.put, key, b"x", if_revision=first)
show("by revision", kv.get(key, min_revision=second, max_age="1m")[0])
show("missing", kv.get(prefix + "none"))
show("delete", kv.delete(key, if_revision=second), kv.delete(key))
problem("empty key", kv.put, "", b"x")
problem("bad ttl", kv.put, key, b"x", ttl="30")

# Many keys.
for n in range(5):
    kv.put(f"{prefix}list/{n}", f"value {n}".encode() if n else b"\xfe")
show("pages", *[(i["key"].removeprefix(prefix), i["value"]) for i in kv.list(prefix + "list/", limit=2)])
show("backwards", *[i["key"].removeprefix(prefix) for i in kv.list(prefix + "list/", limit=2, reverse=True, keys_only=True)])
show("count", *[i["count"] for i in kv.list(prefix + "list/", count=True)], *[i["count"] for i in kv.list(prefix + "list/", count="true")])
kv.put(prefix + "text", "é")
show("text", kv.get(prefix + "text")[0])
show("stream", *[i["value"] for i in kv.stream(prefix + "list/")])
show("nothing", list(kv.stream(prefix + "none/")))
problem("bad list", lambda: list(kv.list(prefix, limit=0)))
jobs = [kv.append(prefix + "jobs/", job) for job in ("wash", "dry")]
show("append", jobs == sorted(jobs), *[kv.get(job)[0] for job in jobs])
show("groups", *[i.get("prefix", i.get("key")).removeprefix(prefix) for i in kv.list(prefix, delimiter="/", limit=1)])

# Numbers.
show("add", kv.add(prefix + "n", 5), kv.add(prefix + "n", -7))
problem("no number", kv.add, prefix + "list/1", 1)
problem("too large a number", kv.add, prefix + "n", -(1 << 63))

# Transactions.
conditions = [{"key": prefix + "n", "value": "-2"}, {"prefix": prefix + "none/", "exists": False}]
done = kv.txn(conditions, [{"put": {"key": prefix + "t", "value": "1"}}, {"add": {"key": prefix + "n", "delta": "2"}}])
show("txn", done["succeeded"], done["results"][0]["put"]["mod_revision"] == done["revision"], done["results"][1]["add"]["value"])
done = kv.txn(conditions, [], [{"get": {"key": prefix + "none"}}, {"delete": {"key": prefix + "t"}}])
show("txn again", done["succeeded"], *done["results"])
problem("bad txn", kv.txn, [{"key": prefix + "n"}])

# Leases: the lock.
lease = kv.grant("1m")
token = kv.put(prefix + "lock", b"me", lease=lease, if_revision=0)
problem("locked", kv.put, prefix + "lock", "you", if_revision=0)
show("keep", kv.keep(lease))
kv.revoke(lease)
show("unlocked", kv.get(prefix + "lock"), kv.put(prefix + "lock", b"you", if_revision=0) > token)
problem("revoke what ended", kv.revoke, lease)


class Lossy(Client):
    """Loses the first answer."""

    lost = False

    def once(self, *request):
        answer = super().once(*request)
        if not self.lost:
            self.lost = True
            raise Problem(0, None, "unknown", True, "lost")
        return answer


show("revoke, and no answer", Lossy(sys.argv[3:]).revoke(kv.grant("1m")))
problem("keep what ended", kv.keep, lease)
problem("bind to what ended", kv.put, prefix + "lock", "me", lease=lease)
problem("nobody there", Client(["http://127.0.0.1:1"], give_up=0).get, "k")
