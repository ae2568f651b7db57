package sim

import (
	"usher/director"
	"usher/director/ring"
)

// build makes the real thing.
func build(rc ring.Config, dc director.Config) (machine, *director.Director) {
	d := director.New(dc)
	return ring.New(rc, d), d
}

// directorConfig is that of all nodes of a plan.
func directorConfig(p *plan) director.Config {
	return director.Config{UserExpire: p.expire, KickDelay: p.delay, MoveTimeout: moveTimeout, Ring: true, FlushCommand: p.flush}
}

// alone is the configuration of a director without a ring.
func alone(c director.Config) director.Config {
	c.Ring = false
	return c
}
