package admin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

type api struct {
	source Source
	log    zerolog.Logger
}

// handler is everything there is to ask for; with commands, also what changes something.
func handler(cfg Config, commands bool) http.Handler {
	a := &api{source: cfg.Source, log: cfg.Log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	if cfg.Gatherer != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{}))
	}
	mux.HandleFunc("GET /api/v1/status", a.status)
	mux.HandleFunc("GET /api/v1/map", a.userMap)
	mux.HandleFunc("GET /api/v1/user", a.user)
	mux.HandleFunc("GET /api/v1/flows", a.flows)
	mux.HandleFunc("GET /api/v1/flush", a.flushes)
	mux.HandleFunc("GET /api/v1/ring", a.ring)
	mux.HandleFunc("GET /api/v1/orders", a.orders)
	if commands {
		a.commands(mux)
	}
	return mux
}

func (a *api) status(w http.ResponseWriter, _ *http.Request) {
	status := a.source.Status()
	status.Ring = a.source.Ring().Summary()
	status.Hosts = listed(status.Hosts)
	a.reply(w, status)
}

// userMap lists everybody, the users of ?host=, or each ?user=; those without an entry are left out.
func (a *api) userMap(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	var list []MapEntry
	if names := query["user"]; len(names) > 0 {
		list = a.entriesOf(names)
	} else {
		list = a.source.Map()
	}
	if name := query.Get("host"); name != "" {
		host, err := a.hostOf(name)
		if err != nil {
			a.refuse(w, r, err)
			return
		}
		list = slices.DeleteFunc(list, func(e MapEntry) bool { return e.Host != host })
	}
	for i := range list {
		list[i].Users = listed(list[i].Users)
	}
	replyList(w, list)
}

func (a *api) entriesOf(names []string) (list []MapEntry) {
	for _, name := range names {
		u, err := a.source.User(name)
		if err != nil {
			continue
		}
		list = append(list, MapEntry{
			Hash: u.Hash, Users: u.Names, Tag: u.Tag, Host: u.Host, Sessions: len(u.Sessions), Moving: u.Moving, ExpiresAt: u.ExpiresAt,
		})
	}
	return list
}

// hostOf finds a host by its address or name. An address need not be that of a known host: what
// to do then is for the source to say.
func (a *api) hostOf(text string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr.Unmap(), nil
	}
	var found []string
	var addr netip.Addr
	for _, h := range a.source.Status().Hosts {
		if text != "" && strings.EqualFold(h.Name, text) {
			addr = h.Address
			found = append(found, addr.String())
		}
	}
	switch len(found) {
	case 0:
		return addr, fmt.Errorf("%w: %q", ErrUnknownHost, text)
	case 1:
		return addr, nil
	}
	return addr, fmt.Errorf("%w: %s has several addresses, name one of them: %s", ErrInvalid, text, strings.Join(found, ", "))
}

func (a *api) user(w http.ResponseWriter, r *http.Request) {
	// In the query, not in the path: names have slashes and dots.
	name := r.URL.Query().Get("name")
	if name == "" {
		a.refuse(w, r, fmt.Errorf("%w: name is missing", ErrInvalid))
		return
	}
	user, err := a.source.User(name)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	user.Sessions, user.Names = listed(user.Sessions), listed(user.Names)
	a.reply(w, user)
}

func (a *api) flows(w http.ResponseWriter, r *http.Request) {
	list, err := a.source.Flows()
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	replyList(w, list)
}

func (a *api) reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.log.Debug().Err(err).Msg("admin reply was not read")
	}
}

func (a *api) flushes(w http.ResponseWriter, _ *http.Request) { replyList(w, a.source.Flushes()) }

func (a *api) ring(w http.ResponseWriter, _ *http.Request) { a.reply(w, a.source.Ring()) }

func (a *api) orders(w http.ResponseWriter, _ *http.Request) {
	o := a.source.Orders()
	o.Hosts, o.Gone, o.Users, o.Drains = listed(o.Hosts), listed(o.Gone), listed(o.Users), listed(o.Drains)
	o.DirectorsAdded, o.DirectorsRemoved = listed(o.DirectorsAdded), listed(o.DirectorsRemoved)
	a.reply(w, o)
}

// listed makes a list of JSON of a nil slice.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// replyList writes one element after the other: json.Encoder would build the whole text of a
// million flows in memory before its first byte.
func replyList[T any](w http.ResponseWriter, list []T) {
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriterSize(w, 32<<10)
	separator := "["
	for i := range list {
		element, err := json.Marshal(&list[i])
		if err != nil {
			panic(err) // types.go has nothing that cannot be marshalled
		}
		out.WriteString(separator)
		if _, err := out.Write(element); err != nil {
			return // the reader went away
		}
		separator = ",\n "
	}
	if len(list) == 0 {
		out.WriteString("[")
	}
	out.WriteString("]\n")
	out.Flush()
}

func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	code, status := codeOf(err)
	a.log.Debug().Err(err).Str("path", r.URL.Path).Int("status", status).Msg("admin request refused")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(errorReply{Error: err.Error(), Code: code})
}
