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
		"--cluster", c.peerList(func(n *node) string { return fmt.Sprintf("%d=http://%s", n.id, n.peer) })}
	if n.joined {
		args = append(args, "--join")
	}
	return append(args, r.flags...)
}

func (r raftkv) ready(n *node) error { return ask("GET", "http://"+n.client+"/readyz", "", nil) }

func (r raftkv) state(n *node) (nodeState, error) {
	var st struct {
		Role    string `json:"role"`
		Term    uint64 `json:"term"`
		Applied uint64 `json:"applied_index"`
	}
	err := ask("GET", "http://"+n.client+"/v1/status", "", &st)
	return nodeState{leads: st.Role == "leader", term: st.Term, applied: st.Applied}, err
}
