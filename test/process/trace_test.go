package process

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What strace -f -ttt -T -y writes, and what it proves of acknowledged writes.

// tracedCall is a system call. Its times are microseconds of the host's one clock, so those of several
// processes compare. A process goes on only after strace has taken the time: a call starts no sooner than begin, and
// was over by end.
type tracedCall struct {
	name   string
	file   string // of its first argument: a path, or socket:[INODE]
	args   string // the other ones, as strace prints them
	result int    // -1 also if it did not return, as when the process is killed
	begin  int64
	end    int64
}

var (
	traceLine    = regexp.MustCompile(`^(\d+) +(\d+\.\d{6}) (.*)$`)
	traceResumed = regexp.MustCompile(`^<\.\.\. \w+ resumed>(.*)$`)
	traceCall    = regexp.MustCompile(`^(\w+)\(\d+<([^>]*)>(.*)\) += (?:(-?\d+).* <(\d+\.\d{6})>|\?.*)$`)
)

// parseTrace returns the calls in the order in which they began.
func parseTrace(text string) (calls []tracedCall) {
	type half struct{ text, begin string }
	unfinished := map[string]half{} // by thread
	add := func(begin, call string) {
		c := traceCall.FindStringSubmatch(call)
		if c == nil {
			return
		}
		at := microseconds(begin)
		result, end := -1, int64(math.MaxInt64)
		if c[4] != "" {
			result, _ = strconv.Atoi(c[4])
			end = at + microseconds(c[5])
		}
		calls = append(calls, tracedCall{c[1], c[2], c[3], result, at, end})
	}
	for line := range strings.Lines(text) {
		m := traceLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		thread, begin, call := m[1], m[2], m[3]
		if head, ok := strings.CutSuffix(call, " <unfinished ...>"); ok {
			unfinished[thread] = half{head, begin}
			continue
		}
		if tail := traceResumed.FindStringSubmatch(call); tail != nil {
			first := unfinished[thread]
			begin, call = first.begin, first.text+tail[1]
			delete(unfinished, thread)
		}
		add(begin, call)
	}
	for _, first := range unfinished {
		add(first.begin, first.text+") = ?")
	}
	slices.SortStableFunc(calls, func(a, b tracedCall) int { return cmp.Compare(a.begin, b.begin) })
	return calls
}

// microseconds reads seconds with six digits behind the point.
func microseconds(s string) int64 {
	n, _ := strconv.ParseInt(strings.Replace(s, ".", "", 1), 10, 64)
	return n
}

func (c tracedCall) isWrite() bool { return strings.Contains(c.name, "write") }

// isSync: as done to the log. It takes in no sync that failed.
func (c tracedCall) isSync() bool {
	return (c.name == "fdatasync" || c.name == "fsync") && c.result == 0
}

// syncedAt returns when a log that had been written with the marker in it was first synced, as a whole.
func syncedAt(calls []tracedCall, marker string) (at int64, ok bool) {
	for i, w := range calls {
		if !w.isWrite() || !strings.HasSuffix(w.file, ".wal") || !strings.Contains(w.args, marker) ||
			!strings.HasSuffix(w.args, fmt.Sprintf(", %d", w.result)) {
			continue
		}
		for _, s := range calls[i:] {
			if s.isSync() && s.file == w.file && s.begin >= w.end && (!ok || s.end < at) {
				at, ok = s.end, true
			}
		}
	}
	return at, ok
}

// answeredAt returns when a 204 with an ETag began to be written to a socket.
func answeredAt(calls []tracedCall, etag string) (at int64, ok bool) {
	header := `Etag: ` + strings.ReplaceAll(etag, `"`, `\"`) + `\r\n`
	for _, c := range calls {
		if c.isWrite() && strings.HasPrefix(c.file, "socket:") &&
			strings.Contains(c.args, "HTTP/1.1 204 ") && strings.Contains(c.args, header) {
			return c.begin, true
		}
	}
	return 0, false
}

// acknowledged is a PUT that was answered 204: by which node, of what value, with which ETag. The value is found by
// its marker, and the answer by the ETag: no two have the same.
type acknowledged struct {
	node         int
	marker, etag string
}

// checkSynced says what is wrong with an acknowledgement, given the calls of all nodes: it must not leave before a
// majority has synced the value. It returns how long after that it left, in microseconds.
func checkSynced(nodes map[int][]tracedCall, ack acknowledged) (margin int64, err error) {
	answered, ok := answeredAt(nodes[ack.node], ack.etag)
	if !ok {
		return 0, fmt.Errorf("%+v: the answer is not in the trace", ack)
	}
	var synced []int64
	for _, calls := range nodes {
		if at, ok := syncedAt(calls, ack.marker); ok {
			synced = append(synced, at)
		}
	}
	slices.Sort(synced)
	majority := len(nodes)/2 + 1
	if len(synced) < majority {
		return 0, fmt.Errorf("%+v: only %d of %d nodes ever synced the value", ack, len(synced), len(nodes))
	}
	if margin = answered - synced[majority-1]; margin < 0 {
		return 0, fmt.Errorf("%+v: answered %d µs before a majority had synced the value", ack, -margin)
	}
	return margin, nil
}

// The proof is worth nothing unless it fails where a write is not yet safe.
func TestTraceOfAcknowledgements(t *testing.T) {
	const (
		written = `10 5.000100 write(8</d/wal/0.wal>, "\1\0\"mark1", 8) = 8 <0.000010>` + "\n"
		synced  = `10 5.000200 fdatasync(8</d/wal/0.wal>) = 0 <0.000100>` + "\n"
		inTwo   = `10 5.000200 fdatasync(8</d/wal/0.wal> <unfinished ...>` + "\n" +
			`11 5.000250 write(2</log>, "mark1", 5) = 5 <0.000001>` + "\n" +
			`10 5.000300 <... fdatasync resumed>)      = 0 (DELAYED) <0.000100>` + "\n"
		safe     = written + synced
		answer   = `11 5.%06d write(9<socket:[7]>, "HTTP/1.1 204 No Content\r\nEtag: \"%d\"\r\nDate: x\r\n\r\n", 99) = 99 <0.000001>` + "\n"
		answered = `11 5.000400 write(9<socket:[7]>, "HTTP/1.1 204 No Content\r\nEtag: \"12\"\r\n\r\n", 99) = 99 <0.000001>` + "\n"
	)
	replace := strings.ReplaceAll
	cases := map[string]struct {
		nodes [3]string // the first one answers
		want  string    // "" if all is well
	}{
		"all synced":                      {[3]string{safe + answered, safe, safe}, ""},
		"a majority, without who answers": {[3]string{written + answered, safe, safe}, ""},
		"calls that overlap":              {[3]string{written + inTwo + answered, written + inTwo, ""}, ""},
		"answered as soon as synced":      {[3]string{safe + fmt.Sprintf(answer, 300, 12), safe, ""}, ""},
		"answered too early":              {[3]string{safe + fmt.Sprintf(answer, 299, 12), safe, safe}, "before a majority"},
		"one is slower":                   {[3]string{safe + answered, replace(safe, "<0.000100>", "<0.000300>"), ""}, "before a majority"},
		"only one":                        {[3]string{safe + answered, written, ""}, "only 1 of 3"},
		"written behind the sync":         {[3]string{safe + answered, synced + replace(written, "000100", "000301"), ""}, "only 1 of 3"},
		"written during the sync":         {[3]string{safe + answered, synced + replace(written, "000100", "000250"), ""}, "only 1 of 3"},
		"another file is synced":          {[3]string{safe + answered, written + replace(synced, "0.wal", "1.wal"), ""}, "only 1 of 3"},
		"another value is written":        {[3]string{safe + answered, replace(safe, "mark1", "mark2"), ""}, "only 1 of 3"},
		"written elsewhere":               {[3]string{safe + answered, replace(safe, "0.wal", "mark"), ""}, "only 1 of 3"},
		"the sync fails":                  {[3]string{safe + answered, replace(safe, ") = 0 ", ") = -1 EIO (Input/output error) "), ""}, "only 1 of 3"},
		"the write is short":              {[3]string{safe + answered, replace(safe, "= 8", "= 7"), ""}, "only 1 of 3"},
		"the sync never returns":          {[3]string{safe + answered, written + inTwo[:strings.Index(inTwo, "\n")+1], ""}, "only 1 of 3"},
		"killed while it answers":         {[3]string{safe + replace(answered, "= 99 <0.000001>", "= ?"), safe, safe}, ""},
		"killed, and seen no more":        {[3]string{safe + replace(answered, ") = 99 <0.000001>", " <unfinished ...>"), safe, safe}, ""},
		"killed while it syncs":           {[3]string{safe + answered, replace(safe, "= 0 <0.000100>", "= ?"), ""}, "only 1 of 3"},
		"killed while it writes":          {[3]string{safe + answered, replace(safe, "= 8 <0.000010>", "= ?"), ""}, "only 1 of 3"},
		"no answer":                       {[3]string{safe, safe + answered, safe}, "not in the trace"},
		"another answer":                  {[3]string{safe + fmt.Sprintf(answer, 400, 2), safe, safe}, "not in the trace"},
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		nodes := map[int][]tracedCall{}
		for i, text := range cases[name].nodes {
			nodes[i+1] = parseTrace(text)
		}
		_, err := checkSynced(nodes, acknowledged{1, "mark1", `"12"`})
		if want := cases[name].want; (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
