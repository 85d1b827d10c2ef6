package main

import (
	"encoding/json"
	"net/http"
	"raftkv/internal/problem"
)

// writeProblem answers with an error (RFC 9457).
func writeProblem(w http.ResponseWriter, err error) {
	p := problem.Of(err)
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = cacheNever
	}
	if p.Retry == problem.RetrySoon {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(p.Status)
	body := struct {
		Type    string          `json:"type"`
		Title   string          `json:"title"`
		Status  int             `json:"status"`
		Detail  string          `json:"detail"`
		Code    string          `json:"code"`
		Outcome problem.Outcome `json:"outcome"`
		Retry   bool            `json:"retry"`
	}{"about:blank", http.StatusText(p.Status), p.Status, err.Error(), p.Code, p.Outcome, p.Retry != problem.NoRetry}
	writeBody(w, body)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeBody(w, v)
}

// writeBody encodes v as the body of an answer. A client that has gone away
// is no concern of ours.
func writeBody(w http.ResponseWriter, v any) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}
