// Package openapitest answers: is an answer of a node one that the OpenAPI document
// describes? Tests hand it each exchange that they make. It finds the operation itself,
// since keys in paths contain slashes and any other bytes, and it is strict: a status, a
// header or a property that is not described is an error. Only tests import it.
package openapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"raftkv/internal/openapi"
	"slices"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Document is the OpenAPI document, so that exchanges can be held against it.
type Document struct {
	paths   map[string]map[string]*operation // by path and method
	general map[string]bool                  // headers that any answer may have
	every   map[string]*answer               // by status, of any path and method

	mu      sync.Mutex // guards what is below
	schemas *jsonschema.Compiler
}

// operation is a method of a path.
type operation struct {
	id         string
	parameters map[string]*schema // by place and name, as in "query limit"
	body       map[string]*schema // by media type
	answers    map[string]*answer // by status
}

// answer is what an operation answers with a status.
type answer struct {
	headers  map[string]*schema // by canonical name
	required []string           // of these
	content  map[string]*schema // by media type
}

// schema is a place of the document where a schema stands, or could.
type schema struct {
	at       string // a JSON pointer; empty: anything goes
	kind     string // what it says of its type
	compiled *jsonschema.Schema
}

// Parsed returns the document that nodes serve as a tree of JSON values, each time a new one.
func Parsed() (map[string]any, error) {
	doc, err := openapi3.NewLoader().LoadFromData([]byte(openapi.Document))
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	tree, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	return tree.(map[string]any), nil
}

// Served returns the document that nodes serve. It is read once.
var Served = sync.OnceValues(func() (*Document, error) {
	tree, err := Parsed()
	if err != nil {
		return nil, err
	}
	return New(tree)
})

// anyPath are the answers that requests of any path and method can get.
var anyPath = map[string]string{
	"400": "BadRequest", "401": "Unauthenticated", "403": "Forbidden", "404": "NoSuchPath", "405": "MethodNotAllowed", "408": "RequestTimeout", "421": "WrongHost",
	"429": "Overloaded", "500": "Internal", "503": "Unavailable",
}

// documentURL names the document to the schemas in it.
const documentURL = "mem:///openapi.json"

// New makes a document of a tree of JSON values.
func New(tree map[string]any) (*Document, error) {
	d := &Document{paths: make(map[string]map[string]*operation), general: make(map[string]bool), every: make(map[string]*answer), schemas: jsonschema.NewCompiler()}
	d.schemas.DefaultDraft(jsonschema.Draft2020)
	d.schemas.AssertFormat()
	d.schemas.AssertContent()
	if err := d.schemas.AddResource(documentURL, tree); err != nil {
		return nil, err
	}
	r := reader{tree: tree}
	for _, name := range r.list("", "x-general-headers") {
		d.general[http.CanonicalHeaderKey(name.(string))] = true
	}
	for status, name := range anyPath {
		d.every[status] = r.answer("/components/responses/" + name)
	}
	for path := range r.object("/paths") {
		at := "/paths/" + escape(path)
		d.paths[path] = make(map[string]*operation)
		for method := range r.object(at) {
			d.paths[path][strings.ToUpper(method)] = r.operation(at + "/" + method)
		}
	}
	return d, r.err
}

// Paths returns the paths of the document.
func (d *Document) Paths() []string { return slices.Sorted(maps.Keys(d.paths)) }

// Methods returns the methods that a path of the document has.
func (d *Document) Methods(path string) []string { return slices.Sorted(maps.Keys(d.paths[path])) }

// Takes reports whether an operation has a parameter of that name in its query.
func (d *Document) Takes(path, method, name string) bool {
	o := d.paths[path][method]
	return o != nil && o.parameters["query "+name] != nil
}

// Statuses returns the statuses that an operation can answer with.
func (d *Document) Statuses(path, method string) []string {
	if o := d.paths[path][method]; o != nil {
		return slices.Sorted(maps.Keys(o.answers))
	}
	return nil
}

// reader takes a document apart. It keeps the first error.
type reader struct {
	tree map[string]any
	err  error
}

func escape(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

// find returns what stands at a JSON pointer, behind references, and where that is; nil if
// there is nothing.
func (r *reader) find(at string) (node map[string]any, where string) {
	var value any = r.tree
	for name := range strings.SplitSeq(strings.TrimPrefix(at, "/"), "/") {
		inner, _ := value.(map[string]any)
		value = inner[strings.ReplaceAll(strings.ReplaceAll(name, "~1", "/"), "~0", "~")]
	}
	node, _ = value.(map[string]any)
	if ref, ok := node["$ref"].(string); ok {
		if node, where = r.find(strings.TrimPrefix(ref, "#")); node == nil && r.err == nil {
			r.err = fmt.Errorf("there is no %s", ref)
		}
		return node, where
	}
	return node, at
}

func (r *reader) object(at string) map[string]any {
	node, _ := r.find(at)
	return node
}

func (r *reader) list(at, name string) []any {
	node := r.tree
	if at != "" {
		node = r.object(at)
	}
	all, _ := node[name].([]any)
	return all
}

// schema returns the one that stands in a node under "schema".
func (r *reader) schema(at string) *schema {
	node, where := r.find(at)
	if node["schema"] == nil {
		return &schema{}
	}
	s, there := r.find(where + "/schema")
	kind, _ := s["type"].(string)
	return &schema{at: there, kind: kind}
}

func (r *reader) operation(at string) *operation {
	node := r.object(at)
	o := &operation{parameters: make(map[string]*schema), answers: make(map[string]*answer)}
	o.id, _ = node["operationId"].(string)
	for _, p := range r.list(at, "parameters") {
		ref, _ := p.(map[string]any)["$ref"].(string)
		place := strings.TrimPrefix(ref, "#")
		param := r.object(place)
		name, _ := param["name"].(string)
		if param["in"] == "header" {
			name = http.CanonicalHeaderKey(name)
		}
		o.parameters[fmt.Sprint(param["in"], " ", name)] = r.schema(place)
	}
	if node["requestBody"] != nil {
		_, body := r.find(at + "/requestBody")
		o.body = r.content(body)
	}
	for status := range r.object(at + "/responses") {
		o.answers[status] = r.answer(at + "/responses/" + status)
	}
	return o
}

func (r *reader) answer(at string) *answer {
	node, where := r.find(at)
	a := &answer{headers: make(map[string]*schema), content: r.content(where)}
	headers, _ := node["headers"].(map[string]any)
	for name := range headers {
		header := where + "/headers/" + escape(name)
		canonical := http.CanonicalHeaderKey(name)
		a.headers[canonical] = r.schema(header)
		if r.object(header)["required"] == true {
			a.required = append(a.required, canonical)
		}
	}
	slices.Sort(a.required)
	return a
}

func (r *reader) content(at string) map[string]*schema {
	content := make(map[string]*schema)
	for media := range r.object(at + "/content") {
		content[media] = r.schema(at + "/content/" + escape(media))
	}
	return content
}

// validate holds a value against a schema.
func (d *Document) validate(s *schema, value any) error {
	if s.at == "" {
		return nil
	}
	d.mu.Lock()
	if s.compiled == nil {
		compiled, err := d.schemas.Compile(documentURL + "#" + s.at)
		if err != nil {
			d.mu.Unlock()
			return err
		}
		s.compiled = compiled
	}
	d.mu.Unlock()
	return s.compiled.Validate(value)
}
