package testkit

import "raftkv/internal/address"

// Peers are the members of the clusters that tests make up.
func Peers() []address.Peer {
	return []address.Peer{{ID: 1, URL: "http://a:1"}, {ID: 2, URL: "http://b:2"}, {ID: 3, URL: "http://c:3"}}
}
