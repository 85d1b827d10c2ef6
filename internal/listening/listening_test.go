package listening

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
)

// Guarantee: a port that cannot be opened is named, with the cause and with what to do.
func TestOpen(t *testing.T) {
	l, err := Open("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	if _, err := Open(addr); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a port in use: %v", err)
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&net.DNSError{Err: "no such host", Name: "node.invalid"}, "the name has no address"},
		{fmt.Errorf("bind: %w", syscall.EADDRNOTAVAIL), "--listen-metrics"},
		{fmt.Errorf("bind: %w", syscall.EACCES), "1024"},
		{fmt.Errorf("bind: %w", syscall.EMFILE), "bind: too many"},
	} {
		if err := explain("node:1", tt.err); !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "node:1") {
			t.Errorf("%v becomes %v", tt.err, err)
		}
	}
}
