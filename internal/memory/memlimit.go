package memory

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// How much memory the process may take, and what follows for the store, all of
// which is in memory.

const (
	// memoryShare is the part of the limit at which Go's collector is to hold
	// the process, in tenths; what it does not count needs the rest.
	memoryShare = 9
	// Base is what a node takes beside the store: the program, the log's
	// tail, requests and messages under way.
	Base = 48 << 20
	// memoryLeast is the least memory with which a node has room for some data.
	memoryLeast = 64 << 20
	// QuotaMost is the default quota where there is enough memory.
	QuotaMost = 2 << 30
	// RoomLeast: less would be of no use.
	RoomLeast = 4 << 20
	// KeyCost is about what a key takes in memory beside its bytes and those of
	// its value (docs/performance.md).
	KeyCost = 400
	// share is the part of the limit that the log's tail may take, and as much the
	// changes kept for watches: one in so many.
	share      = 16
	shareLeast = 1 << 20
)

// Limit is what bounds the memory of the process, and who says so.
type Limit struct {
	Bytes  uint64 // 0: not known
	Source string // for the log: GOMEMLIMIT, a control group or the machine
}

func (l Limit) String() string {
	return fmt.Sprintf("%d MiB (%s)", l.Bytes>>20, l.Source)
}

// lower makes a limit count if it is one, and lower than what is known.
func (l *Limit) lower(bytes uint64, source string) {
	if bytes > 0 && bytes < math.MaxInt64 && (l.Bytes == 0 || bytes < l.Bytes) {
		*l = Limit{bytes, source}
	}
}

// FindLimit returns the lowest of the machine's memory, those of the
// control groups that the process is in, of both versions, and GOMEMLIMIT. root
// is the file system; go is what Go's own limit is now.
func FindLimit(root fs.FS, goLimit int64) Limit {
	var l Limit
	meminfo, _ := fs.ReadFile(root, "proc/meminfo") // another system has none
	for line := range strings.Lines(string(meminfo)) {
		var kb uint64
		if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kb); n == 1 {
			l.lower(kb<<10, "the machine's memory")
		}
	}
	for _, g := range memoryGroups(root) {
		for dir := g.dir; ; dir = path.Dir(dir) {
			for _, name := range g.files {
				l.lower(readLimit(root, path.Join(dir, name)), "control group: /"+path.Join(dir, name))
			}
			if dir == g.top || dir == "." {
				break
			}
		}
	}
	l.lower(uint64(max(goLimit, 0)), "GOMEMLIMIT")
	return l
}

// readLimit reads a limit; 0 if there is none.
func readLimit(root fs.FS, name string) uint64 {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64) // "max" is none
	return n
}

// memoryGroup is a control group of this process that may limit its memory. So
// may those above it, up to top.
type memoryGroup struct {
	dir, top string
	files    []string
}

// memoryGroups finds the groups through the mounts: in a container a part of the
// hierarchy is mounted, and the path of the group may be that on the host.
func memoryGroups(root fs.FS) (groups []memoryGroup) {
	paths := make(map[string]string) // by controller; "": of version 2
	text, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 {
			for controller := range strings.SplitSeq(f[1], ",") {
				paths[controller] = f[2]
			}
		}
	}
	mounts, _ := fs.ReadFile(root, "proc/self/mountinfo")
	lines := bufio.NewScanner(bytes.NewReader(mounts))
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		f, kind := strings.Fields(before), strings.Fields(after)
		if len(f) < 5 || len(kind) < 3 {
			continue
		}
		g := memoryGroup{top: strings.TrimPrefix(f[4], "/")}
		var own string
		var in bool
		switch {
		case kind[0] == "cgroup2":
			own, in = paths[""]
			// At the lower one the kernel holds up whoever is above it.
			g.files = []string{"memory.max", "memory.high"}
		case kind[0] == "cgroup" && strings.Contains(","+kind[2]+",", ",memory,"):
			own, in = paths["memory"]
			g.files = []string{"memory.limit_in_bytes"}
		}
		if !in {
			continue
		}
		below, inside := strings.CutPrefix(own, strings.TrimSuffix(f[3], "/"))
		if !inside || below != "" && below[0] != '/' {
			below = "" // a path of the host's: what is mounted is this group
		}
		g.dir = path.Join(g.top, below)
		groups = append(groups, g)
	}
	return groups
}

// WarnScarce says that a limit is below what a node needs beside its data.
func WarnScarce(l Limit, log *zap.Logger) {
	if l.Bytes > 0 && l.Bytes < memoryLeast {
		log.Warn("there is too little memory for a node: the process may be killed, and again at each start",
			zap.Stringer("limit", l), zap.String("at-least", fmt.Sprintf("%d MiB", memoryLeast>>20)))
	}
}

// SetLimit has Go's collector hold the process at a part of the limit, unless
// $GOMEMLIMIT says how. It is of the process, not of a node: only main calls it.
func SetLimit(l Limit, goLimit int64) {
	if l.Bytes > 0 && goLimit == math.MaxInt64 {
		debug.SetMemoryLimit(int64(l.Bytes / 10 * memoryShare))
	}
}

// Room is how much of the memory the keys and values may take, with what each
// key costs. The other half is for what is overwritten while a snapshot is
// written, and for garbage, without which the collector would never rest.
func (l Limit) Room() uint64 {
	if l.Bytes == 0 {
		return math.MaxInt64
	}
	return max(RoomLeast, (max(l.Bytes, Base)-Base)/2)
}

// Most is how many things may be held of which each takes so many bytes and there are
// usually no more than so many: less where they would take more than a third of the memory.
func (l Limit) Most(usual int, each uint64) int {
	if l.Bytes == 0 {
		return usual
	}
	return int(min(uint64(usual), l.Bytes/3/each))
}

// Share is the bound of something that is kept of the past and usually takes so many bytes:
// less where there is little memory.
func (l Limit) Share(usual int64) int64 {
	if l.Bytes == 0 {
		return usual
	}
	return min(usual, int64(max(shareLeast, l.Bytes/share)))
}
