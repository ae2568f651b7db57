package ring

// NewFake makes a Ring around a fakeDirector, for tests of other packages' parts.
func NewFake(config Config, hosts ...string) *Ring { return newRing(config, newFake(hosts...)) }
