package remote

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"raftkv/client"
	"raftkv/internal/address"
	"raftkv/internal/command"
	"raftkv/internal/config"
)

// Commands about the members, and who leads.

func memberCommand() command.Command {
	const voters = "\n\nA change that would leave the cluster without a reachable majority is refused, unless --force is given."
	return command.Command{
		Name: "member", About: "the nodes of the cluster",
		Long:    "Lists the nodes of the cluster, and adds, changes and removes them.",
		Example: "raftkv member list\nraftkv member add http://127.0.0.1:42379\nraftkv member remove 4",
		Sub: []command.Command{{
			Name: "list", About: "print the members", Remote: true, New: action(listMembers),
			Long:    "Prints the members. REACHABLE and MATCH are as the leader sees them, and - while it cannot be asked.",
			Example: "raftkv member list",
		}, {
			Name: "add", Args: "PEER-URL", About: "make a node a member, and print its ID", Remote: true, New: newMemberAdd,
			Long: `Makes the node that others reach at PEER-URL a member, and prints its ID: the next free one
without --id. It begins as a learner, and becomes a voter by itself once it has caught up, so it
need not run yet. Start it with --join, that --id and --cluster naming a member and itself.` + voters,
			Example: "raftkv member add http://127.0.0.1:42379 --id 4\nraftkv --id 4 --port 42380 --join --cluster http://127.0.0.1:12379,4=http://127.0.0.1:42379",
		}, {
			Name: "remove", Args: "ID", About: "remove a member", Remote: true, New: newMemberRemove,
			Long: `Removes a member. Its ID is never a member's again; the node, if it runs, stops by itself.
Removing the leader hands leadership over first. Exit 3 if the ID never was a member's.` + voters,
			Example: "raftkv member remove 4",
		}, {
			Name: "promote", Args: "ID", About: "make a learner a voter", Remote: true, New: newMemberPromote,
			Long:    `Makes a learner a voter at once. That happens by itself, unless it was added with --role learner.` + voters,
			Example: "raftkv member promote 4",
		}, {
			Name: "update", Args: "ID", About: "give a member another peer URL or role", Remote: true, New: newMemberUpdate,
			Long: `Gives a member another peer URL, when it is to be reached elsewhere, or another role.` + voters,
			Example: "raftkv member update 4 --peer-url http://10.0.0.4:12379\n" +
				"raftkv member update 4 --role learner",
		}},
	}
}

func leaderCommand() command.Command {
	return command.Command{
		Name: "leader", About: "print which node leads", Remote: true, New: action(showLeader),
		Long:    "Prints the ID of the node that leads. Exit 3 while there is none.",
		Example: "raftkv leader\nraftkv leader move\nraftkv leader move 2",
		Sub: []command.Command{{
			Name: "move", Args: "[ID]", About: "hand leadership over, and print who leads then", Remote: true, New: newLeaderMove,
			Long: `Hands leadership to a voter, without ID to the best one, and prints the ID of the node that leads then.
With --if-leading nothing happens unless the node at the first endpoint leads: before that node is stopped.`,
			Example: "raftkv leader move 2\nraftkv leader move --if-leading --endpoints http://127.0.0.1:12380",
		}},
	}
}

// memberTable prints members as a table.
func memberTable(members ...client.Member) func(io.Writer) error {
	return func(out io.Writer) error {
		rows := [][]string{{"ID", "ROLE", "REACHABLE", "MATCH", "PEER URL", "CLIENT URL"}}
		for _, m := range members {
			role := m.Role
			if m.Leader {
				role = "leader"
			}
			rows = append(rows, []string{fmt.Sprint(m.ID), role, orDash(m.Reachable), orDash(m.MatchIndex), m.PeerURL, cmp.Or(m.ClientURL, "-")})
		}
		return command.WriteTable(out, rows...)
	}
}

// orDash prints what may not be known.
func orDash[T any](v *T) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(*v)
}

func listMembers(ctx context.Context, o *command.Call, c *client.Client) error {
	m, err := c.Members(ctx)
	if err != nil {
		return err
	}
	return o.Print(m, memberTable(m.Members...))
}

func roleFlag(role *string) config.Setting {
	s := text("role", "ROLE", "voter, or learner for one that stays a learner (voter, once it has caught up)", role)
	s.Choices = []string{"voter", "learner"}
	return s
}

func checkRole(o *command.Call, role string) {
	if role != "" && role != "voter" && role != "learner" {
		o.Review.Check("role", role, fmt.Errorf("expected one of voter, learner"))
	}
}

func newMemberAdd() command.Action {
	var n client.NewMember
	return command.Action{
		Settings: []config.Setting{
			{Flag: "id", Arg: "N", Help: "its ID, which never was a member's (the next free one)", Set: config.Into(&n.ID, address.ParseID, "")},
			roleFlag(&n.Role), toggle("force", "also if no reachable majority is left", &n.Force),
		},
		Check: func(o *command.Call) {
			n.PeerURL = operand(o, 0, "PEER-URL", address.CheckURL)
			checkRole(o, n.Role)
		},
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			m, err := c.AddMember(ctx, n)
			if err != nil {
				return err
			}
			return o.Print(m, line(m.ID))
		}),
	}
}

func newMemberRemove() command.Action {
	var id uint64
	var force bool
	return command.Action{
		Settings: []config.Setting{toggle("force", "also if no reachable majority is left", &force)},
		Check:    func(o *command.Call) { id = operand(o, 0, "ID", address.ParseID) },
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			if err := c.RemoveMember(ctx, id, force); err != nil {
				return err
			}
			return o.Print(struct {
				Removed uint64 `json:"removed"`
			}{id}, silent)
		}),
	}
}

func newMemberPromote() command.Action {
	return changes(client.MemberChange{Role: "voter"}, nil)
}

func newMemberUpdate() command.Action {
	return changes(client.MemberChange{}, func(ch *client.MemberChange) []config.Setting {
		return []config.Setting{
			{Flag: "peer-url", Arg: "URL", Help: "where the others reach it from now on", Set: config.Into(&ch.PeerURL, address.CheckURL, "")},
			roleFlag(&ch.Role),
		}
	})
}

// changes is an action that changes the member that is the first operand, with flags for
// what of it, or none if that is clear.
func changes(ch client.MemberChange, flags func(*client.MemberChange) []config.Setting) command.Action {
	change, id := &ch, uint64(0)
	settings := []config.Setting{toggle("force", "also if no reachable majority is left", &change.Force)}
	if flags != nil {
		settings = append(flags(change), settings...)
	}
	return command.Action{
		Settings: settings,
		Check: func(o *command.Call) {
			id = operand(o, 0, "ID", address.ParseID)
			checkRole(o, change.Role)
			if change.PeerURL == "" && change.Role == "" && o.Review.Sound("peer-url", "role") {
				o.Review.Errs = append(o.Review.Errs, fmt.Errorf("expected --peer-url or --role"))
			}
		},
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			m, err := c.ChangeMember(ctx, id, *change)
			if err != nil {
				return err
			}
			return o.Print(m, memberTable(m))
		}),
	}
}

// leaderID is who leads, in JSON.
type leaderID struct {
	Leader uint64 `json:"leader"`
}

func showLeader(ctx context.Context, o *command.Call, c *client.Client) error {
	m, err := c.Members(ctx)
	if err != nil {
		return err
	}
	for _, member := range m.Members {
		if member.Leader {
			return o.Print(leaderID{member.ID}, line(member.ID))
		}
	}
	return command.No("no node leads")
}

func newLeaderMove() command.Action {
	var id uint64
	var ifLeading bool
	return command.Action{
		Settings: []config.Setting{toggle("if-leading", "only if the node at the first endpoint leads", &ifLeading)},
		Check:    func(o *command.Call) { id = operand(o, 0, "ID", address.ParseID) },
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			if ifLeading {
				st, err := c.Status(ctx, c.Endpoints()[0])
				if err != nil {
					return err
				}
				if st.Role != "leader" {
					return o.Print(leaderID{st.Leader}, line(st.Leader))
				}
			}
			leader, err := c.MoveLeader(ctx, id)
			if err != nil {
				return err
			}
			return o.Print(leaderID{leader}, line(leader))
		}),
	}
}
