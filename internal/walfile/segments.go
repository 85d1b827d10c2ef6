package walfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Segment is one file of a log.
type Segment struct {
	Path  string
	Seq   uint64 // its place in the order of segments
	First uint64 // the index from which on its entries are, as its name announces
}

// Segments returns the segments of a log in their order, and beside them the files
// that end as one and have no name of one.
func Segments(walDir string) (segments []Segment, foreign []string, err error) {
	entries, err := os.ReadDir(walDir) // sorted by name, so by number
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(walDir, e.Name())
		if seq, first, ok := ParseSegmentName(e.Name()); ok {
			segments = append(segments, Segment{path, seq, first})
		} else if strings.HasSuffix(e.Name(), ".wal") {
			foreign = append(foreign, path)
		}
	}
	return segments, foreign, nil
}

// ParseSegmentName takes apart the name of a segment.
func ParseSegmentName(name string) (seq, first uint64, ok bool) {
	if _, err := fmt.Sscanf(name, "%016x-%016x.wal", &seq, &first); err != nil {
		return 0, 0, false
	}
	return seq, first, name == fmt.Sprintf("%016x-%016x.wal", seq, first)
}
