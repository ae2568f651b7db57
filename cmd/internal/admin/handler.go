package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

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
	if commands {
		mux.HandleFunc("POST /api/v1/move", a.move)
		mux.HandleFunc("POST /api/v1/kick", a.kick)
		mux.HandleFunc("POST /api/v1/host", a.host)
	}
	return mux
}

func (a *api) status(w http.ResponseWriter, _ *http.Request) {
	status := a.source.Status()
	if status.Hosts == nil {
		status.Hosts = []HostStatus{} // a list is a list in JSON, not null
	}
	a.reply(w, status)
}

func (a *api) userMap(w http.ResponseWriter, _ *http.Request) {
	list := a.source.Map()
	for i := range list {
		if list[i].Users == nil {
			list[i].Users = []string{}
		}
	}
	replyList(w, list)
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
	if user.Sessions == nil {
		user.Sessions = []Session{}
	}
	if user.Names == nil {
		user.Names = []string{}
	}
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

func (a *api) move(w http.ResponseWriter, r *http.Request) {
	var req moveRequest
	a.command(w, r, &req, func(ctx context.Context) error {
		if req.User == "" || req.Host == "" {
			return fmt.Errorf("%w: a move needs user and host", ErrInvalid)
		}
		a.log.Info().Str("user", req.User).Str("host", req.Host).Msg("command: move")
		return a.source.Move(ctx, req.User, req.Host)
	})
}

func (a *api) kick(w http.ResponseWriter, r *http.Request) {
	var req kickRequest
	a.command(w, r, &req, func(ctx context.Context) error {
		if req.User == "" {
			return fmt.Errorf("%w: a kick needs user", ErrInvalid)
		}
		a.log.Info().Str("user", req.User).Msg("command: kick")
		return a.source.Kick(ctx, req.User)
	})
}

func (a *api) host(w http.ResponseWriter, r *http.Request) {
	var req hostRequest
	a.command(w, r, &req, func(ctx context.Context) error {
		if req.Address == "" || req.Weight == nil && req.Up == nil {
			return fmt.Errorf("%w: want address and weight or up", ErrInvalid)
		}
		e := a.log.Info().Str("host", req.Address)
		if req.Weight != nil {
			e = e.Int("weight", *req.Weight)
		}
		if req.Up != nil {
			e = e.Bool("up", *req.Up)
		}
		e.Msg("command: host")
		return a.source.HostSet(ctx, req.Address, req.Weight, req.Up)
	})
}

// command reads the body into req and does it, for at most commandTimeout.
func (a *api) command(w http.ResponseWriter, r *http.Request, req any, do func(context.Context) error) {
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	body.DisallowUnknownFields()
	if err := body.Decode(req); err != nil {
		a.refuse(w, r, fmt.Errorf("%w: %v", ErrInvalid, err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), commandTimeout)
	defer cancel()
	if err := do(ctx); err != nil {
		a.refuse(w, r, err)
		return
	}
	a.reply(w, struct{}{})
}

func (a *api) reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.log.Debug().Err(err).Msg("admin reply was not read")
	}
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
