package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
	"go.etcd.io/etcd/api/v3/version"
)

// machine is on what, and of what, the results are.
type machine struct {
	CPU    string   `json:"cpu"`
	Cores  int      `json:"cores"`
	Memory string   `json:"memory"`
	Kernel string   `json:"kernel"`
	Go     string   `json:"go"`
	Raftkv string   `json:"raftkv"`
	Commit string   `json:"commit"`
	Flags  []string `json:"raftkv_flags,omitempty"`
	Etcd   string   `json:"etcd"`
	NATS   string   `json:"nats"`
	Redis  string   `json:"redis,omitempty"` // empty: it is not installed
}

// describe returns what can be found out; what cannot stays empty.
func (b *bench) describe() machine {
	return machine{
		CPU:    afterColon("/proc/cpuinfo", "model name"),
		Cores:  runtime.NumCPU(),
		Memory: afterColon("/proc/meminfo", "MemTotal"),
		Kernel: afterColon("/proc/sys/kernel/osrelease", ""),
		Go:     runtime.Version(),
		Raftkv: output("", b.raftkv.binary, "--version"),
		Commit: output(b.source, "git", "describe", "--always", "--dirty"),
		Flags:  b.raftkv.flags,
		Etcd:   version.Version,
		NATS:   server.VERSION,
		Redis:  b.redis.version(),
	}
}

func (m machine) String() string {
	return fmt.Sprintf("%d cores of %s, %s, Linux %s\nraftkv %s, etcd %s, NATS %s, Redis %s, %s",
		m.Cores, m.CPU, m.Memory, m.Kernel, m.Commit, m.Etcd, m.NATS, cmp.Or(m.Redis, "none"), m.Go)
}

// afterColon returns the value of the first line of a file that begins so.
func afterColon(path, name string) string {
	text, _ := os.ReadFile(path)
	for l := range strings.Lines(string(text)) {
		if strings.HasPrefix(l, name) {
			return strings.TrimSpace(strings.TrimLeft(l[len(name):], "\t :"))
		}
	}
	return ""
}

// output returns what a program says.
func output(dir, name string, args ...string) string {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	text, _ := cmd.Output()
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}
