package remote

import (
	"context"
	"fmt"
	"io"
	"raftkv/client"
	"raftkv/internal/command"
	"time"
)

// Commands about leases.

func leaseCommand() command.Command {
	return command.Command{
		Name: "lease", About: "leases, with which keys go away",
		Long: `A lease has a time. Keys that are bound to it go away, all in one revision, when that has
passed without the lease having been kept, or when it is revoked. raftkv lock and raftkv
elect keep one by themselves.`,
		Example: "id=$(raftkv lease grant 30s)\nraftkv put services/web/1 10.0.0.7:80 --lease $id\nraftkv lease keep $id",
		Sub: []command.Command{{
			Name: "grant", Args: "TIME", About: "make a lease, and print its ID", Remote: true, New: newLeaseGrant,
			Long:    "Makes a lease with a time of 1s to a year, and prints its ID.",
			Example: "raftkv lease grant 30s",
		}, {
			Name: "keep", Args: "ID", About: "let the time of a lease begin again", Remote: true, New: newLeaseKeep,
			Long:    "Lets the whole time of the lease begin again, and prints how long it is. Exit 3 if it has ended.",
			Example: "raftkv lease keep 7",
		}, {
			Name: "show", Args: "ID", About: "print a lease with its keys", Remote: true, New: newLeaseShow,
			Long:    "Prints the time of a lease, what is left of it, and its keys. Exit 3 if it has ended.",
			Example: "raftkv lease show 7",
		}, {
			Name: "list", About: "print all leases", Remote: true, New: action(listLeases),
			Long:    "Prints the leases that there are, without their keys. With --output json each is a line.",
			Example: "raftkv lease list",
		}, {
			Name: "revoke", Args: "ID", About: "end a lease: its keys go away", Remote: true, New: newLeaseRevoke,
			Long:    "Ends a lease at once. Its keys go away in one revision. Exit 3 if it has ended.",
			Example: "raftkv lease revoke 7",
		}},
	}
}

// leaseInfo is a lease in JSON, with the names that the HTTP API has.
type leaseInfo struct {
	ID        uint64   `json:"id"`
	TTL       float64  `json:"ttl_seconds,omitempty"`
	ExpiresIn float64  `json:"expires_in_seconds,omitempty"`
	KeyCount  *int     `json:"key_count,omitempty"`
	Keys      []string `json:"keys,omitempty"`
	Owner     string   `json:"owner,omitempty"`
}

func leaseOf(l client.LeaseInfo) leaseInfo {
	return leaseInfo{l.ID, l.TTL.Seconds(), l.ExpiresIn.Seconds(), &l.KeyCount, l.Keys, l.Owner}
}

func newLeaseGrant() command.Action {
	var ttl time.Duration
	return command.Action{
		Check: func(o *command.Call) { ttl = operand(o, 0, "TIME", command.ParsePeriod) },
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			id, err := c.GrantLease(ctx, ttl)
			if err != nil {
				return err
			}
			return o.Print(leaseInfo{ID: id, TTL: ttl.Seconds()}, line(id))
		}),
	}
}

// ofLease is an action about the lease that is the first operand.
func ofLease(do func(ctx context.Context, o *command.Call, c *client.Client, id uint64) error) command.Action {
	var id uint64
	return command.Action{
		Check: func(o *command.Call) { id = operand(o, 0, "ID", parseID) },
		Run: calls(func(ctx context.Context, o *command.Call, c *client.Client) error {
			return do(ctx, o, c, id)
		}),
	}
}

func newLeaseKeep() command.Action {
	return ofLease(func(ctx context.Context, o *command.Call, c *client.Client, id uint64) error {
		left, err := c.KeepLease(ctx, id)
		if err != nil {
			return err
		}
		return o.Print(leaseInfo{ID: id, ExpiresIn: left.Seconds()}, line(left))
	})
}

func newLeaseShow() command.Action {
	return ofLease(func(ctx context.Context, o *command.Call, c *client.Client, id uint64) error {
		l, err := c.LeaseInfo(ctx, id)
		if err != nil {
			return err
		}
		return o.Print(leaseOf(l), func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "lease       %d\ntime        %v\nexpires in  %v\nkeys        %d\n", l.ID, l.TTL, l.ExpiresIn.Round(time.Millisecond), l.KeyCount)
			for _, key := range l.Keys {
				if err == nil {
					_, err = fmt.Fprintf(w, "  %s\n", key)
				}
			}
			return err
		})
	})
}

func listLeases(ctx context.Context, o *command.Call, c *client.Client) error {
	rows := [][]string{{"LEASE", "TIME", "EXPIRES IN", "KEYS", "OWNER"}}
	for l, err := range c.Leases(ctx) {
		switch {
		case err != nil:
			return err
		case o.Output == command.JSON:
			err = o.PrintJSON(leaseOf(l))
		default:
			row := []string{fmt.Sprint(l.ID), fmt.Sprint(l.TTL), fmt.Sprint(l.ExpiresIn.Round(time.Millisecond)), fmt.Sprint(l.KeyCount)}
			if l.Owner != "" {
				row = append(row, l.Owner)
			}
			rows = append(rows, row)
		}
		if err != nil {
			return err
		}
	}
	if o.Output == command.JSON {
		return nil
	}
	return command.WriteTable(o.Stdout, rows...)
}

func newLeaseRevoke() command.Action {
	return ofLease(func(ctx context.Context, o *command.Call, c *client.Client, id uint64) error {
		if err := c.RevokeLease(ctx, id); err != nil {
			return err
		}
		return o.Print(leaseInfo{ID: id}, silent)
	})
}
