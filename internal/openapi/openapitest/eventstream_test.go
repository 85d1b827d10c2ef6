package openapitest

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// Guarantee: each block of a text/event-stream and each line of a watch is looked at, whether
// or not the answer came to an end.
func TestCheckWatch(t *testing.T) {
	const put = `{"type":"put","key":"a","value":"x","create_revision":3,"mod_revision":8,"version":2}`
	const change = `{"revision":8,"events":[` + put + `,{"type":"delete","key":"b"}]}`
	const problem = `{"type":"/v1/errors#no_leader","title":"t","status":503,"detail":"d","code":"no_leader","outcome":"not_applied","retry":true}`
	for text, fine := range map[string]bool{
		"": true,
		"retry: 1734\n\n:\n\nid: 7\n\nevent: change\nid: 8\ndata: " + change + "\n\n": true,
		"event: change\ndata: " + change + "\n\n":                                     true,
		"event: change\ndata: " + change:                                              true, // it broke off
		"event: change\ndata: " + change[:9]:                                          true,
		"event: reset\nid: 0\ndata: {\"code\":\"start\"}\n\nevent: state\ndata: {\"revision\":2,\"items\":[" + strings.Replace(put, `"type":"put",`, "", 1) + "]}\n\nevent: synced\nid: 2\ndata: {\"revision\":2}\n\n": true,
		"event: reset\nid: 20\ndata: {\"code\":\"history_gone\",\"oldest\":12}\n\n":                         true,
		"event: unavailable\nretry: 1500\ndata: " + problem + "\n\n":                                        true,
		"event: unavailable\ndata: " + problem + "\n\n":                                                     false,
		"event: change\nid: 8\n\n":                                                                          false,
		"event: changes\nid: 8\ndata: " + change + "\n\n":                                                   false,
		"event: change\nid: x\ndata: " + change + "\n\n":                                                    false,
		"event: change\nid: 8\ndata: " + change[:9] + "\n\n":                                                false,
		"event: change\nid: 8\nid: 9\ndata: " + change + "\n\n":                                             false,
		"event: change\nid: 8\r\ndata: " + change + "\n\n":                                                  false,
		"id: 8\ndata: " + change + "\n\n":                                                                   false,
		"color: red\n\n":                                                                                    false,
		"event: synced\ndata: {\"revision\":2}\n\n":                                                         false,
		"event: reset\nid: 20\ndata: {\"code\":\"bored\"}\n\n":                                              false,
		"event: change\ndata: " + strings.Replace(change, `"key":"b"`, `"key":"b","value":"x"`, 1) + "\n\n": false,
	} {
		x := &Exchange{
			Method: http.MethodGet, URL: &url.URL{Path: "/v1/watch", RawQuery: "key=a&key=b&prefix=&types=put,delete,expire&state=true"},
			Sent: http.Header{"Last-Event-Id": {"7"}, "Accept": {"text/event-stream"}}, Status: http.StatusOK, Answer: []byte(text),
			Header: http.Header{"Content-Type": {"text/event-stream"}, "Cache-Control": {"no-store"}, "X-Accel-Buffering": {"no"}, "X-Content-Type-Options": {"nosniff"}, "Raftkv-Cluster-Id": {"a1"}},
		}
		if err := served(t).Check(x); (err == nil) != fine {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, fine := range map[string]bool{
		`{"event":"position","id":9}`:                     true,
		`{"event":"comment"}` + "\n" + `{"event":"po`:     true,
		`{"event":"position"}` + "\n" + `{"event":"po`:    false,
		`{"event":"change","id":8,"data":` + change + "}": true,
	} {
		x := &Exchange{
			Method: http.MethodGet, URL: &url.URL{Path: "/v1/watch"}, Status: http.StatusOK, Answer: []byte(text),
			Header: http.Header{"Content-Type": {"application/x-ndjson"}, "Cache-Control": {"no-store"}, "X-Accel-Buffering": {"no"}, "X-Content-Type-Options": {"nosniff"}, "Raftkv-Cluster-Id": {"a1"}},
		}
		if err := served(t).Check(x); (err == nil) != fine {
			t.Errorf("%q: %v", text, err)
		}
	}
}
