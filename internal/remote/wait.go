package remote

import (
	"context"
	"errors"
	"raftkv/client"
	"time"
)

// lookEvery is how long get waits before it looks for a key again.
const lookEvery = 250 * time.Millisecond

// get reads a key, and waits so long for one that is not there.
func get(ctx context.Context, c *client.Client, key string, wait time.Duration, opts []client.ReadOption) (client.Item, error) {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		item, err := c.Get(ctx, key, opts...)
		if !errors.Is(err, client.NotFound) || wait == 0 {
			return item, err
		}
		select {
		case <-time.After(lookEvery):
		case <-limited.Done():
			return item, err
		}
	}
}
