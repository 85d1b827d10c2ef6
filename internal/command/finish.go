package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"raftkv/client"
	"raftkv/internal/config"
	"strings"
)

// What is said of how a command ended.

// failure is what is written to Stderr with --output json.
type failure struct {
	Error   string      `json:"error"`
	Code    client.Code `json:"code,omitempty"`    // of the node's answer
	Outcome string      `json:"outcome,omitempty"` // of a request: not_applied or unknown
	Exit    int         `json:"exit"`
}

// Finish says on Stderr what went wrong, if something did, and returns the exit status.
func (o *Call) Finish(err error) int {
	status := StatusOf(err)
	var exit ExitError
	if err == nil || errors.As(err, &exit) && exit.Err == nil {
		return status
	}
	// Package client begins with the call that was made, which is mostly the command.
	text := strings.TrimPrefix(err.Error(), o.Name+" ")
	if o.Output == JSON {
		f := failure{Error: text, Exit: status}
		var failed *client.Error
		if errors.As(err, &failed) {
			f.Code, f.Outcome = failed.Code, "not_applied"
			if errors.Is(err, client.ErrOutcomeUnknown) {
				f.Outcome = "unknown"
			}
		}
		enc := json.NewEncoder(o.Stderr)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(f) // nobody is left to tell of an error
		return status
	}
	name := strings.TrimSpace("raftkv " + o.Name)
	fmt.Fprintf(o.Stderr, "%s: %s\n", name, text)
	if status == config.ExitUsage {
		fmt.Fprintf(o.Stderr, "Run %s --help for more.\n", name)
	}
	return status
}
