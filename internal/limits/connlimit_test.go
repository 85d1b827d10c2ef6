package limits

import (
	"testing"
)

// Without this a process with few descriptors has none for its files, or one
// with many takes few clients.
func TestConnShares(t *testing.T) {
	for files, want := range map[int][2]int64{64: {32, 16}, 256: {128, 64}, 257: {129, 64}, 512: {384, 64}, 1024: {768, 128}, 20000: {15000, 2500}} {
		if clients, peers := ClientConns(files), PeerConns(files); clients != want[0] || peers != want[1] {
			t.Errorf("%d descriptors: %d for clients, %d for peers, want %v", files, clients, peers, want)
		}
	}
}
