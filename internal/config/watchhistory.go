package config

// historyFromMemory stands for a history of watches that was not given; usualHistory is how
// long it is where there is enough memory.
const (
	historyFromMemory = -1
	usualHistory      = 64 << 20
)

// Changes is how many bytes of changes this node keeps.
func (c *Config) Changes() int64 {
	if c.WatchHistory == historyFromMemory {
		return c.Memory.Share(usualHistory)
	}
	return max(c.WatchHistory, 1)
}
