package tlsport

import (
	"crypto/tls"
	"errors"
	"net"
	"raftkv/internal/testkit"
	"raftkv/internal/web"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Guarantee: while certificates are looked at again, which may take long, handshakes go on;
// and the end of a connection is told of once, however long its last answer takes.
func TestRecheck(t *testing.T) {
	core, lines := observer.New(zap.InfoLevel)
	p := New(Config{Log: zap.New(core), Door: "client"})
	_, nc := net.Pipe()
	c := &Conn{wire: &wire{Conn: nc, closed: func() {}}, client: web.NewClient("", true, nil, func() {})}
	c.client.Begin() // its last answer
	p.watch(c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			p.Recheck(func(*tls.ConnectionState) error {
				p.leave(p.enter(&wire{}))
				return errors.New("not valid")
			})
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("handshakes wait for those who look at certificates")
	}
	if !c.client.IsExpired() || lines.Len() != 1 {
		t.Errorf("expired: %t; it is told of %d times", c.client.IsExpired(), lines.Len())
	}
	testkit.Must(t, c.wire.Close())
	if len(p.verified) > 0 {
		t.Error("what is closed is kept in mind")
	}
}

// Guarantee: who has been found not to be valid is ended as soon as that can be, also where
// nobody finds it again: a CA goes once.
func TestRecheckEndsWhatIsExpired(t *testing.T) {
	p := New(Config{Log: zap.NewNop(), Door: "client"})
	_, nc := net.Pipe()
	tries := 0
	c := &Conn{wire: &wire{Conn: nc, closed: func() {}}, client: web.NewClient("", true, nil, func() { tries++ })}
	p.watch(c)
	for i, valid := range []error{nil, errors.New("its CA is gone"), nil, nil} {
		p.Recheck(func(*tls.ConnectionState) error { return valid })
		if tries != i {
			t.Fatalf("at look %d it was tried %d times to end it", i, tries)
		}
	}
	testkit.Must(t, c.wire.Close())
}
