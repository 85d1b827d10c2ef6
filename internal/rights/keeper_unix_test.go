//go:build unix

package rights

import (
	"os"
	"raftkv/internal/testkit"
	"syscall"
	"testing"
)

// Guarantee: while the file does not answer, what is in force is, and requests that last begin
// and end. A pipe that nobody writes to stands for a disk that hangs.
func TestKeeperFileHangs(t *testing.T) {
	kt := newKeeperTest(t, "anonymous: all\n")
	testkit.Must(t, os.Remove(kt.file))
	testkit.Must(t, syscall.Mkfifo(kt.file, 0o600))
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		kt.Look()
	}()
	w, err := os.OpenFile(kt.file, os.O_WRONLY, 0) // Look has opened it then, and reads
	testkit.Must(t, err)
	asked := make(chan error, 1)
	go func() { asked <- kt.Trouble() }()
	testkit.Must(t, <-asked)
	testkit.Must(t, w.Close())
	<-looked
	if kt.Trouble() == nil {
		t.Error("an empty file is no trouble")
	}
}
