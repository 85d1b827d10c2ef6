package remote

import (
	"context"
	"errors"
	"raftkv/client"
	"time"
)

// get reads a key, and waits so long for one that is not there.
func get(ctx context.Context, c *client.Client, key string, wait time.Duration, opts []client.ReadOption) (client.Item, error) {
	item, missing := c.Get(ctx, key, opts...)
	if !errors.Is(missing, client.NotFound) || wait == 0 {
		return item, missing
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for change, err := range c.Watch(limited, client.WatchConfig{Keys: []string{key}, State: true}) {
		if err != nil {
			if limited.Err() != nil && ctx.Err() == nil {
				return item, missing
			}
			return item, err
		}
		if n := len(change.Events); n > 0 && change.Events[n-1].Type == client.Put {
			return change.Events[n-1].Item, nil
		}
	}
	return item, missing
}
