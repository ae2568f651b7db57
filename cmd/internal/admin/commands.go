package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Limits of orders; those of weight and moves are the director's, too.
const (
	maxWeight   = 1000
	maxParallel = 100000
)

// commands adds what changes something.
func (a *api) commands(mux *http.ServeMux) {
	for path, h := range map[string]http.HandlerFunc{
		"user/move":   a.userMove,
		"user/kick":   a.userKick,
		"host/add":    a.hostAdd,
		"host/update": a.hostUpdate,
		"host/up":     a.hostUp(true),
		"host/down":   a.hostUp(false),
		"host/remove": a.hostRemove,
		"host/drain":  a.flush(true),
		"flush":       a.flush(false),
		"flush/stop":  a.flushStop,
		"ring/add":    a.ringAdd,
		"ring/remove": a.ringRemove,
	} {
		mux.HandleFunc("POST /api/v1/"+path, h)
	}
}

// outcome is what a command says when it worked.
type outcome struct {
	finished bool // nothing is left to do here
	told     bool // the ring was told: its agreement may be awaited
	wait     bool // for it
}

// command decodes the body into T, logs it under the name of the command, and does it, for at
// most commandTimeout. The reply says whether it is finished or only started, and warns when a
// director of the ring is silent: what it is told now reaches it late, or never.
func command[T any](a *api, w http.ResponseWriter, r *http.Request, do func(ctx context.Context, req T) (outcome, error)) {
	var req T
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	body.DisallowUnknownFields()
	if err := body.Decode(&req); err != nil {
		a.refuse(w, r, fmt.Errorf("%w: %v", ErrInvalid, err))
		return
	}
	name := strings.ReplaceAll(strings.TrimPrefix(r.URL.Path, "/api/v1/"), "/", " ")
	a.log.Info().Str("command", name).Interface("order", req).Msg("command")
	ctx, cancel := context.WithTimeout(r.Context(), commandTimeout)
	defer cancel()
	// Before, too: a director that leaves because of the command need not be silent after it.
	before := a.silent()
	o, err := do(ctx, req)
	if err == nil && o.told && o.wait {
		if err = a.source.WaitSynced(ctx); err != nil {
			err = fmt.Errorf("it is done here, but the ring did not agree in time: %w", err)
		}
	}
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	reply := Reply{State: Finished, Warnings: []string{}}
	if !o.finished || o.told && !a.source.Ring().Synced {
		reply.State = Started
	}
	for _, d := range union(before, a.silent()) {
		reply.Warnings = append(reply.Warnings, fmt.Sprintf("director %v does not answer: the order reaches it and those behind it late or never", d))
	}
	a.reply(w, reply)
}

func (a *api) silent() (all []netip.AddrPort) {
	for _, d := range a.source.Ring().Directors {
		if d.Silent {
			all = append(all, d.Address)
		}
	}
	return all
}

// union keeps the order of a, then of b.
func union(a, b []netip.AddrPort) []netip.AddrPort {
	seen := map[netip.AddrPort]bool{}
	var all []netip.AddrPort
	for _, list := range [][]netip.AddrPort{a, b} {
		for _, x := range list {
			if !seen[x] {
				seen[x] = true
				all = append(all, x)
			}
		}
	}
	return all
}

func (a *api) userMove(w http.ResponseWriter, r *http.Request) {
	command(a, w, r, func(ctx context.Context, req moveRequest) (outcome, error) {
		if req.User == "" || req.Host == "" {
			return outcome{}, fmt.Errorf("%w: a move needs user and host", ErrInvalid)
		}
		host, err := a.hostOf(req.Host)
		if err != nil {
			return outcome{}, err
		}
		finished, err := a.source.UserMove(ctx, req.User, host, req.Wait)
		return outcome{finished: finished}, err
	})
}

func (a *api) userKick(w http.ResponseWriter, r *http.Request) {
	command(a, w, r, func(ctx context.Context, req kickRequest) (outcome, error) {
		// The others end their sessions as soon as they hear of it and do not say when.
		alone := outcome{finished: a.source.Ring().Others() == 0}
		switch {
		case req.User != "" && req.Field == "" && req.Value == "":
			return alone, a.source.UserKick(ctx, req.User)
		case req.User == "" && req.Field != "" && req.Value != "":
			return alone, a.source.FieldKick(ctx, req.Field, req.Value)
		}
		return outcome{}, fmt.Errorf("%w: a kick needs user, or field and value", ErrInvalid)
	})
}

func (a *api) hostAdd(w http.ResponseWriter, r *http.Request) {
	command(a, w, r, func(ctx context.Context, req addRequest) (outcome, error) {
		switch {
		case !req.Address.IsValid():
			return outcome{}, fmt.Errorf("%w: address is missing", ErrInvalid)
		case req.Weight < 0 || req.Weight > maxWeight:
			return outcome{}, badWeight(req.Weight)
		case strings.ContainsAny(req.Tag+req.Name, " \t\r\n"):
			return outcome{}, fmt.Errorf("%w: tag and name must not have spaces in them", ErrInvalid)
		}
		req.Address = req.Address.Unmap()
		return outcome{true, true, req.Wait}, a.source.HostAdd(ctx, req.HostOrder)
	})
}

func (a *api) hostUpdate(w http.ResponseWriter, r *http.Request) {
	a.hostCommand(w, r, func(ctx context.Context, host netip.Addr, req hostRequest) error {
		if req.Weight == nil {
			return fmt.Errorf("%w: weight is missing", ErrInvalid)
		}
		if *req.Weight < 0 || *req.Weight > maxWeight {
			return badWeight(*req.Weight)
		}
		return a.source.HostUpdate(ctx, host, *req.Weight)
	})
}

func badWeight(weight int) error {
	return fmt.Errorf("%w: weight %d is out of range, want 0 to %d", ErrInvalid, weight, maxWeight)
}

func (a *api) hostUp(up bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.hostCommand(w, r, func(ctx context.Context, host netip.Addr, _ hostRequest) error {
			return a.source.HostUp(ctx, host, up)
		})
	}
}

func (a *api) hostRemove(w http.ResponseWriter, r *http.Request) {
	a.hostCommand(w, r, func(ctx context.Context, host netip.Addr, _ hostRequest) error {
		return a.source.HostRemove(ctx, host)
	})
}

// hostCommand is a command about one host, of which the ring is told.
func (a *api) hostCommand(w http.ResponseWriter, r *http.Request, do func(context.Context, netip.Addr, hostRequest) error) {
	command(a, w, r, func(ctx context.Context, req hostRequest) (outcome, error) {
		host, err := a.hostOf(req.Host)
		if err != nil {
			return outcome{}, err
		}
		return outcome{true, true, req.Wait}, do(ctx, host, req)
	})
}

// allHosts is the host of a flush that means each of them.
const allHosts = "all"

func (a *api) flush(drain bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		command(a, w, r, func(ctx context.Context, req flushRequest) (outcome, error) {
			o := FlushOrder{Drain: drain, Force: req.Force, Rate: req.Rate, Parallel: req.Parallel}
			switch {
			case !(req.Rate >= 0): // NaN, too
				return outcome{}, fmt.Errorf("%w: the rate must not be negative", ErrInvalid)
			case req.Parallel < 0 || req.Parallel > maxParallel:
				return outcome{}, fmt.Errorf("%w: parallel %d is out of range, want 0 to %d", ErrInvalid, req.Parallel, maxParallel)
			case drain && (req.Force || req.Host == allHosts):
				return outcome{}, fmt.Errorf("%w: a drain moves the users of one host", ErrInvalid)
			}
			if req.Host != allHosts {
				var err error
				if o.Host, err = a.hostOf(req.Host); err != nil {
					return outcome{}, err
				}
			}
			return outcome{finished: req.Force}, a.source.Flush(ctx, o)
		})
	}
}

func (a *api) flushStop(w http.ResponseWriter, r *http.Request) {
	command(a, w, r, func(ctx context.Context, req flushRequest) (outcome, error) {
		var host netip.Addr
		if req.Host != allHosts {
			var err error
			if host, err = a.hostOf(req.Host); err != nil {
				return outcome{}, err
			}
		}
		return outcome{finished: true}, a.source.FlushStop(ctx, host)
	})
}

func (a *api) ringAdd(w http.ResponseWriter, r *http.Request) {
	a.ringCommand(w, r, a.source.RingAdd)
}

func (a *api) ringRemove(w http.ResponseWriter, r *http.Request) {
	a.ringCommand(w, r, a.source.RingRemove)
}

func (a *api) ringCommand(w http.ResponseWriter, r *http.Request, do func(context.Context, netip.AddrPort) error) {
	command(a, w, r, func(ctx context.Context, req ringRequest) (outcome, error) {
		member, err := parseDirector(req.Director)
		if err != nil {
			return outcome{}, err
		}
		return outcome{true, true, req.Wait}, do(ctx, member)
	})
}

// parseDirector takes an address with or without a port; 0: without.
func parseDirector(text string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), 0), nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil || ap.Port() == 0 {
		return ap, fmt.Errorf("%w: %q is no director, write \"10.1.0.3\", \"10.1.0.3:9090\" or \"[fd00::3]:9090\"", ErrInvalid, text)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
