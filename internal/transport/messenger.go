// Package transport answers: how do messages, streams and snapshot files travel
// between nodes? It stands on etcd's rafthttp, which it alone imports, finds out
// when a link is broken, and carries snapshots at the pace of their receiver.
package transport

import (
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// RaftLogger lets raft log through zap.
type RaftLogger struct{ *zap.SugaredLogger }

// Infof passes on what raft says, except that a storage answer told it nothing
// new: with asynchronous storage that is the rule, several times a write.
func (l RaftLogger) Infof(format string, v ...any) {
	if strings.HasPrefix(format, "entry at ") {
		l.Debugf(format, v...)
		return
	}
	l.SugaredLogger.Infof(format, v...)
}

// Warning is Warn by the name that raft calls it.
func (l RaftLogger) Warning(v ...any) { l.Warn(v...) }

// Warningf is Warnf by the name that raft calls it.
func (l RaftLogger) Warningf(format string, v ...any) { l.Warnf(format, v...) }

// Fatal panics: only main ends the process.
func (l RaftLogger) Fatal(v ...any) { l.Panic(v...) }

// Fatalf panics, as Fatal does.
func (l RaftLogger) Fatalf(format string, v ...any) { l.Panicf(format, v...) }

// PeerDirectory is told where the peers are.
type PeerDirectory interface {
	AddPeer(id types.ID, urls []string)
	UpdatePeer(id types.ID, urls []string)
	RemovePeer(id types.ID)
}

// Messenger carries raft's messages to the other members. The production one
// is *Peers; tests simulate a network.
type Messenger interface {
	// Send takes messages without blocking and may lose them.
	Send(msgs []*raftpb.Message)
	// SendSnapshot takes a message with the file that belongs to it, and says
	// through the message's CloseNotify what became of it.
	SendSnapshot(m *snap.Message)
	AddPeer(id types.ID, urls []string)
	UpdatePeer(id types.ID, urls []string)
	RemovePeer(id types.ID)
	Stop()
}
