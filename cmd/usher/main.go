// Command usher keeps every user of a mail cluster on one backend, and lets the kernel carry the
// bytes of the sessions. Everything is in the packages; here the hooks of the command are wired.
package main

import (
	"context"
	"io"
	"os"
	"runtime/debug"

	"usher/cmd/internal/cli"
	"usher/cmd/internal/config"
	"usher/cmd/internal/demo"
	"usher/cmd/internal/serve"
	"usher/loader/probe"
)

// version is set by the linker for releases: -X main.version=v1.2.3.
var version string

func main() {
	os.Exit(cli.Run(cli.Env{
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		Version: versionString(),
		Serve: func(ctx context.Context, cfg *config.Config) error {
			return serve.Run(ctx, cfg, versionString(), os.Stderr)
		},
		Probe: func(ctx context.Context, w io.Writer, asJSON bool) error {
			return probe.Print(ctx, w, asJSON, probe.Options{PinPath: config.Default().Steer.PinPath})
		},
		Demo:  demo.Run,
		Unpin: serve.Unpin,
	}, os.Args[1:]))
}

// versionString falls back to what the go command noted in the binary.
func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
