package main

// redoSnapshot has the apply loop take a snapshot in place of one that failed.
func (kv *kvstore) redoSnapshot() {
	kv.redo.Store(true)
	kv.AskForSnapshot(0)
}
