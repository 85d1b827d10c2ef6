package main

import (
	"net"
	"raftkv/internal/limits"

	"go.uber.org/zap"
)

// limitTo bounds the connections of a listener from now on.
func (l *stoppableListener) limitTo(most int64, log *zap.Logger, word string) {
	l.limit.Store(&limits.ConnLimit{Most: most, Log: log, Word: word, Polite: make(chan struct{}, limits.PoliteRefusals)})
}

// Accept implements net.Listener: it returns the next connection for which there
// is room, and refuses others.
func (l *stoppableListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.TCPListener.Accept()
		limit := l.limit.Load()
		if err != nil || limit == nil || limit.Admits(l.conns.Load()) {
			return conn, err
		}
		limit.Refuse(conn)
	}
}
