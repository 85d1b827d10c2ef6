//go:build !linux

package web

import "errors"

// LimitUnsent bounds what the system takes of this connection, where it can.
func (c *HangUpConn) LimitUnsent(int) error { return errors.ErrUnsupported }
