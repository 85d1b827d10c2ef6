package check

import (
	"os"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"sigs.k8s.io/yaml"
)

// Guarantee: the compose file is one by the schema of such files, and publishes client ports
// alone, on this machine alone.
func TestCompose(t *testing.T) {
	text, err := os.ReadFile("../compose.yaml")
	must(t, err)
	var file map[string]any
	must(t, yaml.Unmarshal(text, &file))
	must(t, schema.Validate(file))
	services := file["services"].(map[string]any)
	if len(services) != 3 {
		t.Errorf("%d services", len(services))
	}
	for name, s := range services {
		for _, p := range s.(map[string]any)["ports"].([]any) {
			if text := p.(string); !strings.HasPrefix(text, "127.0.0.1:") || !strings.HasSuffix(text, ":12380") {
				t.Errorf("%s publishes %s", name, text)
			}
		}
	}
	file["services"].(map[string]any)["one"].(map[string]any)["no_such_field"] = true
	if schema.Validate(file) == nil {
		t.Error("the schema takes anything")
	}
}
