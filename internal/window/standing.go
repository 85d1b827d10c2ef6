package window

// Standing is how far a state has come, by numbers that never sink while a log is
// applied. So it tells histories apart: of two states of one history, the one at
// the higher index continues the other. Terms do not tell that: two histories may
// have had as many elections. Nor does the store's revision: where that is wrong,
// the log was the same, and a replica has gone wrong by itself (checks.go).
type Standing struct {
	Index   uint64 `json:"index"`   // of the last entry applied
	Changes uint64 `json:"changes"` // of the members
	// Windows says what was applied of each node's batches. Each life of a node
	// draws a number of its own, so no two histories have the same ones for long.
	Windows map[uint64]Reach `json:"windows"`
}

// Reach is how far the batches of one node's current life were applied.
type Reach struct {
	Boot uint64 `json:"boot"` // the number of the life
	Life uint64 `json:"life"` // its nonce; 0: no batch has named it
	End  uint64 `json:"end"`  // no sequence from here on was applied
}

// IsOneHistoryWith reports whether two states can be of one history.
func (s Standing) IsOneHistoryWith(other Standing) bool {
	switch {
	case s.Index < other.Index:
		return s.isContinuedBy(other)
	case s.Index > other.Index:
		return other.isContinuedBy(s)
	}
	return s.isContinuedBy(other) && other.isContinuedBy(s)
}

// isContinuedBy reports whether a state at the same index or a higher one can have
// come from this one.
func (s Standing) isContinuedBy(later Standing) bool {
	if later.Changes < s.Changes {
		return false
	}
	for node, w := range s.Windows {
		now, ok := later.Windows[node]
		switch {
		case !ok && later.Changes == s.Changes:
			return false
		case !ok: // the node was removed since
		case now.Boot < w.Boot:
			return false
		case now.Boot == w.Boot && (w.Life != 0 && now.Life != w.Life || now.End < w.End):
			return false
		}
	}
	return true
}
