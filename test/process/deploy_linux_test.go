package process

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"raftkv/internal/testkit"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// podSpec is what of the StatefulSet a node is run by.
type podSpec struct {
	Kind string `yaml:"kind"`
	Spec struct {
		Replicas int `yaml:"replicas"`
		Template struct {
			Spec struct {
				Containers []struct {
					Args      []string `yaml:"args"`
					Lifecycle struct {
						PreStop struct {
							Exec struct {
								Command []string `yaml:"command"`
							} `yaml:"exec"`
						} `yaml:"preStop"`
					} `yaml:"lifecycle"`
				} `yaml:"containers"`
			} `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

// readPod reads deploy/kubernetes/raftkv.yaml.
func readPod(t *testing.T) podSpec {
	t.Helper()
	text, err := os.ReadFile("deploy/kubernetes/raftkv.yaml")
	testkit.Must(t, err)
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var pod podSpec
		testkit.Must(t, yaml.Unmarshal([]byte(doc), &pod))
		if pod.Kind == "StatefulSet" {
			return pod
		}
	}
	t.Fatal("no StatefulSet")
	return podSpec{}
}

// secretOf lays out the Secret that deploy/README.md makes, with the certificates that its
// commands make.
func secretOf(t *testing.T, dir string) string {
	t.Helper()
	secret := filepath.Join(dir, "secret")
	testkit.Must(t, os.MkdirAll(secret, 0o700))
	text, err := os.ReadFile("deploy/README.md")
	testkit.Must(t, err)
	for _, m := range regexp.MustCompile(`(?m)^raftkv (tls .*)$`).FindAllStringSubmatch(string(text), -1) {
		if code, out := procRun(t, nil, append(strings.Fields(m[1]), "--dir", filepath.Join(dir, "tls"))...); code != 0 {
			t.Fatalf("raftkv %s: exit %d\n%s", m[1], code, out)
		}
	}
	files := regexp.MustCompile(`--from-file=(\S+)=(\S+)`).FindAllStringSubmatch(string(text), -1)
	if len(files) != 7 {
		t.Fatalf("the Secret has %d files", len(files))
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f[2]))
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(filepath.Join(secret, f[1]), data, 0o600))
	}
	return secret
}

// Guarantee: the pods of deploy/kubernetes/raftkv.yaml, with the Secret of deploy/README.md, are a
// cluster that answers under the names of its Service and at its ports for probes, and whose
// leadership is handed over by the pod that leads before it stops, and by no other.
func TestProcDeployKubernetes(t *testing.T) {
	t.Parallel()
	pod := readPod(t)
	lab, dns := newDNSLab(t, pod.Spec.Replicas, "raftkv-N")
	testkit.NeedTools(t, "curl")
	secret := secretOf(t, lab.dir)
	names := map[string][]string{}
	for _, id := range lab.ids() {
		names[fmt.Sprintf("raftkv-%d.raftkv-peers.default", id-1)] = []string{labAddr(id)}
		node := lab.nodes[id]
		in := strings.NewReplacer("$(POD_NAME)", fmt.Sprintf("raftkv-%d", id-1), "$(NAMESPACE)", "default",
			"/etc/raftkv/peer-tls", secret, "/var/lib/raftkv", node.dataDir, "--port=12380", fmt.Sprint("--port=", node.clientPort))
		node.args = nil
		for _, a := range pod.Spec.Template.Spec.Containers[0].Args {
			node.args = append(node.args, in.Replace(a))
		}
	}
	dns.set(func(netip.Addr) map[string][]string { return names })
	for _, id := range lab.ids() {
		lab.launch(id)
	}
	lab.waitReady(lab.ids()...)
	for _, id := range lab.ids() {
		testkit.Must(t, wantMember(lab.procCluster, 1, id, fmt.Sprintf("https://raftkv-%d.raftkv-peers.default:12379", id-1)))
		for _, path := range []string{"livez", "readyz", "metrics"} {
			if code := lab.in(id, "curl", "-s", "-o", os.DevNull, "-w", "%{http_code}", "http://"+labAddr(id)+":12381/"+path); code != "200" {
				t.Errorf("node %d answers %s to %s", id, code, path)
			}
		}
		if out := lab.nodes[id].output(); strings.Contains(out, "ignored a variable") {
			t.Errorf("node %d ignores variables:\n%s", id, procTail(out))
		}
	}
	for host, want := range map[string]int{"raftkv:12380": 404, "raftkv.default": 404, "raftkv.default.svc.cluster.local:12380": 404, "raftkv-1.raftkv-peers.default:12380": 404, "elsewhere": 421} {
		if r := lab.do(http.MethodGet, 2, "/v1/kv/nothing", nil, "Host", host); r.status != want {
			t.Errorf("as %s: %v, want %d", host, r, want)
		}
	}

	command := pod.Spec.Template.Spec.Containers[0].Lifecycle.PreStop.Exec.Command
	bin, err := procBinary()
	testkit.Must(t, err)
	old := lab.procCluster.leader()
	ids := slices.DeleteFunc(lab.ids(), func(id int) bool { return id == old })
	for _, id := range append(ids, old) {
		args := slices.Clone(command)
		args[0] = bin
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "12380", fmt.Sprint(lab.nodes[id].clientPort))
		}
		lab.in(id, args...)
		if now := lab.procCluster.leader(); (now != old) != (id == old) {
			t.Errorf("node %d led, and after the preStop of node %d it is node %d", old, id, now)
		}
	}
}
