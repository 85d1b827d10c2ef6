package openapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// blocks yields the blocks of a text/event-stream, without the empty line that ends each. A
// last one without that line has broken off: a browser drops it, too.
func blocks(body []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for {
			block, rest, whole := bytes.Cut(body, []byte("\n\n"))
			if !whole || !yield(block) {
				return
			}
			body = rest
		}
	}
}

// eventOf returns the object that the document has for a block. It is stricter than a
// browser, which ignores what it does not know.
func eventOf(block []byte) (message map[string]any, err error) {
	message = map[string]any{"event": "comment"}
	seen := make(map[string]bool)
	for line := range strings.SplitSeq(string(block), "\n") {
		name, value, ok := strings.Cut(line, ":")
		switch {
		case ok && name == "":
			continue // a comment
		case seen[name]:
			return nil, fmt.Errorf("%q is there twice", name)
		case strings.ContainsRune(line, '\r'):
			return nil, fmt.Errorf("the line %q would be two", line)
		}
		seen[name] = true
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			message["event"] = value
		case "id":
			message["id"] = json.Number(value)
			if !seen["event"] && !seen["data"] {
				message["event"] = "position"
			}
		case "retry":
			message["retry"] = json.Number(value)
		case "data":
			if message["data"], err = jsonschema.UnmarshalJSON(strings.NewReader(value)); err != nil {
				return nil, fmt.Errorf("the data is no JSON: %w", err)
			}
		default:
			return nil, fmt.Errorf("there is no field %q", name)
		}
	}
	if seen["data"] && !seen["event"] {
		return nil, fmt.Errorf("data without an event")
	}
	return message, nil
}
