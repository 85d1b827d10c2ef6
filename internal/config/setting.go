package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What one flag is, of the server or of a command.

// Setting is one flag, and how its text gets to where it counts.
type Setting struct {
	Flag string // its name, without dashes
	Arg  string // what the value is called in the help; "" for a switch
	Help string
	Set  func(text string) error // an error says what is wrong with the text

	Env     string   // the environment variable that stands in for it; "" for none
	Short   string   // a letter that stands for the name behind one dash; "" for none
	Repeats bool     // it may be given more than once
	Choices []string // the values that there are, for completion; nil for any
}

// row is a setting of the server, which has a variable of its name.
func row(flag, arg, help string, set func(string) error) Setting {
	return Setting{Flag: flag, Arg: arg, Help: help, Set: set, Env: envName(flag), Repeats: strings.HasPrefix(flag, "allowed-")}
}

// Into returns a function that parses a text into a field, and that says what
// was expected when it cannot; with want "", parse says so itself.
func Into[T any](field *T, parse func(string) (T, error), want string) func(string) error {
	return func(text string) error {
		v, err := parse(text)
		switch {
		case err == nil:
			*field = v
		case want != "":
			err = errors.New("expected " + want)
		}
		return err
	}
}

// ParseText takes any text but the empty one, for flags that are checked later.
func ParseText(s string) (string, error) {
	if s == "" {
		return "", errors.New("expected a value")
	}
	return s, nil
}

// Only returns the settings of these flags.
func Only(settings []Setting, flags ...string) []Setting {
	var kept []Setting
	for _, s := range settings {
		if slices.Contains(flags, s.Flag) {
			kept = append(kept, s)
		}
	}
	return kept
}

// FlagTable is the part of a usage that lists the flags.
func FlagTable(settings []Setting) string {
	var b strings.Builder
	for _, s := range settings {
		name := strings.TrimSpace("--" + s.Flag + " " + s.Arg)
		if s.Short != "" {
			name = "-" + s.Short + ", " + name
		}
		fmt.Fprintf(&b, "  %-26s %s\n", name, s.Help)
	}
	return b.String()
}
