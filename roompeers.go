package main

import (
	"net/http"
	"raftkv/internal/peerclient"
	"raftkv/internal/room"
	"raftkv/internal/web"
)

// serveDiskNote takes what another node says of its disk.
func (s *server) serveDiskNote(w http.ResponseWriter, r *http.Request) {
	var n room.Note
	if !peerclient.Receive(w, r, s.node.cluster, peerclient.MaxBody, &n) {
		return
	}
	s.room.Hear(n)
	web.WriteJSON(w, http.StatusOK, struct{}{})
}
