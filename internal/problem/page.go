package problem

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// PagePath is where a node serves Page. The type of a problem is its place there, a
// reference to the node that has sent it.
const PagePath = "/v1/errors"

// Type returns the type of the problems of a code (RFC 9457): where Page tells of them.
func Type(code string) string { return PagePath + "#" + code }

// advice says, by code, what a person or a program does about a problem.
var advice = map[string]string{
	"ambiguous":              "Use one of the two long forms that the message names, or `?force=true` if the node is meant.",
	"bad_request":            "The message says what is wrong. Change the request: it will not succeed as it is.",
	"change_in_progress":     "Try again: changes of the members are made one after another.",
	"cross_origin":           "If the page should be able to call this cluster, start each node with `--allowed-origin` and the page's origin.",
	"disk_full":              "Free room on the disks, or delete keys: deletes are taken all the same. `/readyz?verbose` says whose disk is full.",
	"disputed":               "Start the voters that are down. If they are lost, the message says how to choose a history.",
	"diverged":               "Ask another node. The message says what to do with this one; what it answers is not to be relied on.",
	"forbidden":              "Whoever keeps the file of rights (`--auth-file`) can give this one. The message says which it takes: a range has to lie in one prefix that is granted.",
	"idempotency_key_reused": "Use another key for each request, a random one: keys are the whole cluster's. Only a repeat of the same request has the same key.",
	"internal":               "This node, or the program, has a fault: see its log. Ask another node; a write may have happened.",
	"last_voter":             "Add another node first.",
	"lease_full":             "Use another lease for more keys.",
	"member_exists":          "See `GET /v1/members`, and choose another ID or URL.",
	"member_removed":         "Choose an ID that was never used, and an empty data directory.",
	"method_not_allowed":     "The header `Allow` lists the methods that this path has.",
	"no_leader":              "Try again, here or at another node. If it stays, too few voters run or reach each other.",
	"no_such_lease":          "Make another lease, and write its keys again. Whoever held something with this one holds it no more.",
	"no_such_path":           "Look at the path: `GET /` lists the first ones to know. It has nothing to do with keys.",
	"not_a_number":           "The value of this key is no decimal integer: write one, or add to another key.",
	"not_found":              "There is nothing of that name, or no longer.",
	"not_handed_over":        "Look at `GET /v1/status` who leads now, and try again.",
	"not_leader":             "Try again, or ask another node.",
	"not_ready":              "Try again, or ask another node. `/readyz?verbose` says what is missing.",
	"not_voter":              "Choose a voter, or make the node one: `PATCH /v1/members/ID` with `{\"role\":\"voter\"}`.",
	"out_of_range":           "The sum does not fit 64 bits with a sign: write another number, or add less.",
	"outcome_unknown":        "Send the request again with the same `Idempotency-Key`, if it had one. Else read what is there now: a write with a condition (`If-Match`, `If-None-Match: *`) can be sent again without harm.",
	"overloaded":             "Wait as long as `Retry-After` says, then try again, with fewer requests at once.",
	"precondition_failed":    "Read the key, decide anew, and send the request with the `ETag` that is current. The answer has it, unless there is no such key.",
	"quota_exceeded":         "Delete keys, or raise `--quota` on all nodes if they have the memory.",
	"request_timeout":        "Send the request faster, or in smaller pieces.",
	"stopping":               "Ask another node. This one comes back if it is being restarted.",
	"stuck":                  "Start the node again, and keep its log: it says which part hangs.",
	"too_large":              "Send less, or raise `--max-value-size` on all nodes.",
	"too_stale":              "Ask another node or try again, or without `min_revision` and `max_age`: a linearizable read is never too old.",
	"unauthenticated":        "Send `Authorization: Bearer TOKEN`, or a client certificate that an entry of the file of rights names. A token that is sent decides alone: a wrong one is refused beside a good certificate.",
	"unavailable":            "Try again, here or at another node, or with `?consistency=stale` if an older value will do.",
	"unsupported_media_type": "Send JSON as `application/json`.",
	"upgrading":              "Start the members that are down, and upgrade those that run an older program: `level` in `/v1/status` rises once all run the new one. In a new cluster it is 0 until each member has run once.",
	"would_lose_quorum":      "Start the nodes that are down first. `?force=true` makes the change all the same.",
	"wrong_host":             "Use an address or a name that is this node's, or start it with `--allowed-host` and the name.",
}

const pageHead = `# Errors

What a node answers when it does not do what it was asked: ` + "`application/problem+json`" + `
([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)). The ` + "`code`" + ` is stable, the text is not;
` + "`outcome`" + ` says whether the thing happened, and ` + "`retry`" + ` whether the same request can succeed
later. An error without a ` + "`code`" + ` came from something between the client and the node.

This page is made from the table of errors in the program, and each node serves it at
` + "`" + PagePath + "`" + `.
`

// Page returns what people should know of all problems, in Markdown.
func Page() string {
	var page strings.Builder
	page.WriteString(pageHead)
	rows := make(map[string][]string)
	var codes []string
	for _, p := range Problems {
		if rows[p.Code] == nil {
			codes = append(codes, p.Code)
		}
		rows[p.Code] = append(rows[p.Code], p.row())
	}
	slices.Sort(codes)
	for _, code := range codes {
		fmt.Fprintf(&page, "\n## %s\n\n%s\n%s\n", code, strings.Join(rows[code], ""), advice[code])
	}
	return page.String()
}

// row is a line of the page on one way to end in a problem.
func (p *problem) row() string {
	outcome := "did not happen"
	if p.Outcome == MaybeApplied {
		outcome = "may have happened"
	}
	retry := [...]string{
		NoRetry:    "the same request will not succeed",
		RetryLater: "may succeed once the cluster is in another state",
		RetrySoon:  "passes by itself (`Retry-After`)",
	}[p.Retry]
	return fmt.Sprintf("- %d %s; %s; %s: %s.\n", p.Status, http.StatusText(p.Status), outcome, retry, p.text)
}
