package serve

import (
	"context"
	"errors"
	"sync"
)

// parts are what runs beside the server. All of them end when one fails.
type parts struct {
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
	mu     sync.Mutex
	err    error
}

func newParts(ctx context.Context) *parts {
	p := &parts{}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

func (p *parts) start(run func(context.Context) error) {
	p.group.Go(func() {
		if err := run(p.ctx); err != nil {
			p.mu.Lock()
			p.err = errors.Join(p.err, err)
			p.mu.Unlock()
			p.cancel()
		}
	})
}

// stop ends them all and returns what went wrong.
func (p *parts) stop() error {
	p.cancel()
	p.group.Wait()
	return p.err
}
