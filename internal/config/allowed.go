package config

import (
	"errors"
	"net/url"
	"raftkv/internal/address"
	"strings"
)

// addAllowedHosts adds the names of a list; validate looks at them.
func (c *Config) addAllowedHosts(list string) error {
	for host := range strings.SplitSeq(list, ",") {
		c.AllowedHosts = append(c.AllowedHosts, strings.ToLower(strings.TrimSpace(host)))
	}
	return nil
}

// ClientHosts returns the names, beside IP literals and localhost, under which clients
// may address this node, whose client API listens on port.
func (c *Config) ClientHosts(port int) map[string]bool {
	hosts := make(map[string]bool)
	for _, h := range c.AllowedHosts {
		hosts[h] = true
	}
	hosts[address.HostOfURL(c.ClientURL(port))] = true
	return hosts
}

// defaultPorts are what browsers leave out of an origin.
var defaultPorts = map[string]string{"http": ":80", "https": ":443"}

// addAllowedOrigins adds the origins of a list, in the form in which browsers send them;
// validate looks at them.
func (c *Config) addAllowedOrigins(list string) error {
	for origin := range strings.SplitSeq(list, ",") {
		origin = strings.ToLower(strings.TrimSpace(origin))
		scheme, _, _ := strings.Cut(origin, "://")
		c.AllowedOrigins = append(c.AllowedOrigins, strings.TrimSuffix(origin, defaultPorts[scheme]))
	}
	return nil
}

// checkOrigin returns an error if no page has such an origin.
func checkOrigin(origin string) error {
	u, err := url.Parse(origin)
	if err != nil || defaultPorts[u.Scheme] == "" || u.Hostname() == "" || origin != u.Scheme+"://"+u.Host {
		return errors.New("expected an origin, as in https://app.example or http://localhost:8080, without a path")
	}
	_, err = address.CheckHost(u.Hostname())
	return err
}
