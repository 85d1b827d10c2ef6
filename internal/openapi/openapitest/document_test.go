package openapitest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"raftkv/internal/problem"
	"slices"
	"strings"
	"testing"
)

func parsed(t *testing.T) *reader {
	t.Helper()
	tree, err := Parsed()
	if err != nil {
		t.Fatal(err)
	}
	return &reader{tree: tree}
}

// Guarantee: the document has all codes of problems, and each with the statuses that the
// program has for it.
func TestCodes(t *testing.T) {
	want, codes := make(map[string]bool), make(map[string]bool)
	for _, p := range problem.Problems {
		want[fmt.Sprint(p.Status, " ", p.Code)], codes[p.Code] = true, true
	}
	r := parsed(t)
	var all []string
	for _, code := range r.list("/components/schemas/Problem/properties/code", "enum") {
		all = append(all, code.(string))
	}
	if there := slices.Sorted(maps.Keys(codes)); !slices.Equal(all, there) {
		t.Errorf("Problem has the codes\n%q, there are\n%q", all, there)
	}
	got, withBody := make(map[string]bool), make(map[string]bool)
	for name := range r.object("/components/schemas") {
		parts := r.list("/components/schemas/"+name, "allOf")
		if len(parts) != 2 {
			continue
		}
		properties, _ := parts[1].(map[string]any)["properties"].(map[string]any)
		status, _ := properties["status"].(map[string]any)
		code, _ := properties["code"].(map[string]any)
		if status == nil || code == nil {
			continue
		}
		withBody[name] = true
		for _, c := range code["enum"].([]any) {
			got[fmt.Sprint(status["const"], " ", c)] = true
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("the document has\n%q, there are\n%q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	// An answer that is an error says which codes it has.
	for name := range r.object("/components/responses") {
		for media := range r.content("/components/responses/" + name) {
			at := "/components/responses/" + name + "/content/" + escape(media) + "/schema"
			if _, where := r.find(at); media == "application/problem+json" && !withBody[strings.TrimPrefix(where, "/components/schemas/")] {
				t.Errorf("%s does not say which codes it has", name)
			}
		}
	}
	for path, methods := range served(t).paths {
		for method, o := range methods {
			for status := range o.answers {
				_, where := r.find("/paths/" + escape(path) + "/" + strings.ToLower(method) + "/responses/" + status)
				name := where[strings.LastIndex(where, "/")+1:]
				_, schema := r.find(where + "/content/application~1problem+json/schema")
				parts := r.list(schema, "allOf")
				if status < "400" && parts == nil {
					continue
				}
				if len(parts) != 2 || fmt.Sprint(parts[1].(map[string]any)["properties"].(map[string]any)["status"].(map[string]any)["const"]) != status {
					t.Errorf("%s has %s for the status %s", o.id, name, status)
				}
			}
		}
	}
}

func served(t *testing.T) *Document {
	t.Helper()
	d, err := Served()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Guarantee: an object of the document is described to its last property, so that one
// that a node begins to send is noticed.
func TestStrict(t *testing.T) {
	r := parsed(t)
	n := 0
	var walk func(at string, node any)
	walk = func(at string, node any) {
		switch node := node.(type) {
		case map[string]any:
			if node["type"] == "object" {
				n++
				if node["additionalProperties"] != false {
					t.Errorf("%s takes more properties than it has", at)
				}
				required, _ := node["required"].([]any)
				for _, name := range required {
					if properties, _ := node["properties"].(map[string]any); properties[name.(string)] == nil {
						t.Errorf("%s requires %v, which it does not have", at, name)
					}
				}
			}
			for name, inner := range node {
				walk(at+"/"+name, inner)
			}
		case []any:
			for i, inner := range node {
				walk(fmt.Sprint(at, "/", i), inner)
			}
		}
	}
	walk("", r.tree)
	if n < 30 {
		t.Errorf("only %d objects were found", n)
	}
	// Nothing is there that nobody refers to.
	text, err := json.Marshal(r.tree)
	if err != nil {
		t.Fatal(err)
	}
	for kind := range r.object("/components") {
		for name := range r.object("/components/" + kind) {
			special := kind == "securitySchemes" || kind == "responses" && slices.Contains(slices.Collect(maps.Values(anyPath)), name)
			if !special && !strings.Contains(string(text), `"#/components/`+kind+"/"+name+`"`) {
				t.Errorf("nobody refers to %s %s", kind, name)
			}
		}
	}
}

// exchange is one that the document describes: a GET of a key.
func exchange(change func(x *Exchange)) *Exchange {
	x := &Exchange{
		Method: "GET", URL: &url.URL{Path: "/k"}, Sent: http.Header{"Accept": {"*/*"}}, Status: 200, Answer: []byte("v"), Whole: true,
		Header: http.Header{
			"Etag": {`"1"`}, "Raftkv-Revision": {"1"}, "Raftkv-Consistency": {"linearizable"}, "X-Content-Type-Options": {"nosniff"},
			"Cache-Control": {"no-cache, no-transform"}, "Raftkv-Cluster-Id": {"a1"}, "Content-Type": {"application/octet-stream"}, "Vary": {"Accept"},
		},
	}
	change(x)
	return x
}

// Guarantee: what is not described is found.
func TestCheck(t *testing.T) {
	item := `{"key":"k","value":"v","create_revision":1,"mod_revision":1,"version":1`
	inJSON := func(text string) func(x *Exchange) {
		return func(x *Exchange) {
			x.Header.Set("Content-Type", "application/json")
			x.Answer = []byte(text)
		}
	}
	for what, tt := range map[string]struct {
		change func(x *Exchange)
		fine   bool
	}{
		"as it is":             {func(*Exchange) {}, true},
		"a key with slashes":   {func(x *Exchange) { x.URL.Path = "/a//b/../%\xff" }, true},
		"the long form":        {func(x *Exchange) { x.URL.Path = "/v1/kv//" }, true},
		"the key in the query": {func(x *Exchange) { x.URL = &url.URL{Path: "/v1/kv", RawQuery: "key=k"} }, true},
		"an item":              {inJSON(item + "}"), true},
		"a line behind it":     {inJSON(item + "}\n"), true},
		"an unknown property":  {inJSON(item + `,"color":"red"}`), false},
		"two values":           {inJSON(item + `,"value_base64":"dg=="}`), false},
		"no JSON":              {inJSON(item), false},
		"no version":           {inJSON(strings.Replace(item, `,"version":1`, "", 1) + "}"), false},
		"a page for a key": {func(x *Exchange) {
			inJSON(`{"revision":1,"items":[]}`)(x)
			x.URL = &url.URL{Path: "/v1/kv", RawQuery: "key=k"}
		}, false},
		"a page": {func(x *Exchange) {
			inJSON(`{"revision":1,"items":[]}`)(x)
			x.URL = &url.URL{Path: "/v1/kv"}
			x.Header.Del("Etag")
		}, true},
		"cut short":               {func(x *Exchange) { inJSON(item)(x); x.Whole = false }, true},
		"another status":          {func(x *Exchange) { x.Status = 206 }, false},
		"another type":            {func(x *Exchange) { x.Header.Set("Content-Type", "text/html") }, false},
		"no type":                 {func(x *Exchange) { x.Header.Del("Content-Type") }, false},
		"another header":          {func(x *Exchange) { x.Header.Set("Server", "raftkv") }, false},
		"no revision":             {func(x *Exchange) { x.Header.Del("Raftkv-Revision") }, false},
		"two revisions":           {func(x *Exchange) { x.Header.Add("Raftkv-Revision", "2") }, false},
		"a revision that is none": {func(x *Exchange) { x.Header.Set("Raftkv-Revision", "one") }, false},
		"a weak tag":              {func(x *Exchange) { x.Header.Set("Etag", `W/"1"`) }, false},
		"cached":                  {func(x *Exchange) { x.Header.Set("Cache-Control", "no-store") }, false},
		"a parameter":             {func(x *Exchange) { x.URL.RawQuery = "consistency=stale" }, true},
		"an unknown parameter":    {func(x *Exchange) { x.URL.RawQuery = "color=red" }, false},
		"a wrong parameter":       {func(x *Exchange) { x.URL.RawQuery = "consistency=some" }, false},
		"a number that is none":   {func(x *Exchange) { x.URL.RawQuery = "min_revision=one" }, false},
		"a header of a request":   {func(x *Exchange) { x.Sent.Set("If-Match", "*") }, true},
		"an unknown one":          {func(x *Exchange) { x.Sent.Set("Raftkv-Color", "red") }, false},
		"no body is described":    {func(x *Exchange) { x.Status = 304; x.Header.Del("X-Content-Type-Options") }, false},
		"a method that it lacks":  {func(x *Exchange) { x.Method = "PATCH" }, false},
		"a path that it lacks":    {func(x *Exchange) { x.URL.Path = "/v1/nothing" }, false},
	} {
		if err := served(t).Check(exchange(tt.change)); (err == nil) != tt.fine {
			t.Errorf("%s: %v", what, err)
		}
	}
}
