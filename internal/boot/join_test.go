package boot

import (
	"raftkv/internal/config"
	"raftkv/internal/reconfig"
	"testing"
)

// Guarantee: a member that is behind does not outweigh one that knows of a move.
func TestWhereIs(t *testing.T) {
	cfg := config.Config{ID: 2, PeerURL: "http://new:2"}
	at := func(url string) reconfig.ClusterInfo {
		return reconfig.ClusterInfo{Members: []reconfig.MemberInfo{{ID: 1}, {ID: 2, PeerURL: url}}}
	}
	other := reconfig.ClusterInfo{Members: []reconfig.MemberInfo{{ID: 1}}}
	for _, tt := range []struct {
		infos []reconfig.ClusterInfo
		want  string
	}{
		{nil, ""}, {[]reconfig.ClusterInfo{other}, ""}, {[]reconfig.ClusterInfo{other, at("http://old:2")}, "http://old:2"},
		{[]reconfig.ClusterInfo{at("http://old:2"), at("http://new:2"), at("http://older:2"), other}, "http://new:2"},
	} {
		info, found := whereIs(cfg, tt.infos)
		m, _ := info.Member(2)
		if found != (tt.want != "") || m.PeerURL != tt.want {
			t.Errorf("%+v: %+v, %v", tt.infos, info, found)
		}
	}
}
