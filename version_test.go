package main

import (
	"encoding/json"
	"raftkv/internal/version"
	"testing"
)

// Guarantee: /v1/status has the version and the revision of --version.
func TestStatusNamesTheBuild(t *testing.T) {
	at := newAPITest(t)
	var got struct {
		Version       string `json:"version"`
		BuildRevision string `json:"build_revision"`
	}
	w := at.do("GET", "/v1/status", "")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if b := version.This(); got.Version != b.Version || got.BuildRevision != b.Revision {
		t.Errorf("%s, want version %q and build_revision %q", w.Body, b.Version, b.Revision)
	}
}
