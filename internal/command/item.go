package command

import (
	"raftkv/client"
	"unicode/utf8"
)

// Item is a key in the JSON of commands, with the names that the HTTP API has.
type Item struct {
	Key            string  `json:"key"`
	Value          *string `json:"value,omitempty"`        // what is UTF-8
	Base64         []byte  `json:"value_base64,omitempty"` // what is not
	CreateRevision uint64  `json:"create_revision"`
	ModRevision    uint64  `json:"mod_revision"`
	Version        uint64  `json:"version"`
	ExpiresIn      float64 `json:"expires_in_seconds,omitempty"`
	Lease          uint64  `json:"lease,omitempty"`
}

// ItemOf returns an item for JSON. A nil value is left out.
func ItemOf(i client.Item) Item {
	item := Item{
		Key: i.Key, CreateRevision: i.CreateRevision, ModRevision: i.ModRevision, Version: i.Version,
		ExpiresIn: i.ExpiresIn.Seconds(), Lease: i.Lease,
	}
	if i.Value != nil && utf8.Valid(i.Value) {
		text := string(i.Value)
		item.Value = &text
	} else {
		item.Base64 = i.Value
	}
	return item
}
