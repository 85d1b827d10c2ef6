package wait

import "context"

// AfterFunc calls f on a goroutine of its own once ctx has ended. stop ends that, and
// returns when f has returned if it was called: what f uses may go then.
func AfterFunc(ctx context.Context, f func()) (stop func()) {
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		f()
	})
	return func() {
		if !cancel() {
			<-done
		}
	}
}
