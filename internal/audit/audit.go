// Package audit answers: who has asked this node for what, and what came of it? It writes
// a record of requests, a JSON object a line, to a file of its own (docs/audit.md). A record
// names keys, and never has a value or a token in it. No request waits for it: lines go
// through a bounded queue, and what finds no room there is counted, and told of.
package audit

import (
	"errors"
	"fmt"
	"io"
	"raftkv/internal/config"
	"raftkv/internal/logging"
	"raftkv/internal/meter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// maxKeys is how many keys, prefixes and ranges a line names, and maxKeyBytes about how
	// many bytes of them; the first is named in any case.
	maxKeys     = 64
	maxKeyBytes = 16 << 10
	// refusedPerSecond is how many requests of nobody known are written in a second that were
	// refused for that. Who sends wrong tokens must not push out what others have done.
	refusedPerSecond = 100
	// refusedPerHour bounds them again: lines that come for days turn the files over, which
	// pushes out what others have done as well.
	refusedPerHour = 20_000
	// refusedKeyBytes is how much such a line names, of one key, prefix or end of a range.
	refusedKeyBytes = 64
	// maxQueue bounds the lines that wait to be written, in bytes: tens of thousands.
	maxQueue = 8 << 20
	// closeLimit is how long the file may take to close.
	closeLimit = 200 * time.Millisecond
)

// The kinds of lines.
const (
	eventStart   = "start"   // the node has begun to write
	eventStop    = "stop"    // it ends in order
	eventRequest = "request" // somebody has asked for something
	eventExpire  = "expire"  // keys have gone because their time was up
	eventGap     = "gap"     // expiries up to a revision may be missing
	eventLost    = "lost"    // lines before this one were lost
)

// What came of a request.
const (
	done       = "done"        // it was carried out, or answered
	begun      = "begun"       // a watch: it goes on, and how it ends is not written
	notApplied = "not_applied" // it was refused, and changed nothing
	unknown    = "unknown"     // it may have been carried out
)

// Log is the record of one node. A nil *Log is one that was not asked for: it wants
// nothing, and writes nothing.
type Log struct {
	log   *zap.Logger
	reads bool
	core  zapcore.Core // writes lines to queue
	queue *logging.Queue
	file  io.Closer

	closing sync.Once

	mu      sync.Mutex
	second  int64         // in which refused counts
	refused int           // lines of refused requests of nobody known
	hour    int64         // in which hourly counts
	hourly  int           // lines of the same
	over    atomic.Uint64 // such requests that were not written, and not told of yet; it changes under mu
	allOver uint64
}

// Open begins a record as cfg asks for it, nil if it asks for none. stdout is where "-" goes.
// An error says why the file cannot be written, or may not be where it is.
func Open(cfg config.Config, stdout io.Writer, log *zap.Logger) (*Log, error) {
	if cfg.AuditLog == "" {
		return nil, nil
	}
	var to io.WriteCloser = nopCloser{stdout}
	var torn bool
	if cfg.AuditLog != "-" {
		var err error
		if to, torn, err = openFile(cfg.AuditLog, cfg.DataDir); err != nil {
			return nil, fmt.Errorf("--audit-log %s: %w", cfg.AuditLog, err)
		}
	}
	s := &sink{w: to, log: log, torn: torn}
	l := &Log{log: log, reads: cfg.AuditReads, file: to}
	// The first line goes past the queue: it shows whether there can be others.
	first := newCore(cfg.ID, zapcore.AddSync(s))
	if err := first.Write(entry(eventStart, time.Now()), nil); err != nil {
		return nil, fmt.Errorf("--audit-log %s: %w", cfg.AuditLog, errors.Join(err, to.Close()))
	}
	l.queue = logging.NewQueueOf(s, maxQueue)
	l.queue.OnLost(l.sayLost)
	l.core = newCore(cfg.ID, l.queue)
	return l, nil
}

// newCore makes what puts lines into their form.
func newCore(id uint64, to zapcore.WriteSyncer) zapcore.Core {
	enc := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "time", MessageKey: "event", LineEnding: "\n",
		EncodeTime: func(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
			enc.AppendString(t.UTC().Format("2006-01-02T15:04:05.000000Z07:00"))
		},
	})
	return zapcore.NewCore(enc, to, zapcore.InfoLevel).With([]zapcore.Field{zap.Uint64("node", id)})
}

func entry(event string, at time.Time) zapcore.Entry { return zapcore.Entry{Message: event, Time: at} }

// put writes a line, which never fails and never waits: the queue counts what it drops.
func (l *Log) put(event string, fields []zapcore.Field) {
	_ = l.core.Write(entry(event, time.Now()), fields)
}

// sayLost says that lines were lost, once one got through again.
func (l *Log) sayLost(lost, all uint64) {
	l.put(eventLost, []zapcore.Field{zap.Uint64("lines", lost), zap.Uint64("total", all)})
	l.log.Error("lines of the audit log were lost: they could not be written, or not in time", zap.Uint64("lines", lost), zap.Uint64("total", all))
}

// Close writes that the record ends, waits a bounded time until that and what is queued is
// on its way to the disk, and closes the file.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	var err error
	l.closing.Do(func() {
		l.sayOver(never)
		l.put(eventStop, nil)
		_ = l.queue.Close() // it never fails
		closed := make(chan error, 1)
		go func() { closed <- l.file.Close() }()
		select {
		case err = <-closed:
		case <-time.After(closeLimit): // its disk does not answer
		}
	})
	return err
}

// Register adds what there is to count.
func (l *Log) Register(reg prometheus.Registerer) {
	meter.Counter(reg, "raftkv_audit_lines_lost_total", "Lines of the audit log that were lost: the file could not be written, or not in time, or "+
		"there were too many refused requests of nobody known.", func() float64 {
		if l == nil {
			return 0
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		return float64(l.queue.Dropped() + l.allOver)
	})
}

// Wants reports whether a request of that method is to be written, if that status was its
// answer: whatever may change something, and whatever was refused for who asks.
func (l *Log) Wants(method string, status int) bool {
	return l != nil && (l.reads || !reads(method) || isRefusal(status))
}

func reads(method string) bool { return method == "GET" || method == "HEAD" || method == "OPTIONS" }

// isRefusal reports whether a status says that it matters who asks.
func isRefusal(status int) bool { return status == 401 || status == 403 }

// Record is what is written of one request.
type Record struct {
	Name   string // who asks, as the rights name it; "": nobody known
	From   string // the address at the other end of the connection
	Method string
	Route  string // the kind of the request, as metrics have it
	// Keys, Prefixes and Ranges are what it is about.
	Keys, Prefixes []string
	Ranges         [][2]string // from a key up to another, without that; an empty end is none
	Lease, Member  uint64
	PeerURL        string // that a member gets
	Revision       uint64 // of the store, as the answer has it
	Status         int
	Code           string // of the problem that is the answer
	Outcome        string
	Took           time.Duration
}

// ofNobody reports whether a request was refused, of which nobody knows whose it is.
func (r *Record) ofNobody() bool { return r.Name == "" && isRefusal(r.Status) }

// fields returns what a record says. What is empty is left out.
func (r *Record) fields() []zapcore.Field {
	f := make([]zapcore.Field, 0, 16)
	text := func(name, value string) {
		if value != "" {
			f = append(f, zap.String(name, value))
		}
	}
	number := func(name string, value uint64) {
		if value != 0 {
			f = append(f, zap.Uint64(name, value))
		}
	}
	text("name", r.Name)
	text("from", r.From)
	text("method", r.Method)
	text("route", r.Route)
	names := whole
	if r.ofNobody() {
		names = short
	}
	keys, prefixes, ranges, more := r.bounded(names)
	if len(keys) > 0 {
		f = append(f, zap.Strings("keys", keys))
	}
	if len(prefixes) > 0 {
		f = append(f, zap.Strings("prefixes", prefixes))
	}
	if len(ranges) > 0 {
		f = append(f, zap.Array("ranges", pairs(ranges)))
	}
	number("more", uint64(more))
	number("lease", r.Lease)
	number("member", r.Member)
	text("peer_url", r.PeerURL)
	number("revision", r.Revision)
	number("status", uint64(r.Status))
	text("code", r.Code)
	text("outcome", r.Outcome)
	return append(f, zap.Float64("ms", float64(r.Took.Microseconds())/1000))
}

// bounds are how much of what it is about a line names.
type bounds struct {
	texts, bytes int // keys, prefixes and ranges, and their bytes; the first in any case
	each         int // bytes of one of them, or of an end of a range
}

var (
	whole = bounds{maxKeys, maxKeyBytes, config.MaxKeyBytes} // no key is longer
	short = bounds{1, refusedKeyBytes, refusedKeyBytes}
)

// bounded returns as much of what a record is about as a line names, and how many are left
// out.
func (r *Record) bounded(most bounds) (keys, prefixes []string, ranges [][2]string, more int) {
	n, size := 0, 0
	fits := func(bytes int) bool {
		n++
		size += bytes
		return n == 1 || n <= most.texts && size <= most.bytes
	}
	keys, prefixes, ranges = r.Keys, r.Prefixes, r.Ranges
	for i, k := range r.Keys {
		if !fits(len(k)) {
			keys, prefixes, ranges = keys[:i], nil, nil
			break
		}
	}
	for i, p := range prefixes {
		if !fits(len(p)) {
			prefixes, ranges = prefixes[:i], nil
			break
		}
	}
	for i, g := range ranges {
		if !fits(len(g[0]) + len(g[1])) {
			ranges = ranges[:i]
			break
		}
	}
	more = len(r.Keys) + len(r.Prefixes) + len(r.Ranges) - len(keys) - len(prefixes) - len(ranges)
	ranges = slices.Clone(ranges)
	for i, g := range ranges {
		copy(ranges[i][:], clipped(g[:], most.each))
	}
	return clipped(keys, most.each), clipped(prefixes, most.each), ranges, more
}

// clipped cuts texts that have more than so many bytes.
func clipped(texts []string, most int) []string {
	cut := slices.Clone(texts)
	for i, s := range cut {
		cut[i] = s[:min(len(s), most)]
	}
	return cut
}

// pairs are ranges as JSON.
type pairs [][2]string

// MarshalLogArray implements zapcore.ArrayMarshaler.
func (p pairs) MarshalLogArray(enc zapcore.ArrayEncoder) error {
	for _, pair := range p {
		err := enc.AppendArray(zapcore.ArrayMarshalerFunc(func(enc zapcore.ArrayEncoder) error {
			enc.AppendString(pair[0])
			enc.AppendString(pair[1])
			return nil
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// Request writes a record, of which Status, Code and Outcome follow from the answer.
func (l *Log) Request(r Record, status int, err error) {
	r.settle(status, err)
	second := time.Now().Unix()
	if l.over.Load() > 0 {
		l.sayOver(second)
	}
	if r.ofNobody() && !l.admitRefused(second) {
		return
	}
	l.put(eventRequest, r.fields())
}

// never is no second in which anything was refused.
const never = -1

// sayOver says how many refused requests of nobody known were left out, once the second is
// over in which they came.
func (l *Log) sayOver(second int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.over.Load(); n > 0 && second != l.second {
		l.put(eventLost, []zapcore.Field{zap.Uint64("lines", n), zap.Uint64("total", l.allOver), zap.String("code", "refused")})
		l.over.Store(0)
	}
}

// admitRefused reports whether there is room, in a second and its hour, for one more request
// that was refused and of which nobody knows whose it is.
func (l *Log) admitRefused(second int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if second != l.second {
		l.second, l.refused = second, 0
	}
	if hour := second / int64(time.Hour/time.Second); hour != l.hour {
		l.hour, l.hourly = hour, 0
	}
	if l.refused >= refusedPerSecond || l.hourly >= refusedPerHour {
		l.over.Add(1)
		l.allOver++
		return false
	}
	l.refused++
	l.hourly++
	return true
}
