package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// raftkv is the server that this benchmark is about.
type raftkv struct {
	binary string
	flags  []string // beside those that every node needs
	tls    *secured // nil: it speaks plain HTTP
}

// buildRaftkv builds the server from its source.
func buildRaftkv(source, dir string) (string, error) {
	binary, err := filepath.Abs(filepath.Join(dir, "raftkv-binary"))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", binary, ".")
	cmd.Dir, cmd.Stderr = source, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building raftkv in %s: %w", source, err)
	}
	return binary, nil
}

func (r raftkv) command(c *cluster, n *node) []string {
	_, port, _ := net.SplitHostPort(n.client)
	args := []string{r.binary, "--id", strconv.Itoa(n.id), "--port", port, "--data-dir", n.dir,
		"--cluster", c.peerList(func(n *node) string { return fmt.Sprintf("%d=%s%s", n.id, r.tls.scheme(), n.peer) })}
	if n.joined {
		args = append(args, "--join")
	}
	if r.tls != nil {
		args = append(args, "--cert-file", r.tls.cert(n), "--key-file", r.tls.key(n),
			"--peer-cert-file", r.tls.cert(n), "--peer-key-file", r.tls.key(n), "--peer-trusted-ca-file", r.tls.ca())
	}
	return append(args, r.flags...)
}

func (r raftkv) ready(n *node) error { return r.tls.ask("GET", n, "/readyz", "", nil) }

func (r raftkv) state(n *node) (nodeState, error) {
	var st struct {
		Role    string `json:"role"`
		Term    uint64 `json:"term"`
		Applied uint64 `json:"applied_index"`
	}
	err := r.tls.ask("GET", n, "/v1/status", "", &st)
	return nodeState{leads: st.Role == "leader", term: st.Term, applied: st.Applied}, err
}
