package config

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// What is in the environment besides the flags of the server.

// servicePort matches what Kubernetes puts into RAFTKV_PORT of every container
// beside a Service named raftkv, and Docker into that of a linked one.
var servicePort = regexp.MustCompile(`^(tcp|udp|sctp)://\S+$`)

// serviceVariable matches the other variables that Kubernetes derives from the
// name of a Service, which may be raftkv or begin with raftkv-.
var serviceVariable = regexp.MustCompile(`^RAFTKV(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

// clientVariables are those of the client commands, which a server may share
// its environment with: what they read, and what they tell the programs that they run.
var clientVariables = []string{
	"RAFTKV_ENDPOINTS", "RAFTKV_TOKEN", "RAFTKV_TOKEN_FILE", "RAFTKV_CACERT", "RAFTKV_CLIENT_CERT", "RAFTKV_CLIENT_KEY", "RAFTKV_TIMEOUT", "RAFTKV_OUTPUT",
	"RAFTKV_FENCE", "RAFTKV_KEY", "RAFTKV_REVISION", "RAFTKV_TYPE",
}

// isServicePort reports whether a variable speaks of a Service and not of this
// server's port.
func isServicePort(name, value string) bool {
	return name == envName("port") && servicePort.MatchString(value)
}

// unknownVariables returns the names of the variables that look like a flag of
// the server and are none, in order. An empty variable counts as not set.
func unknownVariables(environ []string) []string {
	known := slices.Clone(clientVariables)
	for _, s := range new(Config).Settings(new(string)) {
		known = append(known, envName(s.Flag))
	}
	var unknown []string
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "RAFTKV_") && value != "" && !slices.Contains(known, name) && !serviceVariable.MatchString(name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// WarnEnvironment says which variables do not do what they may be there for.
// Their values stay unsaid: one could be a secret.
func WarnEnvironment(cfg Config, environ []string, log *zap.Logger) {
	if cfg.portIgnored {
		log.Warn("ignored a variable that Kubernetes sets for a Service named raftkv; "+
			"the client API has its default port, and --port gives it another",
			zap.String("variable", envName("port")), zap.Int("port", cfg.Port))
	}
	for _, name := range unknownVariables(environ) {
		log.Warn("ignored a variable that is none of this version's flags; see raftkv --help", zap.String("variable", name))
	}
}

// ProxyVariables are what Go's HTTP client takes a proxy from, in both cases.
var ProxyVariables = []string{"http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}

// LeaveProxies takes the proxies out of the process's environment. Between
// members no proxy has any business, and rafthttp's connections know no other way
// to do without. Go reads the variables once, at the first request, so this has
// to come before; only the server's main calls it.
func LeaveProxies() error {
	var errs []error
	for _, name := range ProxyVariables {
		errs = append(errs, os.Unsetenv(name))
	}
	return errors.Join(errs...)
}
