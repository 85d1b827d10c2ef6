package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"raftkv/internal/admin"
	"raftkv/internal/listening"
	"raftkv/internal/openapi/openapitest"
	"raftkv/internal/problem"
	"raftkv/internal/state"
	"raftkv/internal/state/statetest"
	"raftkv/internal/statefile"
	"raftkv/internal/testkit"
	"raftkv/internal/wait"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// backupTest is the client server of a node, with its real time limits, behind
// pipes: in a bubble its clocks are virtual, and a reader that reads nothing
// holds up the very first byte.
type backupTest struct {
	*apiTest
	conns  chan net.Conn
	closed chan struct{}
	client *http.Client
	stop   func() // as a node that stops does
}

// inBackupBubble runs a test with a store of some MiB.
func inBackupBubble(t *testing.T, test func(b *backupTest)) {
	testkit.InBubble(t, func(t *testing.T) {
		b := &backupTest{apiTest: newAPITest(t), conns: make(chan net.Conn), closed: make(chan struct{})}
		value := bytes.Repeat([]byte("0123456789abcdef"), 4096)
		for i := range 64 {
			b.kv.state.Apply(state.Command{Kind: state.KindPut, Key: fmt.Sprint("key/", i), Value: value})
		}
		server := listening.ClientServer(5*time.Second, zap.NewNop())
		server.Handler = b.a
		served := make(chan error)
		go func() { served <- server.Serve(b) }()
		b.client = &http.Client{Transport: openapitest.Transport(t, &http.Transport{DialContext: b.dial})}
		b.stop = b.a.stop
		defer func() {
			b.client.CloseIdleConnections()
			testkit.Must(t, server.Close())
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("the server ended with %v", err)
			}
		}()
		test(b)
	})
}

func (b *backupTest) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case b.conns <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *backupTest) Accept() (net.Conn, error) {
	select {
	case c := <-b.conns:
		return c, nil
	case <-b.closed:
		return nil, net.ErrClosed
	}
}

func (b *backupTest) Close() error {
	close(b.closed)
	return nil
}

func (b *backupTest) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9121} }

// open sends a request and returns the answer with its body still to come.
func (b *backupTest) open(method, query string) *http.Response {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, "http://127.0.0.1:9121/v1/snapshot"+query, nil)
	testkit.Must(b.T, err)
	resp, err := b.client.Do(req)
	testkit.Must(b.T, err)
	b.Cleanup(func() { resp.Body.Close() })
	return resp
}

// Guarantee: a backup is the state as a file, as fresh as was asked, and says
// which revision it is of.
func TestBackup(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		want := statetest.Bytes(t, b.kv.state)
		for _, tt := range []struct {
			query, consistency string
			asked              int
		}{{"", "linearizable", 1}, {"?consistency=linearizable", "linearizable", 1}, {"?consistency=stale", "stale", 0}} {
			for _, method := range []string{"HEAD", "GET"} {
				b.asked = 0
				resp := b.open(method, tt.query)
				for name, value := range map[string]string{
					"Content-Type": "application/octet-stream", "X-Content-Type-Options": "nosniff", "Raftkv-Revision": "64",
					"Raftkv-Consistency": tt.consistency, "Content-Disposition": `attachment; filename="raftkv-0-1.state"`,
				} {
					if got := resp.Header.Get(name); got != value || resp.StatusCode != 200 {
						t.Errorf("%s %s: %d, %s is %q, want %q", method, tt.query, resp.StatusCode, name, got, value)
					}
				}
				if b.asked != tt.asked {
					t.Errorf("%s %s: the cluster was asked %d times, want %d", method, tt.query, b.asked, tt.asked)
				}
				if method == "HEAD" {
					continue
				}
				st, err := state.Read(resp.Body)
				testkit.Must(t, err)
				if got := statetest.Bytes(t, st); !bytes.Equal(got, want) {
					t.Errorf("the backup has %d bytes, which are not the %d of the state", len(got), len(want))
				}
			}
		}
	})
}

// Guarantee: what is not understood is refused, and a cluster that cannot
// confirm gives no backup.
func TestBackupRefused(t *testing.T) {
	at := newAPITest(t)
	for _, query := range []string{"?x=1", "?consistency=eventual", "?consistency=stale&consistency=stale"} {
		at.problem(query, at.do("GET", "/v1/snapshot"+query, ""), 400, "bad_request")
	}
	if w := at.do("PUT", "/v1/snapshot", ""); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d", w.Code)
	}
	at.fails = problem.ErrNoLeader
	for range admin.MaxBackups + 1 { // a refused one holds no slot
		at.problem("no leader", at.do("GET", "/v1/snapshot", ""), 503, "no_leader")
	}
	at.fails = nil
	at.a.keys.Fresh.Applied = new(wait.Index)
	at.problem("a node that joins", at.do("GET", "/v1/snapshot?consistency=stale", ""), 503, "not_ready")
}

// Guarantee: a backup is of one moment, however long it takes; a reader that
// keeps reading is not cut off by the time limits of other requests.
func TestBackupOfAMoment(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		want := statetest.Bytes(t, b.kv.state)
		resp := b.open("GET", "")
		var got bytes.Buffer
		began := time.Now()
		for i := 0; ; i++ {
			_, err := io.CopyN(&got, resp.Body, admin.BackupPiece)
			if errors.Is(err, io.EOF) {
				break
			}
			testkit.Must(t, err)
			time.Sleep(admin.BackupPace / 2)
			for _, key := range []string{"key/63", "key/0", fmt.Sprint("new/", i)} {
				if w := b.do("PUT", "/"+key, "other"); w.Code != http.StatusNoContent {
					t.Fatalf("a write beside a backup: %d", w.Code)
				}
			}
		}
		if took := time.Since(began); took < 2*listening.AnswerLimit {
			t.Errorf("it took only %v: the test shows nothing", took)
		}
		st, err := state.Read(&got)
		testkit.Must(t, err)
		if !bytes.Equal(statetest.Bytes(t, st), want) {
			t.Error("the backup is not the state of the moment when it began")
		}
	})
}

// cutOff reads an answer to its end, which must not look like a whole one.
func (b *backupTest) cutOff(resp *http.Response) {
	b.Helper()
	var got bytes.Buffer
	if _, err := io.Copy(&got, resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		b.Errorf("the body ends with %v, want an unexpected end", err)
	}
	if _, err := state.Read(&got); !errors.Is(err, statefile.ErrBad) {
		b.Errorf("the file that broke off: %v", err)
	}
}

// Guarantee: a reader that takes nothing is cut off, and does not keep others
// from a backup for longer. More than two at a time are refused.
func TestBackupSlowReaders(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		var slow []*http.Response
		for range admin.MaxBackups {
			slow = append(slow, b.open("GET", ""))
		}
		resp := b.open("GET", "")
		body, err := io.ReadAll(resp.Body)
		testkit.Must(t, err)
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), `"overloaded"`) {
			t.Errorf("one more backup: %d %s", resp.StatusCode, body)
		}
		if resp := b.open("HEAD", ""); resp.StatusCode != http.StatusOK {
			t.Errorf("HEAD beside them: %d", resp.StatusCode)
		}
		if w := b.do("PUT", "/k", "v"); w.Code != http.StatusNoContent {
			t.Errorf("a write beside them: %d", w.Code)
		}
		time.Sleep(admin.BackupPace - time.Second)
		synctest.Wait()
		if n := len(b.a.backups.Slots); n != admin.MaxBackups {
			t.Errorf("%d backups are under way before their time is up", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := len(b.a.backups.Slots); n != 0 {
			t.Errorf("%d backups are still under way", n)
		}
		for _, resp := range slow {
			b.cutOff(resp)
		}
		_, err = state.Read(b.open("GET", "").Body)
		testkit.Must(t, err)
	})
}

// Guarantee: a node that stops does not wait for a backup.
func TestBackupEndsWithTheNode(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		hangs, reads := b.open("GET", ""), b.open("GET", "")
		_, err := io.CopyN(io.Discard, reads.Body, admin.BackupPiece)
		testkit.Must(t, err)
		b.stop()
		synctest.Wait()
		if n := len(b.a.backups.Slots); n != 0 {
			t.Errorf("%d backups are still under way", n)
		}
		b.cutOff(hangs)
		if _, err := io.Copy(io.Discard, reads.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the one that reads ends with %v", err)
		}
	})
}

// Guarantee: a client that goes away ends its backup.
func TestBackupClientGone(t *testing.T) {
	inBackupBubble(t, func(b *backupTest) {
		resp := b.open("GET", "")
		testkit.Must(t, resp.Body.Close())
		synctest.Wait()
		if n := len(b.a.backups.Slots); n != 0 {
			t.Errorf("%d backups are under way", n)
		}
	})
}
