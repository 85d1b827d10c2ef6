package main

import (
	"bytes"
	"errors"
	"raftkv/internal/boot"
	"raftkv/internal/durable"
	"raftkv/internal/reconfig"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/testkit"
	"testing"
)

// Guarantee: a program that does not know the cluster's commands says so before
// it takes part, and one that learns it later stops.
func TestLevelOfTheFuture(t *testing.T) {
	s := state.New(testkit.Peers())
	s.Level = state.ProgramLevel + 1
	_, err := state.Read(bytes.NewReader(statetest.Bytes(t, s)))
	if !errors.Is(err, durable.ErrNewer) || !bytes.Contains([]byte(err.Error()), []byte("upgrade this node")) {
		t.Errorf("reading it: %v", err)
	}
	if err := boot.CheckJoinLevel(reconfig.ClusterInfo{Level: state.ProgramLevel + 1}); !errors.Is(err, durable.ErrNewer) {
		t.Errorf("joining: %v", err)
	}
	if err := boot.CheckJoinLevel(reconfig.ClusterInfo{Level: state.ProgramLevel}); err != nil {
		t.Errorf("joining: %v", err)
	}
	kv := newTestStore()
	if err := kv.checkLevel(); err != nil {
		t.Error(err)
	}
	kv.state.Level = state.ProgramLevel + 1
	if err := kv.checkLevel(); err == nil {
		t.Error("it goes on")
	}
}
