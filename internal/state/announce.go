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

// EncodeDoors encodes what a node says of how it lets others in; see package doors.
func EncodeDoors(member, instance uint64, doors string) []byte {
	return append(record.AppendUvarints([]byte{byte(kindDoors)}, member, instance), doors...)
}

func decodeDoors(r *record.Reader, c *Command) error {
	c.Member, c.Instance, c.doors = r.Uvarint(), r.Uvarint(), string(r.B)
	return nil
}

func (s *State) openDoors(c Command) Result {
	s.Membership.PublishDoors(c.Member, c.Instance, c.doors)
	return Result{}
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
