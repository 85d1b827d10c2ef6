package main

import (
	"context"
	"net/http"
	"raftkv/internal/peerclient"
	"raftkv/internal/web"
)

// diskPath is the route on the peer listener by which nodes tell each other how
// full their disks are.
const diskPath = "/raftkv/disk"

// serveDiskNote takes what another node says of its disk.
func (s *server) serveDiskNote(w http.ResponseWriter, r *http.Request) {
	var n diskNote
	if !peerclient.Receive(w, r, s.node.cluster, peerclient.MaxBody, &n) {
		return
	}
	s.room.hear(n)
	web.WriteJSON(w, http.StatusOK, struct{}{})
}

// tellDisk tells the node at a URL how full the disks are.
func tellDisk(ask *peerclient.Client) func(ctx context.Context, peerURL string, cluster uint64, n diskNote) error {
	return func(ctx context.Context, peerURL string, cluster uint64, n diskNote) error {
		var none struct{}
		return ask.Post(ctx, peerURL+diskPath, cluster, n, &none)
	}
}
