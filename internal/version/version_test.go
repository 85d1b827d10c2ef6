package version

import (
	"runtime/debug"
	"strings"
	"testing"
)

// Guarantee: a program says what it knows of its build, and that it does not
// know what it does not.
func TestBuild(t *testing.T) {
	vcs := func(revision, modified string) *debug.BuildInfo {
		return &debug.BuildInfo{
			Main: debug.Module{Path: "raftkv", Version: "v0.0.0-20260101000000-0123456789ab+dirty"},
			Deps: []*debug.Module{{Path: "go.etcd.io/raft/v3", Version: "v3.9.9"}, {Path: "example.com/x", Version: "v1.0.0"}},
			Settings: []debug.BuildSetting{
				{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: revision}, {Key: "vcs.modified", Value: modified},
			},
		}
	}
	for name, tt := range map[string]struct {
		linked, commit    string
		info              *debug.BuildInfo
		version, revision string
		text              []string
	}{
		"clean":         {"dev", "", vcs("0123456789abcdef", "false"), "v0.0.0-20260101000000-0123456789ab+dirty", "0123456789abcdef", []string{"revision 0123456789abcdef\n", "raft/v3 v3.9.9"}},
		"dirty":         {"dev", "", vcs("0123456789abcdef", "true"), "v0.0.0-20260101000000-0123456789ab+dirty", "0123456789abcdef+dirty", []string{"revision 0123456789abcdef+dirty\n"}},
		"release":       {"v1.2.3", "", vcs("0123456789abcdef", "false"), "v1.2.3", "0123456789abcdef", []string{"raftkv v1.2.3\n"}},
		"release, told": {"v1.2.3", "fedcba", nil, "v1.2.3", "fedcba", []string{"raftkv v1.2.3\nrevision fedcba\n"}},
		"told, dirty":   {"dev", "fedcba", vcs("0123456789abcdef", "true"), "v0.0.0-20260101000000-0123456789ab+dirty", "fedcba", []string{"revision fedcba\n"}},
		"no vcs":        {"dev", "", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "dev", "unknown", []string{"raftkv dev\n", "unknown revision"}},
		"no vcs yet":    {"dev", "", vcs("", "true"), "v0.0.0-20260101000000-0123456789ab+dirty", "unknown", []string{"unknown revision"}},
		"nothing":       {"dev", "", nil, "dev", "unknown", []string{"unknown revision"}},
	} {
		b := newBuild(tt.linked, tt.commit, tt.info)
		if b.Version != tt.version || b.Revision != tt.revision || !strings.HasPrefix(b.GoVersion, "go") {
			t.Errorf("%s: %+v", name, b)
		}
		for _, want := range tt.text {
			if !strings.Contains(b.Text(), want) {
				t.Errorf("%s: --version prints %q, want %q", name, b.Text(), want)
			}
		}
		if strings.Contains(b.Text(), "example.com") {
			t.Errorf("%s: --version prints every library: %q", name, b.Text())
		}
	}
	if a, b := This(), This(); a.Version != b.Version || a.Version == "" || a.Revision == "" {
		t.Errorf("%+v, %+v", a, b)
	}
}
