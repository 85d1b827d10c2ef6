package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"raftkv/internal/web"
	"strconv"
)

// diskPath is the route on the peer listener by which nodes tell each other how
// full their disks are.
const diskPath = "/raftkv/disk"

// serveDiskNote takes what another node says of its disk.
func (s *server) serveDiskNote(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(clusterHeader) != strconv.FormatUint(s.node.cluster, 16) {
		http.Error(w, "this is another cluster", http.StatusPreconditionFailed)
		return
	}
	var n diskNote
	if err := json.NewDecoder(io.LimitReader(r.Body, maxPeerBody)).Decode(&n); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.room.hear(n)
	web.WriteJSON(w, http.StatusOK, struct{}{})
}

// disk tells the node at a URL how full the disks are.
func (c *peerClient) disk(ctx context.Context, peerURL string, cluster uint64, n diskNote) error {
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, peerURL+diskPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set(clusterHeader, strconv.FormatUint(cluster, 16))
	req.Header.Set("Content-Type", "application/json")
	var none struct{}
	return c.do(req, &none)
}
