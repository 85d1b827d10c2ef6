package peerclient

import "context"

// Whose a request is, as far as the certificate of its connection proves. What a
// request says of its sender counts only if that lets it.

// senderKey is the key of what WithSender keeps in a request's context.
type senderKey struct{}

// WithSender returns a context of a request that comes from a peer. speaks returns nil
// if one of the members that is names can be its sender, else why not.
func WithSender(ctx context.Context, speaks func(is func(id uint64) bool) error) context.Context {
	return context.WithValue(ctx, senderKey{}, speaks)
}

// SenderIs returns nil if a request can come from a member, else why not. Where there
// is no TLS any can be the sender.
func SenderIs(ctx context.Context, member uint64) error {
	return SenderIsOne(ctx, func(id uint64) bool { return id == member })
}

// SenderIsOne is SenderIs for one of several members.
func SenderIsOne(ctx context.Context, is func(id uint64) bool) error {
	if speaks, ok := ctx.Value(senderKey{}).(func(func(uint64) bool) error); ok {
		return speaks(is)
	}
	return nil
}
