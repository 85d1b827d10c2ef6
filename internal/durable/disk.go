package durable

// Disk is how much room a file system has, in bytes.
type Disk struct{ Free, Total int64 }
