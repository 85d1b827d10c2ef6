package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"raftkv/client"
	"raftkv/internal/command"
	"slices"
	"strings"
	"sync"
	"time"
)

// The command status: all nodes in one table.

func statusCommand() command.Command {
	return command.Command{
		Name: "status", About: "print how each node is", Remote: true, New: action(status),
		Long: `Asks each endpoint how it is, all at the same time, and prints a row for each; members that
are behind none of the endpoints have a row, too. Endpoints of the default list that do not
answer are left out if another one does.

Exit 1 if something is not as it should be: an endpoint that was given does not answer or is
not ready, there is no leader, the leader does not reach a member, or a node has diverged.`,
		Example: "raftkv status\nraftkv status --endpoints http://10.0.0.1:9121,http://10.0.0.2:9121 --output json",
	}
}

// nodeStatus is a row of status.
type nodeStatus struct {
	Endpoint string         `json:"endpoint,omitempty"`
	ID       uint64         `json:"id,omitempty"`
	Ready    bool           `json:"ready"`
	Fault    string         `json:"fault,omitempty"` // why it is not ready, or did not answer
	Status   *client.Status `json:"status,omitempty"`
	Member   *client.Member `json:"member,omitempty"` // as the cluster sees it
}

// askWithin is how long an endpoint may take to say how it is.
const askWithin = 5 * time.Second

func status(ctx context.Context, o *command.Call, c *client.Client) error {
	nodes := make([]nodeStatus, len(c.Endpoints()))
	var members client.Members
	var fault error
	var asking sync.WaitGroup
	for i, endpoint := range c.Endpoints() {
		asking.Go(func() { nodes[i] = ask(ctx, c, endpoint) })
	}
	asking.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		members, fault = c.Members(ctx, client.Stale())
	})
	asking.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	nodes, problems := together(nodes, members.Members, o.Review.Names["endpoints"] != "")
	if fault != nil {
		problems = append(problems, fmt.Errorf("who is a member is not known: %w", fault))
	}
	err := o.Print(nodes, statusTable(nodes, o.Colour(o.Stdout)))
	if err == nil && len(problems) > 0 {
		return errors.Join(problems...)
	}
	return err
}

// ask asks one endpoint.
func ask(ctx context.Context, c *client.Client, endpoint string) nodeStatus {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	n := nodeStatus{Endpoint: endpoint}
	s, err := c.Status(ctx, endpoint)
	if err == nil {
		n.ID, n.Status = s.ID, &s
		err = c.Ready(ctx, endpoint)
	}
	if err != nil {
		n.Fault = err.Error()
	}
	n.Ready = err == nil
	return n
}

// together puts endpoints and members into one list, by their IDs, and returns what is not as
// it should be. given says that the endpoints were: then each has to answer.
func together(asked []nodeStatus, members []client.Member, given bool) (nodes []nodeStatus, problems []error) {
	answered := slices.ContainsFunc(asked, func(n nodeStatus) bool { return n.Status != nil })
	at := make(map[uint64]int)
	for _, n := range asked {
		if n.Status == nil && answered && !given {
			continue
		}
		if !n.Ready {
			problems = append(problems, fmt.Errorf("%s: %s", n.Endpoint, n.Fault))
		}
		if n.Status != nil {
			if n.Status.Diverged {
				problems = append(problems, fmt.Errorf("%s: its data is not that of the others", n.Endpoint))
			}
			at[n.ID] = len(nodes)
		}
		nodes = append(nodes, n)
	}
	leader := len(members) == 0
	for _, m := range members {
		i, there := at[m.ID]
		if !there {
			i = len(nodes)
			nodes = append(nodes, nodeStatus{ID: m.ID, Fault: "it is behind none of the endpoints"})
		}
		nodes[i].Member = &m
		leader = leader || m.Leader
		if m.Reachable != nil && !*m.Reachable {
			problems = append(problems, fmt.Errorf("the leader does not reach node %d", m.ID))
		}
	}
	if !leader {
		problems = append(problems, errors.New("no node leads"))
	}
	slices.SortStableFunc(nodes, func(a, b nodeStatus) int { return cmp.Compare(a.ID, b.ID) })
	return nodes, problems
}

// The colour of a row that is not as it should be, and of all behind it.
const (
	red   = "\x1b[31m"
	plain = "\x1b[0m"
)

// statusTable prints the nodes, in red those that are not ready if there are colours.
func statusTable(nodes []nodeStatus, colours bool) func(io.Writer) error {
	return func(out io.Writer) error {
		rows := [][]string{{"ID", "ENDPOINT", "ROLE", "READY", "TERM", "APPLIED", "REVISION", "KEYS", "SIZE", "VERSION", "UP"}}
		for _, n := range nodes {
			rows = append(rows, n.row())
		}
		var text strings.Builder
		if err := command.WriteTable(&text, rows...); err != nil {
			return err
		}
		lines := strings.SplitAfter(text.String(), "\n")
		for i, n := range nodes {
			if colours && !n.Ready && n.Endpoint != "" {
				lines[i+1] = red + strings.TrimSuffix(lines[i+1], "\n") + plain + "\n"
			}
		}
		_, err := io.WriteString(out, strings.Join(lines, ""))
		return err
	}
}

// row returns what the table says of a node.
func (n *nodeStatus) row() []string {
	row := []string{"-", cmp.Or(n.Endpoint, "-"), "no answer", "-", "-", "-", "-", "-", "-", "-", "-"}
	if n.ID > 0 {
		row[0] = fmt.Sprint(n.ID)
	}
	if n.Endpoint == "" {
		row[2] = n.Member.Role
	}
	s := n.Status
	if s == nil {
		return row
	}
	ready := "no"
	if n.Ready {
		ready = "yes"
	}
	return append(row[:2], s.Role, ready, fmt.Sprint(s.Term), fmt.Sprint(s.AppliedIndex), fmt.Sprint(s.Revision), fmt.Sprint(s.Keys),
		size(s.Bytes), s.Version, fmt.Sprint(time.Duration(s.UptimeSeconds)*time.Second))
}

// size prints a number of bytes for people.
func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, unit := float64(n), 0
	for f >= 1024 && unit < len(units)-1 {
		f, unit = f/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[unit])
}
