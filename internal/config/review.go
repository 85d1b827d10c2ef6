package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// How settings are read, and all that is wrong with them is gathered.

// Review collects all that is wrong, so that the user hears of it at once.
type Review struct {
	Names map[string]string // flags that were given: --port, or RAFTKV_PORT
	Bad   map[string]bool   // flags that have a problem
	Errs  []error

	Operands []string // arguments that are no flags; the server has none
	Most     int      // how many of them there may be
	Program  bool     // what stands behind -- is the command line of a program
	Behind   []string // that, not nil if there was a --

	portIgnored bool // see isServicePort
}

// Name returns how the user gave a flag, or would.
func (r *Review) Name(flag string) string { return cmp.Or(r.Names[flag], "--"+flag) }

// Check notes err, if there is one, as a problem of a flag with that value.
func (r *Review) Check(flag string, value any, err error) {
	if err != nil {
		r.Bad[flag] = true
		r.Errs = append(r.Errs, fmt.Errorf("%s %q: %w", r.Name(flag), fmt.Sprint(value), err))
	}
}

// Sound says that none of the flags has a problem. Relations between flags are
// looked at only then: otherwise theirs may be but an echo.
func (r *Review) Sound(flags ...string) bool {
	return !slices.ContainsFunc(flags, func(f string) bool { return r.Bad[f] })
}

// ReadFlags reads the command line. It goes on after a problem, where a flag set
// alone would stop. Its only error is ErrHelp. Without version, there is no such
// flag.
//
// One dash is taken as well as two before a name, and what begins with a dash and is
// a number is no flag. Behind -- there are no flags any more; with Program, what
// stands there is the command line of a program and not looked at.
func (r *Review) ReadFlags(args []string, settings []Setting, version *bool) error {
	fs := pflag.NewFlagSet("raftkv", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {} // else it would ask for a description of each flag
	if version != nil {
		fs.BoolVar(version, "version", false, "")
	}
	AddFlags(fs, settings, r.set)
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			if args = args[1:]; r.Program {
				r.Behind = append([]string{}, args...)
				return nil
			}
			for _, arg := range args {
				r.operand(arg)
			}
			return nil
		}
		if len(arg) < 2 || arg[0] != '-' || isNumber.MatchString(arg) {
			r.operand(arg)
			args = args[1:]
			continue
		}
		used, err := parseFlag(fs, args)
		if errors.Is(err, pflag.ErrHelp) {
			return ErrHelp
		}
		if err != nil {
			r.Errs = append(r.Errs, suggest(fs, err))
		}
		args = args[used:]
	}
	return nil
}

// isNumber matches what no flag looks like.
var isNumber = regexp.MustCompile(`^-[0-9]+$`)

// parseFlag reads the flag that args begin with, and returns how many of them it took.
func parseFlag(fs *pflag.FlagSet, args []string) (used int, err error) {
	arg := args[0]
	name, _, _ := strings.Cut(arg[1:], "=")
	switch {
	case slices.Contains([]string{"h", "-h", "help", "-help"}, name):
		return 1, pflag.ErrHelp
	case fs.Lookup(name) != nil:
		arg = "-" + arg // one dash before a name
	case arg[1] != '-' && fs.ShorthandLookup(arg[1:2]) == nil:
		// A flag set would name its first letter alone, and take -hots for -h.
		return 1, fmt.Errorf("unknown flag: -%s", name)
	}
	err = fs.Parse([]string{arg})
	var missing *pflag.ValueRequiredError
	if errors.As(err, &missing) && len(args) > 1 {
		return 2, fs.Parse([]string{arg, args[1]})
	}
	return 1, err
}

// typos is how many letters of a flag may be wrong for it to be suggested.
const typos = 2

// suggest adds the flags that are near to an error about one that does not exist.
func suggest(fs *pflag.FlagSet, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || len(unknown.GetSpecifiedName()) <= typos {
		return err
	}
	var near []string
	least := typos
	fs.VisitAll(func(f *pflag.Flag) {
		d := distance(unknown.GetSpecifiedName(), f.Name)
		if d < least {
			near, least = nil, d
		}
		if d == least {
			near = append(near, "--"+f.Name)
		}
	})
	if len(near) == 0 {
		return err
	}
	return fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
}

// distance is how many bytes have to be put in, taken out, changed, or swapped with the next
// one to make b of a.
func distance(a, b string) int {
	to := make([][]int, len(a)+1) // from each beginning of a to each of b
	for i := range to {
		to[i] = make([]int, len(b)+1)
		for j := range to[i] {
			switch {
			case i == 0 || j == 0:
				to[i][j] = i + j
				continue
			case a[i-1] == b[j-1]:
				to[i][j] = to[i-1][j-1]
				continue
			}
			to[i][j] = 1 + min(to[i-1][j], to[i][j-1], to[i-1][j-1])
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				to[i][j] = min(to[i][j], 1+to[i-2][j-2])
			}
		}
	}
	return to[len(a)][len(b)]
}

// operand notes an argument that is no flag.
func (r *Review) operand(arg string) {
	if len(r.Operands) < r.Most {
		r.Operands = append(r.Operands, arg)
		return
	}
	expected := "only flags"
	if r.Most > 0 {
		expected = "no more than " + strconv.Itoa(r.Most)
	}
	r.Errs = append(r.Errs, fmt.Errorf("unexpected argument %q: expected %s", arg, expected))
}

// AddFlags gives fs the flags of settings. The text of each goes to set, which may be
// nil for a set that only describes them.
func AddFlags(fs *pflag.FlagSet, settings []Setting, set func(Setting, string)) {
	for _, s := range settings {
		f := fs.VarPF(&value{setting: s, set: set}, s.Flag, s.Short, s.Help)
		if s.Arg == "" {
			f.NoOptDefVal = "true"
		}
	}
}

// value is a setting as a flag set sees it.
type value struct {
	setting Setting
	set     func(Setting, string)
}

func (v *value) String() string { return "" }

func (v *value) Type() string {
	if v.setting.Arg == "" {
		return "bool"
	}
	return v.setting.Arg
}

func (v *value) Set(text string) error {
	if v.set != nil {
		v.set(v.setting, text)
	}
	return nil // what is wrong is noted, and the next flag is to be read
}

// set sets a flag of the command line.
func (r *Review) set(s Setting, text string) {
	err := s.Set(text)
	if r.Names[s.Flag] != "" && !s.Repeats {
		err = errors.New("expected only once")
	}
	r.Names[s.Flag] = "--" + s.Flag
	r.Check(s.Flag, text, err)
}

// ReadEnv sets what is in the environment and not on the command line.
func (r *Review) ReadEnv(getenv func(string) (string, bool), settings []Setting) {
	for _, s := range settings {
		name := s.Env
		text, _ := getenv(name) // without a name there is none
		// Empty is unset: compose files and unit files write RAFTKV_X=${X}.
		if text != "" && r.Names[s.Flag] == "" {
			if isServicePort(name, text) {
				r.portIgnored = true
				continue
			}
			r.Names[s.Flag] = name
			r.Check(s.Flag, text, s.Set(text))
		}
	}
}

// envName returns the environment variable of a flag.
func envName(flag string) string {
	return "RAFTKV_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// NewReview returns a review of a command line with so many operands at most.
func NewReview(most int) *Review {
	return &Review{Names: map[string]string{}, Bad: map[string]bool{}, Most: most}
}

// UsageError is all that is wrong with a command line.
type UsageError struct{ error }

// NewUsageError joins errors to one UsageError. At least one must not be nil.
func NewUsageError(errs ...error) error { return UsageError{errors.Join(errs...)} }

// Verdict returns what the review has noted, nil if nothing.
func (r *Review) Verdict() error {
	if r.Errs == nil {
		return nil
	}
	return NewUsageError(r.Errs...)
}
