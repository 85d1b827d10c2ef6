// Package process has the tests of the program as its users see it: processes of
// the binary, on their own ports and directories, and nothing of its insides.
package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// The tests run in the root of the repository, where the program is built and the
// documents are. One that runs in a namespace of its own is there already.
func init() {
	for range 3 {
		if _, err := os.Stat("go.mod"); err == nil {
			return
		} else if !errors.Is(err, fs.ErrNotExist) {
			panic(err)
		}
		if err := os.Chdir(".."); err != nil {
			panic(err)
		}
	}
	dir, _ := filepath.Abs(".")
	panic("no go.mod above the tests: " + dir)
}
