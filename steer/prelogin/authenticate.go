package prelogin

import (
	"slices"

	"usher/steer/sasl"
)

// Mechanisms returns the SASL mechanisms that are offered now.
func (t *Talk) Mechanisms() []string {
	return slices.DeleteFunc(t.known(), func(m string) bool { return !t.Plaintext() && t.exposed(m) })
}

// exposed reports whether a mechanism shows a secret to whoever reads along.
func (t *Talk) exposed(mechanism string) bool {
	if r := t.relay(mechanism); r != nil {
		return r.Plaintext
	}
	return mechanism != "EXTERNAL"
}

// known are those that would be offered if the connection were private.
func (t *Talk) known() []string {
	all := t.cfg.Mechanisms
	if all == nil {
		all = DefaultMechanisms
	}
	all = slices.DeleteFunc(slices.Clone(all), func(m string) bool { return m == "EXTERNAL" || !slices.Contains(sasl.Mechanisms, m) })
	if t.certified() != "" {
		all = append(all, "EXTERNAL")
	}
	for _, r := range t.cfg.Relays {
		if !slices.Contains(all, r.Name) && r.Name != "EXTERNAL" {
			all = append(all, r.Name)
		}
	}
	return all
}

// relay returns the Relay of a mechanism, nil for those that we understand ourselves.
func (t *Talk) relay(mechanism string) *Relay {
	if i := slices.IndexFunc(t.cfg.Relays, func(r Relay) bool { return r.Name == mechanism }); i >= 0 && !slices.Contains(sasl.Mechanisms, mechanism) {
		return &t.cfg.Relays[i]
	}
	return nil
}

func (t *Talk) certified() string {
	if t.cfg.Certified == nil {
		return ""
	}
	return t.cfg.Certified()
}

// Offer says what becomes of a client's choice of a mechanism, which is in upper case.
type Offer int

// The offers.
const (
	Offered Offer = iota
	Private       // not on a connection without TLS
	Unknown
)

// Offer returns that of a mechanism.
func (t *Talk) Offer(mechanism string) Offer {
	switch {
	case !slices.Contains(t.known(), mechanism):
		return Unknown
	case !slices.Contains(t.Mechanisms(), mechanism):
		return Private
	}
	return Offered
}

// Authenticate does the exchange of a mechanism that is Offered. Initial is the client's initial response, decoded; nil
// when there was none. The errors are those of Protocol.Ask and sasl.ErrMessage.
func (t *Talk) Authenticate(mechanism string, initial []byte) (*Login, error) {
	if r := t.relay(mechanism); r != nil {
		return t.passOn(r, initial)
	}
	x := sasl.Begin(mechanism, t.certified())
	message := initial
	for {
		challenge, err := x.Next(message)
		if err != nil {
			return nil, err
		}
		if challenge == nil {
			return &Login{User: x.User, Password: x.Password, Authzid: x.Authzid, Mechanism: mechanism, Message: x.Message}, nil
		}
		if message, err = t.protocol.Ask(challenge); err != nil {
			return nil, err
		}
		if message == nil {
			message = []byte{} // an empty answer, and not none
		}
	}
}

// passOn is Authenticate with somebody else's understanding.
func (t *Talk) passOn(r *Relay, message []byte) (*Login, error) {
	attempt := &Login{Mechanism: r.Name, Relayed: true}
	x, err := r.Begin()
	if err != nil {
		return attempt, nil // it knows why
	}
	for {
		challenge := x.Next(message)
		if challenge == nil {
			return attempt, nil
		}
		if message, err = t.protocol.Ask(challenge); err != nil {
			x.Cancel()
			return nil, err
		}
		if message == nil {
			message = []byte{}
		}
	}
}
