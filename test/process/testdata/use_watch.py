"""Keeps a copy of what is under w/ by docs/examples/raftkv_watch.py, and prints it each time that it has changed:

    use_watch.py DIRECTORY-OF-THE-CLIENT ENDPOINT...
"""
import base64
import json
import sys

sys.path.insert(0, sys.argv[1])
from raftkv_watch import Copy, Refused  # noqa: E402

try:
    next(iter(Copy(sys.argv[2:], nonsense=True)))
except Refused as refused:
    print(str(refused).startswith("400"), file=sys.stderr)

for items in Copy(sys.argv[2:], prefixes=["w/"]):
    shown = [{**i, "value": None, "value_base64": base64.b64encode(i["value"]).decode()} for i in items.values()]
    print(json.dumps(shown), flush=True)
