package state

import "raftkv/internal/record"

// EncodeAnnounce encodes a node's announcement of its client URL, the instance
// of its data directory, and the level of commands that its program knows.
func EncodeAnnounce(member, instance, level uint64, clientURL string) []byte {
	b := record.AppendUvarints([]byte{byte(KindAnnounce)}, member, instance, level)
	return append(b, clientURL...)
}

func decodePublish(r *record.Reader, c *Command) error {
	c.Member, c.Instance, c.clientURL = r.Uvarint(), r.Uvarint(), string(r.B)
	return nil
}

func decodeAnnounce(r *record.Reader, c *Command) error {
	c.Member, c.Instance, c.level = r.Uvarint(), r.Uvarint(), r.Uvarint()
	c.clientURL = string(r.B)
	return nil
}

// announce takes in what a node says of itself. Before there were levels, it said
// none.
func (s *State) announce(c Command) Result {
	s.Membership.Publish(c.Member, c.Instance, c.clientURL, c.level)
	if c.Kind == KindAnnounce {
		s.raiseLevel()
	}
	return Result{}
}
