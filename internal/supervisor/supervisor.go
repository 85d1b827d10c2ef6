// Package supervisor answers: what is whoever started this node told of it? A service
// manager that follows systemd's protocol (sd_notify(3)) names a socket in the environment.
// There a node says that it serves, how it does, that it is alive, and that it stops.
// What alive and ready mean the package does not know.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

const (
	// statusEvery is how often the node's line of status is looked at.
	statusEvery = 2 * time.Second
	// signsPerLimit is how many signs of life fall into the time after which the service
	// manager takes the node for dead. One that comes late costs nothing then.
	signsPerLimit = 3
	// leastLimit is the shortest such time that is kept. A shorter one would keep the
	// node busy with signs of life alone.
	leastLimit = 300 * time.Millisecond
	// mostLimit is the longest, about what a time.Duration can hold in microseconds.
	mostLimit = 100 * 365 * 24 * time.Hour
	// sendLimit is how long a message may wait for the socket. A service manager that
	// does not read holds up nothing of the node but its next sign of life.
	sendLimit = time.Second
	// mostStatus is the length in bytes at which a line of status is cut.
	mostStatus = 300
)

// Manager is where the service manager listens, and what it asks for. The zero Manager
// is none.
type Manager struct {
	socket string        // of datagrams; a first @ stands for the abstract name space
	limit  time.Duration // a node without a sign of life for so long is started again; 0: never
	wrong  error         // what could not be made sense of
}

// Find reads the environment of a process with this ID. What the service manager has
// meant for another process, as a parent of this one, it leaves out.
func Find(env func(name string) (string, bool), pid int) Manager {
	var m Manager
	get := func(name string) string {
		value, _ := env(name)
		return value
	}
	switch socket := get("NOTIFY_SOCKET"); {
	case socket == "":
		return m
	case strings.HasPrefix(socket, "/") || strings.HasPrefix(socket, "@"):
		m.socket = socket
	default:
		m.wrong = fmt.Errorf("NOTIFY_SOCKET is %q, which is neither an absolute path nor an abstract name", socket)
		return m
	}
	limit := get("WATCHDOG_USEC")
	if of := get("WATCHDOG_PID"); limit == "" || of != "" && of != strconv.Itoa(pid) {
		return m
	}
	usec, err := strconv.ParseInt(limit, 10, 64)
	if err != nil || usec < leastLimit.Microseconds() || usec > mostLimit.Microseconds() {
		m.wrong = fmt.Errorf("WATCHDOG_USEC is %q, which is no number of microseconds from %d to %d; no signs of life are sent",
			limit, leastLimit.Microseconds(), mostLimit.Microseconds())
		return m
	}
	m.limit = time.Duration(usec) * time.Microsecond
	return m
}

// Node is what is told of a node. Its functions wait for nothing.
type Node struct {
	Alive  func() error  // nil, or why the node should be started again
	Status func() string // how it does, in a line
}

// Teller tells the manager of one node. It is a guard of the node as those of its doors are.
type Teller struct {
	log     *zap.Logger
	manager Manager
	node    Node

	// What follows belongs to Run.
	ready bool   // the manager was told that the node serves
	said  string // the last line of status that it was told
	hangs bool   // the last look found the node hanging
}

// New returns what tells the manager of a node while Run runs.
func New(log *zap.Logger, manager Manager, node Node) *Teller {
	return &Teller{log: log, manager: manager, node: node}
}

// Run says that the node serves, and then how it does until ctx ends. It sends signs of
// life only while the node is alive, so that a loop that hangs has the manager start the
// node again.
func (t *Teller) Run(ctx context.Context) error {
	if t.manager.wrong != nil {
		t.log.Warn("the environment names a service manager, and is not understood", zap.Error(t.manager.wrong))
	}
	if t.manager.socket == "" {
		return nil
	}
	every := time.NewTicker(t.interval())
	defer every.Stop()
	for {
		t.look()
		select {
		case <-every.C:
		case <-ctx.Done():
			t.tell("STOPPING=1", "STATUS=stopping")
			return nil
		}
	}
}

// interval is the time between two looks at the node.
func (t *Teller) interval() time.Duration {
	if t.manager.limit == 0 {
		return statusEvery
	}
	return min(t.manager.limit/signsPerLimit, statusEvery)
}

// look tells what there is to tell of the node now. What could not be told is told again
// at the next look.
func (t *Teller) look() {
	var news []string
	if !t.ready {
		news = append(news, "READY=1")
	}
	hangs, status := t.node.Alive(), ""
	if hangs == nil {
		status = t.node.Status()
	} else {
		status = hangs.Error()
	}
	switch watched := t.manager.limit > 0; {
	case watched && hangs == nil:
		news = append(news, "WATCHDOG=1")
	case watched && !t.hangs:
		t.log.Error("this node hangs: the service manager gets no more signs of life, and is to start it again", zap.Error(hangs))
	}
	t.hangs = hangs != nil
	if status = oneLine(status); status != t.said {
		news = append(news, "STATUS="+status)
	}
	if news == nil || t.tell(news...) {
		t.ready, t.said = true, status
	}
}

// oneLine returns text as a line of the protocol can hold it.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > mostStatus {
		text = strings.ToValidUTF8(text[:mostStatus], "")
	}
	return text
}

// tell sends lines, and reports whether that worked. If it did not, the log says so.
func (t *Teller) tell(lines ...string) bool {
	err := send(t.manager.socket, strings.Join(lines, "\n"))
	if err != nil {
		t.log.Warn("could not tell the service manager", zap.Strings("lines", lines), zap.Error(err))
	}
	return err == nil
}

// send sends a datagram to a socket, which it opens for each anew, since a manager that
// was started again has another one under the same name.
func send(socket, message string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	if err = conn.SetWriteDeadline(time.Now().Add(sendLimit)); err == nil {
		_, err = conn.Write([]byte(message))
	}
	return errors.Join(err, conn.Close())
}

// Notes returns no lines: what the manager does not hear is in its own log.
func (t *Teller) Notes() string { return "" }

// Register adds nothing: the node's metrics say of it what the manager is told, and more.
func (t *Teller) Register(prometheus.Registerer) {}
