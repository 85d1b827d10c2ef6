package process

import (
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Guarantee: when a node is cut off from the others, a command under a lock that was got through it has
// ended before one at the other side gets the lock: exit 4, and what the lock protects sees one
// holder after the other.
func TestProcLockPartition(t *testing.T) {
	t.Parallel() // its networks are its own
	lab := newNetLab(t, 3)
	lab.start()
	bin, err := procBinary()
	if err != nil {
		t.Fatal(err)
	}
	log := newProcLog(t)
	lock := func(id int, script []string) *procTool {
		args := []string{"--net=/proc/" + strconv.Itoa(lab.holders[id]) + "/ns/net", bin, "lock", "l", "--ttl", "3s", "--endpoints", lab.url(id), "--"}
		return lab.toolOf(t, exec.Command("nsenter", append(args, script...)...), "")
	}
	away := lab.procCluster.leader() // the one with the most to lose
	first := lock(away, log.deaf("first"))
	log.waitFor("first")
	second := lock(away%3+1, log.worker("second"))
	time.Sleep(200 * time.Millisecond) // so that it waits; it would do no harm if it did not yet
	for _, id := range lab.ids() {
		if id != away {
			lab.sever(away, id)
		}
	}
	first.exits(4, procToolWithin)
	log.waitFor("second")
	lab.heal()
	second.signal(syscall.SIGTERM)
	second.exits(0, procToolWithin)
	log.wantFenced(2)
}
