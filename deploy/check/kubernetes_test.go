// Package check holds deploy/ against what Kubernetes and compose know of such files.
package check

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// manifests are what deploy/kubernetes/raftkv.yaml has.
type manifests struct {
	services map[string]*corev1.Service
	sets     []*appsv1.StatefulSet
	budgets  []*policyv1.PodDisruptionBudget
	policies []*networkingv1.NetworkPolicy
}

// read decodes the manifests into Kubernetes' own types: a field that these do not have, one
// that is there twice, and a value of another type are errors.
func read(t *testing.T) manifests {
	t.Helper()
	text, err := os.ReadFile("../kubernetes/raftkv.yaml")
	must(t, err)
	m := manifests{services: map[string]*corev1.Service{}}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := docs.Read()
		if err == io.EOF {
			return m
		}
		must(t, err)
		var kind metav1.TypeMeta
		must(t, yaml.Unmarshal(doc, &kind))
		strict := func(into any) { must(t, yaml.UnmarshalStrict(doc, into)) }
		switch kind.APIVersion + " " + kind.Kind {
		case "v1 Service":
			s := new(corev1.Service)
			strict(s)
			m.services[s.Name] = s
		case "apps/v1 StatefulSet":
			m.sets = append(m.sets, new(appsv1.StatefulSet))
			strict(m.sets[len(m.sets)-1])
		case "policy/v1 PodDisruptionBudget":
			m.budgets = append(m.budgets, new(policyv1.PodDisruptionBudget))
			strict(m.budgets[len(m.budgets)-1])
		case "networking.k8s.io/v1 NetworkPolicy":
			m.policies = append(m.policies, new(networkingv1.NetworkPolicy))
			strict(m.policies[len(m.policies)-1])
		default:
			t.Errorf("no check knows %+v", kind)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Guarantee: the parts of the manifests fit together: selectors select the pods, ports and
// volumes that are named are there.
func TestKubernetesFitsTogether(t *testing.T) {
	m := read(t)
	if len(m.sets) != 1 || len(m.budgets) != 1 || len(m.policies) != 1 || len(m.services) != 2 {
		t.Fatalf("%+v", m)
	}
	set := m.sets[0]
	pod, c := set.Spec.Template.Spec, set.Spec.Template.Spec.Containers[0]
	podLabels := labels.Set(set.Spec.Template.Labels)
	selects := func(what string, s *metav1.LabelSelector) {
		t.Helper()
		sel, err := metav1.LabelSelectorAsSelector(s)
		if must(t, err); sel.Empty() || !sel.Matches(podLabels) {
			t.Errorf("%s does not select the pods: %v", what, s)
		}
	}
	selects("the set", set.Spec.Selector)
	selects("the budget", m.budgets[0].Spec.Selector)
	selects("the policy", &m.policies[0].Spec.PodSelector)
	selects("the affinity", pod.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector)

	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
		if bad := validation.IsValidPortName(p.Name); bad != nil {
			t.Errorf("port %s: %v", p.Name, bad)
		}
	}
	for name, s := range m.services {
		if bad := validation.IsDNS1035Label(name); bad != nil || !labels.SelectorFromSet(s.Spec.Selector).Matches(podLabels) {
			t.Errorf("service %s: %v, or it does not select the pods", name, bad)
		}
		for _, p := range s.Spec.Ports {
			if bad := validation.IsValidPortName(p.Name); bad != nil || ports[p.TargetPort.StrVal] != p.Port {
				t.Errorf("service %s has port %d to %v: %v", name, p.Port, p.TargetPort, bad)
			}
		}
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		if p == nil || p.HTTPGet == nil || ports[p.HTTPGet.Port.StrVal] == 0 {
			t.Errorf("a probe asks at no port of the pod: %+v", p)
		}
	}
	volumes := []string{set.Spec.VolumeClaimTemplates[0].Name}
	for _, v := range pod.Volumes {
		volumes = append(volumes, v.Name)
	}
	mounts := []string{}
	for _, v := range c.VolumeMounts {
		mounts = append(mounts, v.Name)
	}
	if slices.Sort(volumes); !slices.Equal(volumes, slices.Sorted(slices.Values(mounts))) {
		t.Errorf("volumes %v, mounts %v", volumes, mounts)
	}
	if c.Resources.Limits.Memory().Cmp(resource.MustParse("256Mi")) < 0 || !c.Resources.Requests.Memory().Equal(*c.Resources.Limits.Memory()) {
		t.Errorf("resources are %v", c.Resources)
	}
	if _, err := labels.Parse(labels.FormatLabels(set.Spec.Template.Labels)); err != nil {
		t.Error(err)
	}
}

// Guarantee: what keeps a cluster whole in Kubernetes is in the manifests.
func TestKubernetesSafety(t *testing.T) {
	m := read(t)
	set := m.sets[0]
	pod, c := set.Spec.Template.Spec, set.Spec.Template.Spec.Containers[0]
	peers, clients := m.services[set.Spec.ServiceName], m.services["raftkv"]
	sec := c.SecurityContext
	for what, ok := range map[string]bool{
		// Members have to find each other before any of them can be ready.
		"the set's Service has no address, and names pods before they are ready": peers != nil && peers.Spec.ClusterIP == corev1.ClusterIPNone && peers.Spec.PublishNotReadyAddresses,
		"clients reach members that are ready":                                   clients.Spec.ClusterIP == "" && !clients.Spec.PublishNotReadyAddresses && len(clients.Spec.Ports) == 1,
		"all pods start at once":                                                 set.Spec.PodManagementPolicy == appsv1.ParallelPodManagement,
		"they are updated one after another":                                     set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && set.Spec.UpdateStrategy.RollingUpdate == nil,
		"no variables of Services":                                               pod.EnableServiceLinks != nil && !*pod.EnableServiceLinks,
		"no token of Kubernetes":                                                 pod.AutomountServiceAccountToken != nil && !*pod.AutomountServiceAccountToken,
		"the members are as many as found the cluster":                           slices.Contains(c.Args, "--cluster-size=3") && *set.Spec.Replicas == 3,
		"at most one is taken away":                                              m.budgets[0].Spec.MaxUnavailable.IntValue() == 1 && m.budgets[0].Spec.MinAvailable == nil,
		"its disk is its own, and stays":                                         set.Spec.VolumeClaimTemplates[0].Spec.AccessModes[0] == corev1.ReadWriteOncePod && set.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted == appsv1.RetainPersistentVolumeClaimRetentionPolicyType && set.Spec.PersistentVolumeClaimRetentionPolicy.WhenScaled == appsv1.RetainPersistentVolumeClaimRetentionPolicyType,
		"it has time to stop":                                                    *pod.TerminationGracePeriodSeconds >= 20,
		"leadership is handed over before it stops":                              c.Lifecycle.PreStop.Exec != nil && slices.Contains(c.Lifecycle.PreStop.Exec.Command, "--if-leading"),
		"it needs no rights of the machine":                                      *pod.SecurityContext.RunAsNonRoot && !*sec.AllowPrivilegeEscalation && *sec.ReadOnlyRootFilesystem && slices.Equal(sec.Capabilities.Drop, []corev1.Capability{"ALL"}) && pod.SecurityContext.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
		"its group may read keys, and nobody else":                               *pod.Volumes[0].Secret.DefaultMode == 0o440 && *pod.SecurityContext.FSGroup == *pod.SecurityContext.RunAsUser,
		"members show each other certificates":                                   slices.Contains(c.Args, "--peer-allowed-name={id}.raftkv"),
		"it is restarted only when it stands still":                              c.LivenessProbe.HTTPGet.Path == "/livez" && c.StartupProbe.HTTPGet.Path == "/livez",
		"it gets requests only when it can serve":                                c.ReadinessProbe.HTTPGet.Path == "/readyz",
		"nobody is on its machine twice":                                         pod.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].TopologyKey == corev1.LabelHostname,
	} {
		if !ok {
			t.Errorf("not so: %s", what)
		}
	}
}

// Guarantee: the NetworkPolicy lets only members reach the peer port, and only members and
// pods with the label of clients the client port.
func TestKubernetesNetworkPolicy(t *testing.T) {
	m := read(t)
	p := m.policies[0]
	if !slices.Equal(p.Spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
		t.Errorf("policy of %v", p.Spec.PolicyTypes)
	}
	member := labels.Set(m.sets[0].Spec.Template.Labels)
	pods := map[string]labels.Set{"member": member, "client": {"raftkv.client": "true"}, "not a client": {"raftkv.client": "false"}, "stranger": {"app": "x"}, "bare": {}}
	may := map[string][]string{}
	for _, rule := range p.Spec.Ingress {
		if len(rule.From) == 0 || len(rule.Ports) != 1 {
			t.Fatalf("a rule for all: %+v", rule)
		}
		for _, from := range rule.From {
			if from.NamespaceSelector != nil {
				if rule.Ports[0].Port.StrVal != "metrics" || from.PodSelector != nil {
					t.Errorf("other namespaces reach %v", rule.Ports[0].Port)
				}
				continue
			}
			sel, err := metav1.LabelSelectorAsSelector(from.PodSelector)
			must(t, err)
			for who, l := range pods {
				if sel.Matches(l) {
					may[rule.Ports[0].Port.StrVal] = append(may[rule.Ports[0].Port.StrVal], who)
				}
			}
		}
	}
	for port, want := range map[string]string{"peer": "member", "client": "client,member"} {
		if got := strings.Join(slices.Sorted(slices.Values(may[port])), ","); got != want {
			t.Errorf("%s is reached by %s, want %s", port, got, want)
		}
	}
	if ports := slices.Sorted(maps.Keys(may)); !slices.Equal(ports, []string{"client", "peer"}) {
		t.Errorf("pods reach %v", ports)
	}
}
