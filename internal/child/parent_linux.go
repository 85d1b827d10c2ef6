package child

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// attributes kill a child when the thread that started it ends.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// seesZombies: onlyZombies knows. That a group may not be signalled means here that others'
// programs are in it, such as sudo.
const seesZombies = true

// process is one that the system shows.
type process struct {
	pid, parent, group int
	ended              bool // nobody has waited for it yet
}

// processes returns all that there are, none without /proc.
func processes() (all []process) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil // cannot be: the pattern is well-formed
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended since
		}
		// Behind the name in parentheses come state, parent and group.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 3 {
			continue
		}
		number := func(text string) int {
			n, _ := strconv.Atoi(text) // the kernel writes numbers there
			return n
		}
		state := string(fields[0])
		all = append(all, process{
			pid: number(filepath.Base(filepath.Dir(file))), parent: number(string(fields[1])), group: number(string(fields[2])),
			ended: state == "Z" || state == "X",
		})
	}
	return all
}

// onlyZombies reports whether all processes of a group have ended, and none was waited
// for yet. Without /proc it cannot be told.
func onlyZombies(group int) bool {
	all := processes()
	return len(all) > 0 && !slices.ContainsFunc(all, func(p process) bool { return p.group == group && !p.ended })
}

// Below returns the process groups, besides its own and that of this process, of those that
// descend from the leader of a group: what keeps a time limit, as timeout(1) does, or
// controls jobs makes such groups. Whoever's parent has ended descends from nobody.
func Below(leader int) (groups []int) {
	all := processes()
	below := map[int]bool{leader: true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if below[p.parent] && !below[p.pid] {
				below[p.pid], grown = true, true
			}
		}
	}
	for _, p := range all {
		if below[p.pid] && !p.ended && p.group > 1 && p.group != leader && p.group != syscall.Getpgrp() && !slices.Contains(groups, p.group) {
			groups = append(groups, p.group)
		}
	}
	return groups
}
